//! What an operator does to the walk's projection: resets, replays, discards, rebuilds, rollbacks, a new version.

use std::sync::Arc;
use std::time::Duration;

use throughline::projection::{self, ProjectionLoopError, RebuildMode, drop_previous, rebuild, replay, rollback};
use throughline::store::{self, DatabaseRole, dead_letters};
use uuid::Uuid;

use super::scenario::Dice;
use super::walk_model::Letter;
use super::walk_steps::{PARTITIONS, Walk};
use super::walk_world::NAME;

impl Walk {
    pub async fn reset(&mut self, dice: &mut Dice) {
        self.driver = None;
        let only = (dice.below(3) == 0).then(|| dice.below(PARTITIONS as u64) as usize);
        let form = dice.below(6);
        for (p, row) in self.rows().await.into_iter().enumerate() {
            let is_known = row.topic.is_none_or(|topic| topic == self.topic());
            if only.is_some_and(|only| only != p) || !is_known {
                continue;
            }
            let (first, end) = self.logs[p].kept();
            let (name, wish) = match form {
                0 | 1 => ("reset to earliest", Some(first)),
                2 | 3 => ("reset to an offset", Some(first + dice.below((end - first + 1) as u64) as i64)),
                4 if dice.below(2) == 0 => ("reset to latest", Some(end)),
                4 => ("reset to current", Some(row.next_offset)),
                _ => ("delete offsets", None),
            };
            self.committed[p] = wish.map(|offset| (offset, String::new()));
            self.carried_out[p] = false;
            self.took(name, format!("{p}: {wish:?}"));
        }
    }

    pub async fn replay(&mut self, dice: &mut Dice) {
        let open: Vec<(usize, Uuid)> = self.model.open_keys().into_iter().collect();
        let one = (!open.is_empty() && dice.below(2) == 0).then(|| open[dice.below(open.len() as u64) as usize]);
        let keys: Option<Vec<Vec<u8>>> = one.map(|(_, key)| vec![key.to_string().into_bytes()]);
        let (dry, kill) = (dice.below(6) == 0, dice.below(6) == 0);
        self.took(if dry { "dry replay" } else { "replay" }, format!("{one:?} of {}", open.len()));
        let projector = self.projector();
        let work = replay(&projector, keys.as_deref(), dry);
        let limit = if kill { Duration::from_micros(dice.below(30_000)) } else { Duration::MAX };
        let outcome = tokio::time::timeout(limit, work).await;
        self.settle(outcome.is_err()).await;
        let may = self.model.live.version == self.program;
        match outcome {
            Ok(Err(error)) => assert!(!may && !open.is_empty(), "the replay is refused: {error}"),
            Ok(Ok(keys)) => {
                for told in &keys {
                    let key = Uuid::parse_str(&told.key).expect("a key");
                    let can = self.model.can_replay(told.partition as usize, key);
                    assert_eq!(told.failure.is_none(), can, "{told:?}");
                    if can && !dry {
                        self.model.replay(told.partition as usize, key);
                    }
                }
                assert!(may || open.is_empty(), "replayed by another version");
                assert_eq!(keys.len(), if one.is_some() { 1 } else { open.len() });
            }
            Err(_) => {
                for (p, key) in open {
                    if self.is_replayed(p, key).await {
                        assert!(may && !dry && self.model.can_replay(p, key));
                        self.model.replay(p, key);
                    }
                }
            }
        }
    }

    pub async fn is_replayed(&self, p: usize, key: Uuid) -> bool {
        self.owner
            .query_one(
                "select not exists (select from throughline.dead_letters
                                    where consumer = $1 and source_partition = $2 and key = $3 and status = 'parked')",
                &[&self.projector().group, &(p as i32), &key.to_string().into_bytes()],
            )
            .await
            .expect("letters")
            .get(0)
    }

    pub async fn discard(&mut self, dice: &mut Dice) {
        let rows = self
            .owner
            .query(
                "select id, source_partition, seq from throughline.dead_letters where consumer = $1 and status = 'parked'",
                &[&self.projector().group],
            )
            .await
            .expect("letters");
        let chosen: Vec<_> = rows.iter().filter(|_| dice.below(3) == 0).collect();
        let ids: Vec<i64> = chosen.iter().map(|row| row.get(0)).collect();
        dead_letters::close(&self.owner, &ids, "discarded").await.expect("discards");
        for row in &chosen {
            self.model.letters.insert((row.get::<_, i32>(1) as usize, row.get(2)), Letter::Discarded);
        }
        self.took("discard", format!("{:?}", chosen.iter().map(|row| row.get::<_, i64>(2)).collect::<Vec<_>>()));
    }

    pub async fn pause(&mut self) {
        self.paused = !self.paused;
        self.driver = None;
        projection::state::set_paused(&self.owner, NAME, self.paused).await.expect("pauses");
        self.took(if self.paused { "pause" } else { "resume" }, String::new());
    }

    pub async fn switched_at(&self) -> String {
        let sql = "select version || ' ' || coalesce(switched_at::text, '') from throughline.projections";
        self.owner.query_one(sql, &[]).await.expect("the projection").get(0)
    }

    pub async fn rebuild(&mut self, dice: &mut Dice) {
        // No throw of the dice: nothing is otherwise after it.
        if self.taken.len().is_multiple_of(3) {
            self.spoil().await;
        }
        let before = self.switched_at().await;
        let limit =
            if dice.below(4) == 0 { Duration::from_micros(dice.below(120_000)) } else { Duration::from_secs(60) };
        let mode = if dice.below(4) == 0 { RebuildMode::Forced } else { RebuildMode::Checked };
        self.took("rebuild", format!("to version {} within {limit:?}", self.program));
        let (projector, progress) = (self.projector(), Arc::default());
        let outcome = tokio::time::timeout(limit, rebuild(&projector, &progress, mode)).await;
        self.settle(outcome.is_err()).await;
        let mut next = self.model.clone();
        let can = next.rebuild(self.program).is_ok();
        match outcome {
            Ok(Ok(report)) => {
                assert!(can, "it applied what fails");
                let compared = self.model.live.version == self.program;
                assert_eq!((report.switched, report.compared, report.unexplained), (true, compared, 0), "{report:?}");
                self.model = next;
            }
            Ok(Err(ProjectionLoopError::Event { .. })) => assert!(!can, "it failed without a reason"),
            Ok(Err(error)) => panic!("the rebuild failed: {error}"),
            Err(_) if self.switched_at().await != before => self.model = next,
            Err(_) => self.taken.push("  killed".into()),
        }
    }

    pub async fn rollback(&mut self, dice: &mut Dice) {
        // Which life of the topic a wish was of is the rollback's to say then, and nobody's.
        if self.committed.iter().flatten().any(|(_, metadata)| !metadata.starts_with("e=")) {
            return;
        }
        let before = self.switched_at().await;
        let limit =
            if dice.below(4) == 0 { Duration::from_micros(dice.below(40_000)) } else { Duration::from_secs(60) };
        self.took("rollback", format!("within {limit:?}"));
        let projector = self.projector();
        let outcome = tokio::time::timeout(limit, rollback(&projector, false)).await;
        self.settle(outcome.is_err()).await;
        match outcome {
            Ok(Ok(_)) => assert!(self.model.rollback(), "there was nothing to go back to"),
            Ok(Err(error)) => assert!(self.model.previous.is_none(), "the rollback failed: {error}"),
            Err(_) if self.switched_at().await != before => assert!(self.model.rollback()),
            Err(_) => self.taken.push("  killed".into()),
        }
    }

    pub fn deploy(&mut self, dice: &mut Dice) {
        self.driver = None;
        let previous = self.model.previous.as_ref().map_or(self.program, |previous| previous.version);
        let choices = [self.program + 1, self.model.live.version, self.model.live.version, previous];
        self.program = choices[dice.below(4) as usize];
        self.took("deploy", format!("version {}", self.program));
    }

    pub async fn drop_previous(&mut self) {
        let sql =
            "update throughline.projections set switched_at = now() - interval '2 h' where switched_at is not null";
        self.owner.execute(sql, &[]).await.expect("hours pass");
        let role = DatabaseRole::Maintenance;
        let client = store::connect::connect(&self.settings.database, &role).await.expect("connects");
        drop_previous(&client, 1).await.expect("a turn that only looks");
        let seen = "update throughline.unchanged set since = since - interval '2 h'";
        self.owner.execute(seen, &[]).await.expect("hours were seen to pass");
        let dropped = drop_previous(&client, 1).await.expect("a turn");
        assert_eq!(dropped.len(), usize::from(self.model.previous.take().is_some()));
        self.took("drop the previous generation", String::new());
    }
}
