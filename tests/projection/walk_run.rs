//! The member of the walk: it claims, applies, is killed, and is compared with the model.

use std::collections::BTreeSet;
use std::time::Duration;

use throughline::kafka::Record;
use throughline::projection::{Driver, ProjectionLoopError, TopicView};

use super::scenario::Dice;
use super::walk_model::{Found, Generation};
use super::walk_steps::{PARTITIONS, Walk};
use super::walk_world::{Noted, record};

/// A partition that stands is claimed anew, so often.
const TRIES: usize = 3;

/// What a member did, or was about to do when it was killed.
enum Act {
    Claim {
        p: usize,
        found: Found,
        epoch: i64,
    },
    /// Seqs of the records that came under a valid claim, by partition.
    Apply(Vec<Vec<i64>>),
}

impl Walk {
    /// The member goes on as far as it may, or until it is killed.
    pub async fn run(&mut self, dice: &mut Dice, kill: Option<Duration>) {
        self.took(if kill.is_some() { "run and kill" } else { "run" }, format!("{kill:?}"));
        let mut driver = self.driver.take().unwrap_or_else(|| Driver::new(self.projector()));
        let may = !self.paused && self.model.live.version == self.program;
        assert_eq!(driver.look().await.expect("a look"), may);
        if !may {
            return;
        }
        let mut acts = Vec::new();
        let mut group = (std::mem::take(&mut self.committed), std::mem::take(&mut self.carried_out));
        let work = self.member(&mut driver, &mut acts, &mut group, dice);
        let killed = tokio::time::timeout(kill.unwrap_or(Duration::from_secs(60)), work).await.is_err();
        (self.committed, self.carried_out) = group;
        assert!(kill.is_some() || !killed, "it takes a minute");
        if killed {
            drop(driver);
        } else {
            self.driver = Some(driver);
        }
        self.settle(killed).await;
        let rows = self.rows().await;
        for (act, outcome) in acts {
            match (act, outcome) {
                (Act::Claim { p, found, epoch }, outcome) => {
                    // Killed at it: whether it was granted, its epoch tells.
                    if outcome.unwrap_or(rows[p].epoch > epoch) {
                        self.carried_out[p] |= found.wish.is_some();
                        self.model.claim(p, &self.logs[p], &found).expect("it was granted");
                    } else if outcome.is_some() {
                        assert!(self.model.clone().claim(p, &self.logs[p], &found).is_err(), "it was refused");
                    }
                }
                (Act::Apply(seqs), outcome) => {
                    for (p, seqs) in seqs.into_iter().enumerate() {
                        let limit = if outcome.is_some() { i64::MAX } else { rows[p].seq };
                        for seq in seqs.into_iter().filter(|seq| *seq <= limit) {
                            if self.model.take(p, seq).is_err() {
                                break;
                            }
                        }
                    }
                }
            }
        }
    }

    async fn member(
        &self,
        driver: &mut Driver<Noted>,
        acts: &mut Vec<(Act, Option<bool>)>,
        (committed, carried_out): &mut (Vec<Option<(i64, String)>>, Vec<bool>),
        dice: &mut Dice,
    ) {
        let mut tries = [0; PARTITIONS];
        loop {
            for (p, row) in self.rows().await.into_iter().enumerate() {
                if driver.held(p as i32).is_some() || tries[p] == TRIES {
                    continue;
                }
                tries[p] += 1;
                if let Some((_, metadata)) = &mut committed[p]
                    && let Some(name) = Driver::<Noted>::name_for(metadata, row.epoch)
                {
                    *metadata = name;
                }
                let (log, topic) = (&self.logs[p], self.topic());
                let is_anew = row.topic.is_some_and(|id| id != topic) || row.next_offset > log.kept().1;
                let wish = committed[p].as_ref().filter(|(_, name)| !name.starts_with("e=") && !carried_out[p]);
                let wish = wish.map(|(offset, _)| *offset);
                let found = Found { next_offset: row.next_offset, is_anew, wish, published: self.published[p] };
                let seq_before = |offset| Ok(log.seq_before(offset));
                let view = TopicView { kept: log.kept(), topic_id: Some(topic), seq_before: &seq_before };
                acts.push((Act::Claim { p, found, epoch: row.epoch }, None));
                let outcome = driver.claim(p as i32, &committed[p], &view).await;
                acts.last_mut().expect("just pushed").1 = Some(outcome.is_ok());
                match outcome {
                    Ok(claim) => {
                        carried_out[p] |= wish.is_some();
                        // Sometimes Kafka never hears of it.
                        if dice.below(2) == 0 {
                            committed[p] = Some((claim.next_offset, Driver::<Noted>::metadata(&claim)));
                        }
                    }
                    Err(ProjectionLoopError::Event { .. }) => {}
                    Err(error) => panic!("the claim of {p} failed: {error}"),
                }
            }
            let mut given_back = false;
            let (seqs, records) = self.fetch(driver, &mut given_back).await;
            if records.is_empty() && !given_back {
                return;
            }
            acts.push((Act::Apply(seqs), None));
            driver.apply(records).await;
            acts.last_mut().expect("just pushed").1 = Some(true);
        }
    }

    /// What the topic holds from the claims on. One whose offset is out of range is given back.
    async fn fetch(&self, driver: &Driver<Noted>, given_back: &mut bool) -> (Vec<Vec<i64>>, Vec<Record>) {
        let rows = self.rows().await;
        let (mut seqs, mut records) = (vec![Vec::new(); PARTITIONS], Vec::new());
        for p in 0..PARTITIONS {
            let Some(claim) = driver.held(p as i32) else { continue };
            let (first, end) = self.logs[p].kept();
            if !(first..=end).contains(&claim.next_offset) {
                driver.give_back(p as i32);
                *given_back = true;
                continue;
            }
            for (offset, seq) in self.logs[p].from(claim.next_offset) {
                records.push(record(&self.names.events(), &self.model.facts[p][seq as usize - 1], offset));
                if claim.epoch == rows[p].epoch {
                    seqs[p].push(seq);
                }
            }
        }
        // As they come: of both partitions in turn.
        records.sort_by_key(|record| record.offset);
        (seqs, records)
    }

    /// Where the database and the model differ; none where they do not.
    pub async fn difference(&self) -> Option<String> {
        let mut faults = Vec::new();
        for (p, row) in self.rows().await.iter().enumerate() {
            let seq = self.model.live.parts[p].seq;
            if row.seq != seq {
                faults.push(format!("partition {p} stands at {}, expected {seq}", row.seq));
            }
        }
        faults.extend(self.generation("read", Some(&self.model.live)).await);
        faults.extend(self.generation("read_previous", self.model.previous.as_ref()).await);
        let rows = self
            .owner
            .query(
                "select concat_ws(' ', source_partition, seq, status) from throughline.dead_letters where consumer = $1",
                &[&self.projector().group],
            )
            .await
            .expect("letters");
        let expected = self.model.letters.iter().map(|((p, seq), letter)| format!("{p} {seq} {}", letter.name()));
        faults.extend(told("letters", &expected.collect(), &rows.iter().map(|row| row.get(0)).collect()));
        if rows.len() != self.model.letters.len() {
            faults.push(format!("{} letters, expected {}", rows.len(), self.model.letters.len()));
        }
        (!faults.is_empty()).then(|| faults.join("\n"))
    }

    async fn generation(&self, schema: &str, expected: Option<&Generation>) -> Option<String> {
        let expected = self.model.rows(expected?);
        let sql = format!(
            "select concat_ws(' ', 'chain', partition, key, n, last, chain) from {schema}.walk_chain
             union all select concat_ws(' ', 'sum', partition, bucket, n, total) from {schema}.walk_sum"
        );
        let rows = self.owner.query(&sql, &[]).await.expect("rows");
        told(schema, &expected, &rows.iter().map(|row| row.get(0)).collect())
    }
}

fn told(what: &str, expected: &BTreeSet<String>, found: &BTreeSet<String>) -> Option<String> {
    let missing: Vec<_> = expected.difference(found).take(4).collect();
    let extra: Vec<_> = found.difference(expected).take(4).collect();
    (!missing.is_empty() || !extra.is_empty()).then(|| format!("{what}: missing {missing:#?}, unexpected {extra:#?}"))
}
