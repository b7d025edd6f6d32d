//! The steps of the walk: each does something to the projection and tells the model. Those of an operator are in
//! `walk_operator`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use throughline::kafka::topics::TopicNames;
use throughline::projection::{self, Driver, Projector};
use throughline::settings::{FailurePolicy, Settings};
use throughline::store::{self, DatabaseRole};
use tokio_postgres::Client;
use uuid::Uuid;

use super::scenario::Dice;
use super::walk_model::Model;
use super::walk_world::{Bytes, Chains, Fact, Kind, NAME, Noted, PartitionLog};

pub const PARTITIONS: usize = 2;
const KEYS: u64 = 6;
/// Kinds of steps that a walk of many seeds takes.
pub const KINDS: usize = 23;

pub struct Walk {
    pub taken: Vec<String>,
    pub kinds: BTreeSet<&'static str>,
    pub settings: Settings,
    pub owner: Client,
    pub names: TopicNames,
    pub topic_id: i16,
    pub model: Model,
    pub logs: Vec<PartitionLog>,
    pub life: u32,
    pub published: Vec<i64>,
    /// What the group's commits say, by partition.
    pub committed: Vec<Option<(i64, String)>>,
    /// Whether the wish that a commit is was carried out.
    pub carried_out: Vec<bool>,
    pub driver: Option<Driver<Noted>>,
    pub paused: bool,
    pub program: i32,
    pub broken: Arc<AtomicBool>,
    pub old: Arc<AtomicBool>,
}

/// A row of `throughline.checkpoints`.
pub struct Row {
    pub next_offset: i64,
    pub seq: i64,
    pub epoch: i64,
    pub topic: Option<String>,
}

impl Walk {
    pub async fn new() -> Self {
        let url = std::env::var("DATABASE_URL").expect("DATABASE_URL, for example by `throughline dev env`");
        let mut settings = Settings::default();
        settings.database.url = url.as_str().into();
        let database = format!("walk_{}", &Uuid::new_v4().simple().to_string()[..12]);
        let admin = store::connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
        admin.batch_execute(&format!("create database {database}")).await.expect("creates the database");
        // Nothing here outlives the test.
        let hasty = format!("alter database {database} set synchronous_commit = off");
        admin.batch_execute(&hasty).await.expect("sets the database");
        let (head, _) = url.rsplit_once('/').expect("the URL names a database");
        settings.database.url = format!("{head}/{database}").as_str().into();
        settings.projection.retries_max = 0;
        settings.projection.retry_wait_ms = 1;
        settings.projection.batch_events_max = 7;
        settings.projection.rebuild_chunk_events = 5;
        let mut owner = store::connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
        store::migrate::apply(&mut owner).await.expect("migrates");
        let names = TopicNames::new("walk", &settings.topics);
        Self {
            taken: Vec::new(),
            kinds: BTreeSet::new(),
            settings,
            owner,
            names,
            topic_id: 0,
            model: Model::new(PARTITIONS),
            logs: Vec::new(),
            life: 0,
            published: Vec::new(),
            committed: Vec::new(),
            carried_out: Vec::new(),
            driver: None,
            paused: false,
            program: 1,
            broken: Arc::default(),
            old: Arc::default(),
        }
    }

    /// A projection without a past, on a topic of its own.
    pub async fn begin(&mut self, seed: u64) {
        self.driver = None;
        self.settings.topics.prefix = format!("walk-{seed}-");
        self.names = TopicNames::new("walk", &self.settings.topics);
        let sql = "drop view if exists read.walk_sums, read_next.walk_sums, read_previous.walk_sums;
                   drop table if exists read.walk_chain, read.walk_sum, read_next.walk_chain, read_next.walk_sum,
                                        read_previous.walk_chain, read_previous.walk_sum;
                   delete from throughline.checkpoints; delete from throughline.projections;
                   delete from throughline.projection_resets";
        self.owner.batch_execute(sql).await.expect("begins anew");
        (self.model, self.program, self.paused, self.life) = (Model::new(PARTITIONS), 1, false, 1);
        (self.broken, self.old) = (Arc::default(), Arc::default());
        self.logs = vec![PartitionLog::begun_at(1); PARTITIONS];
        (self.published, self.committed) = (vec![0; PARTITIONS], vec![None; PARTITIONS]);
        self.carried_out = vec![false; PARTITIONS];
        let topic = self.names.events();
        let destination = store::destinations::register(&mut self.owner, &topic, PARTITIONS as i32);
        self.topic_id = destination.await.expect("registers").id;
        let model = throughline::engine::Projection::read_model(&self.chains());
        projection::install(&mut self.owner, model).await.expect("installs");
        self.taken.clear();
    }

    fn chains(&self) -> Chains {
        Chains { version: self.program, broken: self.broken.clone() }
    }

    pub fn projector(&self) -> Projector<Noted> {
        let mut settings = self.settings.clone();
        settings.projection.on_failure = if self.model.parks { FailurePolicy::Park } else { FailurePolicy::Halt };
        let codec = Arc::new(Bytes { old: self.old.clone() });
        Projector::new(Arc::new(settings), &self.names, Arc::new(self.chains()), codec)
    }

    pub fn took(&mut self, kind: &'static str, what: String) {
        self.kinds.insert(kind);
        self.taken.push(format!("{kind} {what}"));
    }

    /// One step, and mostly a look of the member at the topic after it.
    pub async fn step(&mut self, dice: &mut Dice) {
        match dice.below(36) {
            0..=7 => self.produce(dice).await,
            8 | 9 => {
                let broken = !self.model.broken;
                self.model.broken = broken;
                self.broken.store(broken, Ordering::Release);
                self.took(if broken { "break" } else { "mend" }, String::new());
            }
            10 => {
                let old = !self.model.old;
                self.model.old = old;
                self.old.store(old, Ordering::Release);
                self.took(if old { "forget a type" } else { "learn the type" }, String::new());
            }
            11 => {
                self.driver = None;
                self.model.parks = !self.model.parks;
                self.took(if self.model.parks { "policy park" } else { "policy halt" }, String::new());
            }
            12..=16 => self.reset(dice).await,
            17..=19 => self.replay(dice).await,
            20 | 21 => self.discard(dice).await,
            22 => self.pause().await,
            23..=25 => self.rebuild(dice).await,
            26..=28 => self.rollback(dice).await,
            29 => {
                self.driver = None;
                self.took("restart", String::new());
            }
            30 | 31 => self.deploy(dice),
            32 => self.drop_previous().await,
            33 | 34 => self.expire(dice),
            _ => self.make_anew(dice).await,
        }
        if dice.below(5) > 0 {
            let kill = (dice.below(6) == 0).then(|| Duration::from_micros(dice.below(60_000)));
            self.run(dice, kill).await;
        }
    }

    async fn produce(&mut self, dice: &mut Dice) {
        let count = 1 + dice.below(12);
        for _ in 0..count {
            let n = dice.below(KEYS);
            let p = (n % PARTITIONS as u64) as usize;
            let facts = &mut self.model.facts[p];
            let key = Uuid::from_u128(1 + u128::from(n));
            let kind = match dice.below(12) {
                0 | 1 => Kind::Poison,
                2 => Kind::Foreign,
                _ => Kind::Plain,
            };
            facts.push(Fact {
                partition: p as i32,
                seq: facts.len() as i64 + 1,
                key,
                version: facts.iter().filter(|fact| fact.key == key).count() as i64 + 1,
                value: dice.below(1_000) as i64,
                kind,
            });
            let fact = facts.last().expect("just pushed").clone();
            self.append(&fact).await;
        }
        self.took("produce", count.to_string());
        // Sometimes the relay is late, sometimes it repeats itself.
        let most = if dice.below(4) == 0 { dice.below(4) } else { u64::MAX };
        self.relay(dice, most).await;
    }

    async fn append(&self, fact: &Fact) {
        let id = Uuid::new_v4();
        self.owner
            .execute(
                "insert into throughline.events (topic, partition, seq, stream_id, version, event_id, type,
                        schema_version, command_id, correlation_id, recorded_at, payload)
                 values ($1, $2, $3, $4, $5, $6, 'Noted', 1, $6, 'walk', now(), $7)",
                &[&self.topic_id, &fact.partition, &fact.seq, &fact.key, &self.version_of(fact), &id, &fact.payload()],
            )
            .await
            .expect("appends");
        self.owner
            .execute(
                "update throughline.counters set last_seq = $3 where topic = $1 and partition = $2",
                &[&self.topic_id, &fact.partition, &fact.seq],
            )
            .await
            .expect("counts");
    }

    /// Streams are unique in the store, and seeds share it.
    fn version_of(&self, fact: &Fact) -> i64 {
        i64::from(self.topic_id) * 1_000_000 + fact.version
    }

    async fn relay(&mut self, dice: &mut Dice, most: u64) {
        for p in 0..PARTITIONS {
            let log = &mut self.logs[p];
            let mut left = most;
            while log.next_seq <= self.model.facts[p].len() as i64 && left > 0 {
                log.records.push(log.next_seq);
                log.next_seq += 1;
                left -= 1;
                if dice.below(20) == 0 {
                    let back = log.records.iter().rev().take(3).copied().min().expect("one was pushed");
                    log.records.extend(back..log.next_seq);
                }
            }
            self.published[p] = self.published[p].max(log.next_seq - 1);
            self.owner
                .execute(
                    "update throughline.relay_leases set published = $3 where topic = $1 and partition = $2",
                    &[&self.topic_id, &(p as i32), &self.published[p]],
                )
                .await
                .expect("marks");
        }
    }

    pub async fn rows(&self) -> Vec<Row> {
        let rows = self
            .owner
            .query(
                "select partition, next_offset, seq, epoch, topic_id from throughline.checkpoints
                 where projection = $1 and generation = 'read'",
                &[&NAME],
            )
            .await
            .expect("checkpoints");
        let row = |p: usize| match rows.iter().find(|row| row.get::<_, i32>(0) == p as i32) {
            Some(row) => Row { next_offset: row.get(1), seq: row.get(2), epoch: row.get(3), topic: row.get(4) },
            None => Row { next_offset: 0, seq: 0, epoch: 0, topic: None },
        };
        (0..PARTITIONS).map(row).collect()
    }

    pub fn topic(&self) -> String {
        format!("life {}", self.life)
    }

    fn expire(&mut self, dice: &mut Dice) {
        for p in 0..PARTITIONS {
            let (first, end) = self.logs[p].kept();
            let offset = first + dice.below((end - first + 1) as u64) as i64;
            // All of it, now and then.
            let offset = if dice.below(3) == 0 { end } else { offset };
            self.logs[p].expire(offset);
        }
        self.took("expire", format!("{:?}", self.logs.iter().map(|log| log.first).collect::<Vec<_>>()));
    }

    async fn make_anew(&mut self, dice: &mut Dice) {
        self.life += 1;
        // Kafka drops the group's commits with the topic.
        self.committed = vec![None; PARTITIONS];
        let with_history = dice.below(3) > 0;
        for p in 0..PARTITIONS {
            self.logs[p] = PartitionLog::begun_at(if with_history { 1 } else { self.published[p] + 1 });
        }
        self.took(if with_history { "topic anew, republished" } else { "topic anew, loss accepted" }, String::new());
        let most = if dice.below(2) == 0 { dice.below(10) } else { u64::MAX };
        self.relay(dice, most).await;
    }

    /// Nothing of what was killed is at work any more.
    pub async fn settle(&mut self, killed: bool) {
        if !killed {
            return;
        }
        self.driver = None;
        let sql = "select exists (select from pg_stat_activity where datname = current_database()
                                  and pid <> pg_backend_pid() and backend_type = 'client backend')";
        while self.owner.query_one(sql, &[]).await.expect("activity").get(0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
