//! Whether a process may run, how far it is, and what operators see of it.
//!
//! `throughline.process_managers` is authoritative: installed, paused or not.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::Managed;
use super::apply::Applier;
use crate::engine::ProcessManager;
use crate::settings::TopicSettings;
use crate::store::StoreError;

/// Whether the loop may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// Why not, and what to do.
    Waiting(String),
}

/// The consumer group of a process: `topics.prefix`, `process-` and its name.
pub fn group(settings: &TopicSettings, process: &str) -> String {
    format!("{}process-{process}", settings.prefix)
}

/// Makes the process known to the store. Whether it was not.
pub async fn install(client: &impl GenericClient, process: &str) -> Result<bool, StoreError> {
    let made = client
        .execute("insert into throughline.process_managers (name) values ($1) on conflict do nothing", &[&process])
        .await
        .map_err(StoreError::at("register a process"))?;
    Ok(made > 0)
}

/// Looks whether the process may run.
pub(super) async fn readiness<P: ProcessManager>(managed: &Managed<P>) -> Result<Readiness, StoreError> {
    judge(&*managed.connect().await?, P::NAME).await
}

async fn judge(client: &impl GenericClient, process: &str) -> Result<Readiness, StoreError> {
    let row = client
        .query_opt("select paused from throughline.process_managers where name = $1", &[&process])
        .await
        .map_err(StoreError::at("look at the state of a process"))?;
    Ok(match row.map(|row| row.get(0)) {
        None => Readiness::Waiting("it is not installed; run `throughline db apply`".into()),
        Some(true) => Readiness::Waiting(format!("it is paused; run `throughline process resume {process}`")),
        Some(false) => Readiness::Ready,
    })
}

/// The loop's regular look: may it go on, and are its claims still the last ones.
pub(super) async fn sample<P: ProcessManager>(
    client: &impl GenericClient,
    applier: &Applier<P>,
) -> Result<Readiness, StoreError> {
    // An idle loop loses no compare-and-set: a reset would go unnoticed.
    let rows = client
        .query("select topic, partition, epoch from throughline.process_checkpoints where process = $1", &[&P::NAME])
        .await
        .map_err(StoreError::at("read the checkpoints of a process"))?;
    let claims = applier.mailbox.claims();
    for row in &rows {
        let (topic, partition, epoch): (&str, i32, i64) = (row.get(0), row.get(1), row.get(2));
        let ours = claims.iter().find(|(source, _)| &*source.topic == topic && source.partition == partition);
        if let Some((source, claim)) = ours.filter(|(_, claim)| claim.epoch < epoch) {
            applier.consumer.reclaim(source, claim.epoch);
        }
    }
    judge(client, P::NAME).await
}

/// Stops or starts a process. Whether that changed anything.
pub async fn set_paused(client: &impl GenericClient, process: &str, paused: bool) -> Result<bool, StoreError> {
    let changed = client
        .execute(
            "update throughline.process_managers set paused = $2, updated_at = now() where name = $1 and paused <> $2",
            &[&process, &paused],
        )
        .await
        .map_err(StoreError::at("pause or resume a process"))?;
    Ok(changed > 0)
}

/// One process, as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub name: String,
    /// `running`, `paused`, `not installed`.
    pub state: &'static str,
    /// Records committed and not handled, of all that it reads.
    pub lag_events: i64,
    pub instances: i64,
    /// Deadlines that are set.
    pub deadlines: i64,
    /// Commands committed and not acknowledged by Kafka.
    pub unsent: i64,
    /// Open dead letters.
    pub parked: i64,
    /// Instances with parked inputs, or a deadline that was put aside.
    pub stuck: Vec<Uuid>,
    pub group: String,
    pub partitions: Vec<PartitionLag>,
}

/// How far one partition is behind the store.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionLag {
    pub topic: String,
    pub partition: i32,
    pub next_offset: i64,
    pub seq: i64,
    pub lag_events: i64,
    /// Age of the oldest of these; none where it is an outcome that was published long ago.
    pub oldest_seconds: Option<f64>,
    /// Since it last moved; none where it never did.
    pub idle_seconds: Option<f64>,
}

/// Stuck instances that are named, at most.
const STUCK_MAX: i64 = 100;

/// Where a process stands.
pub(super) async fn status<P: ProcessManager>(
    client: &impl GenericClient,
    managed: &Managed<P>,
) -> Result<Status, StoreError> {
    let topics: Vec<String> = managed.feeds.keys().cloned().collect();
    let partitions = lags(client, P::NAME, &topics).await?;
    let counts = client
        .query_one(
            "select (select paused from throughline.process_managers where name = $1),
                    (select count(*) from throughline.process_instances where process = $1),
                    (select count(*) from throughline.process_deadlines where process = $1),
                    (select count(*) from throughline.process_commands where process = $1 and sent_at is null),
                    (select count(*) from throughline.dead_letters where consumer = $2 and status = 'parked')",
            &[&P::NAME, &managed.group],
        )
        .await
        .map_err(StoreError::at("count what a process has"))?;
    let stuck = client
        .query(
            "select instance from throughline.dead_letters
             where consumer = $2 and status = 'parked' and instance is not null
             union select instance from throughline.process_deadlines where process = $1 and failed is not null
             order by 1 limit $3",
            &[&P::NAME, &managed.group, &STUCK_MAX],
        )
        .await
        .map_err(StoreError::at("look for stuck instances"))?;
    Ok(Status {
        name: P::NAME.to_owned(),
        state: match counts.get(0) {
            None => "not installed",
            Some(true) => "paused",
            Some(false) => "running",
        },
        lag_events: partitions.iter().map(|one| one.lag_events).sum(),
        instances: counts.get(1),
        deadlines: counts.get(2),
        unsent: counts.get(3),
        parked: counts.get(4),
        stuck: stuck.iter().map(|row| row.get(0)).collect(),
        group: managed.group.clone(),
        partitions,
    })
}

/// The lag of every partition of the topics that it reads.
pub async fn lags(
    client: &impl GenericClient,
    process: &str,
    topics: &[String],
) -> Result<Vec<PartitionLag>, StoreError> {
    let rows = client
        .query(
            "select t.name, k.partition, coalesce(c.next_offset, 0), coalesce(c.seq, 0), k.last_seq - coalesce(c.seq, 0),
                    extract(epoch from clock_timestamp() - e.recorded_at)::float8,
                    extract(epoch from clock_timestamp() - c.updated_at)::float8
             from throughline.counters k
             join throughline.topics t on t.id = k.topic and t.name = any($2)
             left join throughline.process_checkpoints c
                  on c.process = $1 and c.topic = t.name and c.partition = k.partition
             left join lateral (
                  select recorded_at from throughline.events
                  where partition = k.partition and topic = k.topic and seq > coalesce(c.seq, 0)
                  order by seq limit 1) e on true
             order by 1, 2",
            &[&process, &topics],
        )
        .await
        .map_err(StoreError::at("read the lag of a process"))?;
    let lag = |row: &tokio_postgres::Row| PartitionLag {
        topic: row.get(0),
        partition: row.get(1),
        next_offset: row.get(2),
        seq: row.get(3),
        lag_events: row.get(4),
        oldest_seconds: row.get(5),
        idle_seconds: row.get(6),
    };
    Ok(rows.iter().map(lag).collect())
}

/// One instance, whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    pub instance: Uuid,
    pub state: Value,
    pub begun_at: Timestamp,
    pub updated_at: Timestamp,
    /// What it was told, in order.
    pub inputs: Vec<Value>,
    pub deadlines: Vec<Value>,
    pub commands: Vec<Value>,
}

/// One instance; none where it has not begun.
pub(super) async fn instance(
    client: &impl GenericClient,
    process: &str,
    instance: Uuid,
) -> Result<Option<InstanceView>, StoreError> {
    let error = || StoreError::at("read an instance of a process");
    let of = [&process as &(dyn tokio_postgres::types::ToSql + Sync), &instance];
    let head = "select state::text, begun_at, updated_at from throughline.process_instances
                where process = $1 and instance = $2";
    let Some(head) = client.query_opt(head, &of).await.map_err(error())? else { return Ok(None) };
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let inputs = client
        .query(
            "select number, cause, handled_at, input::text from throughline.process_inputs
             where process = $1 and instance = $2 order by number",
            &of,
        )
        .await
        .map_err(error())?;
    let deadlines = client
        .query(
            "select name, extract(epoch from due - k.elapsed)::float8, failed
             from throughline.process_deadlines, throughline.clock k where process = $1 and instance = $2 order by 1",
            &of,
        )
        .await
        .map_err(error())?;
    let commands = client
        .query(
            "select context, command, stream_id, command_id, cause, created_at, sent_at from throughline.process_commands
             where process = $1 and instance = $2 order by number",
            &of,
        )
        .await
        .map_err(error())?;
    Ok(Some(InstanceView {
        instance,
        state: value(head.get(0)),
        begun_at: head.get(1),
        updated_at: head.get(2),
        inputs: inputs
            .iter()
            .map(|row| {
                json!({"number": row.get::<_, i64>(0), "cause": row.get::<_, Uuid>(1),
                       "handledAt": row.get::<_, Timestamp>(2).to_string(), "input": value(row.get(3))})
            })
            .collect(),
        deadlines: deadlines
            .iter()
            .map(|row| {
                json!({"name": row.get::<_, &str>(0), "inSeconds": row.get::<_, f64>(1),
                       "failed": row.get::<_, Option<&str>>(2)})
            })
            .collect(),
        commands: commands
            .iter()
            .map(|row| {
                json!({"context": row.get::<_, &str>(0), "command": row.get::<_, &str>(1),
                       "streamId": row.get::<_, Uuid>(2), "commandId": row.get::<_, Uuid>(3), "cause": row.get::<_, Uuid>(4),
                       "createdAt": row.get::<_, Timestamp>(5).to_string(),
                       "sentAt": row.get::<_, Option<Timestamp>>(6).map(|at| at.to_string())})
            })
            .collect(),
    }))
}
