//! What the walk walks on: facts, a codec, a projection of two tables, a topic that is only a list.
//!
//! The projection keeps a chain by key, which tells what is missing, doubled or out of order, and sums over
//! keys. Two switches break it: a handler that refuses some events, and a codec that does not know some.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use throughline::engine::{
    Applied, Encoded, EventCodec, Projection, ProjectionError, ReadModel, Recorded, UndecodableEvent,
};
use throughline::kafka::{Record, RecordHeaders, TopicPartition, headers};
use tokio_postgres::Transaction;
use uuid::Uuid;

pub const NAME: &str = "walk";
/// The chain is kept below it.
pub const MODULUS: i64 = 1_000_003;

/// What an event is to a projection that is not mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// The handler refuses it while it is broken.
    Poison,
    /// The codec does not know it while it is old.
    Foreign,
}

/// An event of the store.
#[derive(Debug, Clone)]
pub struct Fact {
    pub partition: i32,
    pub seq: i64,
    pub key: Uuid,
    pub version: i64,
    pub value: i64,
    pub kind: Kind,
}

impl Fact {
    pub fn payload(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Plain => 0,
            Kind::Poison => 1,
            Kind::Foreign => 2,
        };
        [&[kind], self.value.to_be_bytes().as_slice()].concat()
    }
}

/// An event as the projection gets it.
#[derive(Debug)]
pub struct Noted {
    value: i64,
    is_poison: bool,
}

pub struct Bytes {
    pub old: Arc<AtomicBool>,
}

impl EventCodec for Bytes {
    type Event = Noted;

    fn encode(&self, _: &Noted) -> Result<Encoded, UndecodableEvent> {
        Err(UndecodableEvent("nobody asks for it".into()))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Noted, UndecodableEvent> {
        let (kind, value) = bytes.split_first().ok_or_else(|| UndecodableEvent("no bytes".into()))?;
        if *kind == 2 && self.old.load(Ordering::Acquire) {
            return Err(UndecodableEvent("not known yet".into()));
        }
        let value = value.try_into().map_err(|_| UndecodableEvent("not eight bytes".into()))?;
        Ok(Noted { value: i64::from_be_bytes(value), is_poison: *kind == 1 })
    }
}

/// Its tables have the same shape in every version, and other values.
pub struct Chains {
    pub version: i32,
    pub broken: Arc<AtomicBool>,
}

impl Projection for Chains {
    type Event = Noted;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: NAME,
            version: self.version,
            ddl: "create table walk_chain (partition int not null, key uuid primary key, n bigint not null,
                                           last bigint not null, chain bigint not null);
                  create table walk_sum (partition int not null, bucket bigint not null, n bigint not null,
                                         total bigint not null, primary key (partition, bucket));
                  create view walk_sums as
                      select bucket, sum(n)::bigint as n, sum(total)::bigint as total from walk_sum group by bucket",
            indexes: &["create index walk_chain_partition on walk_chain (partition)"],
            tables: &["walk_chain", "walk_sum"],
            views: &["walk_sums"],
        }
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<Noted>]) -> Applied<'a> {
        Box::pin(async move {
            if self.broken.load(Ordering::Acquire) && batch.iter().any(|event| event.event.is_poison) {
                return Err(ProjectionError::Event("poison".into()));
            }
            self.chains(tx, batch).await?;
            self.sums(tx, batch).await
        })
    }
}

impl Chains {
    async fn chains(&self, tx: &Transaction<'_>, batch: &[Recorded<Noted>]) -> Result<(), ProjectionError> {
        let keys: Vec<Uuid> = batch.iter().map(|event| event.stream_id).collect();
        let rows = tx.query("select key, n, chain from walk_chain where key = any($1)", &[&keys]).await?;
        let mut found: HashMap<Uuid, (i64, i64)> =
            rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
        let mut rows: BTreeMap<Uuid, (i32, i64, i64, i64)> = BTreeMap::new();
        for event in batch {
            let (n, chain) = found.entry(event.stream_id).or_default();
            *n += 1;
            *chain = (*chain * 31 + event.event.value * i64::from(self.version)).rem_euclid(MODULUS);
            rows.insert(event.stream_id, (event.position.partition, *n, event.position.seq, *chain));
        }
        tx.execute(
            "insert into walk_chain (partition, key, n, last, chain)
             select * from unnest($1::int[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[])
             on conflict (key) do update set n = excluded.n, last = excluded.last, chain = excluded.chain",
            &[
                &rows.values().map(|row| row.0).collect::<Vec<_>>(),
                &rows.keys().copied().collect::<Vec<_>>(),
                &rows.values().map(|row| row.1).collect::<Vec<_>>(),
                &rows.values().map(|row| row.2).collect::<Vec<_>>(),
                &rows.values().map(|row| row.3).collect::<Vec<_>>(),
            ],
        )
        .await?;
        Ok(())
    }

    async fn sums(&self, tx: &Transaction<'_>, batch: &[Recorded<Noted>]) -> Result<(), ProjectionError> {
        let mut sums: BTreeMap<(i32, i64), (i64, i64)> = BTreeMap::new();
        for event in batch {
            let (n, total) = sums.entry((event.position.partition, event.event.value % 3)).or_default();
            *n += 1;
            *total += event.event.value * i64::from(self.version);
        }
        tx.execute(
            "insert into walk_sum as s (partition, bucket, n, total)
             select * from unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[])
             on conflict (partition, bucket) do update set n = s.n + excluded.n, total = s.total + excluded.total",
            &[
                &sums.keys().map(|key| key.0).collect::<Vec<_>>(),
                &sums.keys().map(|key| key.1).collect::<Vec<_>>(),
                &sums.values().map(|sum| sum.0).collect::<Vec<_>>(),
                &sums.values().map(|sum| sum.1).collect::<Vec<_>>(),
            ],
        )
        .await?;
        Ok(())
    }
}

/// One partition of the topic: the seqs of its records, from the first offset kept.
#[derive(Debug, Clone)]
pub struct PartitionLog {
    pub first: i64,
    pub records: Vec<i64>,
    /// What the relay writes next.
    pub next_seq: i64,
}

impl PartitionLog {
    pub fn begun_at(next_seq: i64) -> Self {
        Self { first: 0, records: Vec::new(), next_seq }
    }

    pub fn kept(&self) -> (i64, i64) {
        (self.first, self.first + self.records.len() as i64)
    }

    /// What the topic tells of the last event before `offset`, as a look at its records would.
    pub fn seq_before(&self, offset: i64) -> Option<i64> {
        match self.records.get(usize::try_from(offset - self.first).unwrap_or_default()) {
            Some(seq) => Some(seq - 1),
            None => self.records.last().copied(),
        }
    }

    /// Offsets and seqs from `offset` on.
    pub fn from(&self, offset: i64) -> Vec<(i64, i64)> {
        let skipped = usize::try_from(offset - self.first).unwrap_or_default();
        (self.first..).zip(self.records.iter().copied()).skip(skipped).collect()
    }

    /// Retention drops what is before `offset`.
    pub fn expire(&mut self, offset: i64) {
        self.records.drain(..usize::try_from(offset - self.first).unwrap_or_default());
        self.first = offset;
    }
}

/// The record of a fact, as the relay writes it.
pub fn record(topic: &str, fact: &Fact, offset: i64) -> Record {
    let id = Uuid::from_u128(((fact.partition as u128) << 64) | fact.seq as u128).to_string();
    let all = [
        (headers::SEQ, fact.seq.to_string()),
        (headers::CE_SUBJECT, fact.key.to_string()),
        (headers::CE_ID, id.clone()),
        (headers::COMMAND_ID, id),
        (headers::CORRELATION_ID, "walk".to_owned()),
        (headers::STREAM_VERSION, fact.version.to_string()),
        (headers::CE_TIME, "2026-01-01T00:00:00Z".to_owned()),
    ];
    let source = TopicPartition { topic: topic.into(), partition: fact.partition };
    let mut headers = RecordHeaders::default();
    all.iter().for_each(|(name, value)| headers.push(name.as_bytes(), Some(value.as_bytes())));
    let key = fact.key.to_string().into_bytes();
    Record::new(source, offset, Some(key), Some(fact.payload())).with_headers(Some(headers))
}
