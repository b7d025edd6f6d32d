//! What a projection is allowed to do, how far it is, and what operators see of it.
//!
//! `throughline.projections` is authoritative: installed in which shape, paused or not.

use jiff::Timestamp;
use tokio_postgres::GenericClient;

use super::apply::Applier;
use super::{LIVE, ProjectionLoopError, Projector, checkpoint, park};
use crate::store::{DatabaseRole, StoreError};

/// Whether the loop may consume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// Why not, and what to do.
    Waiting(String),
}

/// Looks whether the projection may run.
pub(super) async fn readiness<E: Send + Sync>(projector: &Projector<E>) -> Result<Readiness, StoreError> {
    let client = projector.connect(LIVE).await?;
    judge(&*client, projector).await
}

async fn judge<E: Send + Sync>(client: &impl GenericClient, projector: &Projector<E>) -> Result<Readiness, StoreError> {
    let row = client
        .query_opt("select version, paused from throughline.projections where name = $1", &[&projector.name()])
        .await
        .map_err(StoreError::at("look at the projection's state"))?;
    let Some(row) = row else {
        return Ok(Readiness::Waiting("it is not installed; run `throughline db apply`".into()));
    };
    let (version, paused): (i32, bool) = (row.get(0), row.get(1));
    if version != projector.projection.read_model().version {
        return Ok(Readiness::Waiting(format!(
            "its tables are of version {version}, this program makes version {}; run `throughline projection rebuild {}`",
            projector.projection.read_model().version,
            projector.name()
        )));
    }
    if paused {
        let name = projector.name();
        return Ok(Readiness::Waiting(format!("it is paused; run `throughline projection resume {name}`")));
    }
    Ok(Readiness::Ready)
}

/// Fails unless the live tables are of this program's version.
pub(super) async fn check_version<E: Send + Sync>(
    client: &impl GenericClient,
    projector: &Projector<E>,
) -> Result<(), ProjectionLoopError> {
    match judge(client, projector).await? {
        Readiness::Ready => Ok(()),
        Readiness::Waiting(reason) => Err(ProjectionLoopError::refused(projector.name(), reason)),
    }
}

/// The loop's regular look: may it go on, are rows parked, how far is it behind.
pub(super) async fn sample<E: Send + Sync + 'static>(applier: &mut Applier<E>) -> Result<Readiness, StoreError> {
    let projector = applier.projector.clone();
    let client = match applier.client.take().filter(|client| !client.is_closed()) {
        Some(client) => client,
        None => projector.connect(LIVE).await?,
    };
    let readiness = judge(&*client, &projector).await?;
    // An idle loop loses no compare-and-set: a switch or rollback would go unnoticed.
    let claims = applier.mailbox.claims();
    for row in checkpoint::load(&*client, projector.name(), LIVE).await? {
        for (source, claim) in claims.iter().filter(|(source, _)| source.partition == row.partition) {
            if claim.epoch < row.epoch {
                tracing::info!(
                    projection = projector.name(),
                    partition = row.partition,
                    "claimed by another, or switched"
                );
                applier.consumer.reclaim(source, claim.epoch);
            }
        }
    }
    applier.parked_open = park::any_open(&*client, &projector.group, &projector.topic).await?;
    let name = projector.name();
    for lag in lags(&*client, &projector.topic, name).await? {
        let labels = [("projection", name.to_owned()), ("partition", lag.partition.to_string())];
        metrics::gauge!("throughline_projection_lag_events", &labels).set(lag.events as f64);
        metrics::gauge!("throughline_projection_lag_seconds", &labels).set(lag.seconds);
    }
    applier.client = Some(client);
    Ok(readiness)
}

/// How far one partition of a projection is behind the store.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Lag {
    pub partition: i32,
    /// Events that are committed and not yet applied.
    pub events: i64,
    /// Age of the oldest of them; 0 when there is none.
    pub seconds: f64,
    /// Last sequence number applied.
    pub seq: i64,
    /// Kafka offset of the next record.
    pub next_offset: i64,
}

/// The lag of every partition of `topic`.
pub async fn lags(client: &impl GenericClient, topic: &str, projection: &str) -> Result<Vec<Lag>, StoreError> {
    let rows = client
        .query(
            "select k.partition, k.last_seq - coalesce(c.seq, 0), coalesce(c.seq, 0), coalesce(c.next_offset, 0),
                    coalesce(extract(epoch from clock_timestamp() - e.recorded_at), 0)::float8
             from throughline.counters k
             join throughline.topics t on t.id = k.topic and t.name = $1
             left join throughline.checkpoints c
                  on c.partition = k.partition and c.projection = $2 and c.generation = 'read'
             left join lateral (
                  select recorded_at from throughline.events
                  where partition = k.partition and topic = k.topic and seq > coalesce(c.seq, 0)
                  order by seq limit 1) e on true
             order by k.partition",
            &[&topic, &projection],
        )
        .await
        .map_err(StoreError::at("read a projection's lag"))?;
    Ok(rows
        .iter()
        .map(|row| Lag {
            partition: row.get(0),
            events: row.get(1),
            seq: row.get(2),
            next_offset: row.get(3),
            seconds: row.get::<_, f64>(4).max(0.0),
        })
        .collect())
}

/// A projection as operators see it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Status {
    pub name: String,
    /// `running` says only that nothing forbids it; the group's members are Kafka's to tell.
    pub state: &'static str,
    /// Shape of the live tables; none when not installed.
    pub version: Option<i32>,
    /// Shape that this program makes.
    pub program_version: i32,
    /// Shape of the generation kept for rollback.
    pub previous_version: Option<i32>,
    pub switched_at: Option<Timestamp>,
    /// Events committed and not applied, all partitions.
    pub lag_events: i64,
    /// Age of the oldest of them, seconds.
    pub lag_seconds: f64,
    /// Open parked events.
    pub parked: i64,
    pub partitions: Vec<Lag>,
}

/// The status of one projection.
pub async fn status<E: Send + Sync>(
    client: &impl GenericClient,
    projector: &Projector<E>,
) -> Result<Status, StoreError> {
    let name = projector.name();
    let row = client
        .query_opt(
            "select version, paused, previous_version, switched_at from throughline.projections where name = $1",
            &[&name],
        )
        .await
        .map_err(StoreError::at("look at the projection's state"))?;
    let parked = client
        .query_one(
            "select count(*) from throughline.dead_letters where consumer = $1 and status = 'parked'",
            &[&projector.group],
        )
        .await
        .map_err(StoreError::at("count parked events"))?
        .get(0);
    let partitions = lags(client, &projector.topic, name).await?;
    let version: Option<i32> = row.as_ref().map(|row| row.get(0));
    let paused = row.as_ref().is_some_and(|row| row.get(1));
    let state = match version {
        None => "not installed",
        Some(version) if version != projector.projection.read_model().version => "waits for rebuild",
        Some(_) if paused => "paused",
        Some(_) => "running",
    };
    Ok(Status {
        name: name.to_owned(),
        state,
        version,
        program_version: projector.projection.read_model().version,
        previous_version: row.as_ref().and_then(|row| row.get(2)),
        switched_at: row.as_ref().and_then(|row| row.get(3)),
        lag_events: partitions.iter().map(|lag| lag.events).sum(),
        lag_seconds: partitions.iter().map(|lag| lag.seconds).fold(0.0, f64::max),
        parked,
        partitions,
    })
}

/// Pauses or resumes; returns whether that changed anything. A paused projection leaves its group,
/// so that Kafka's own tool may reset it. `client` is the owner's.
pub async fn set_paused(
    client: &impl GenericClient,
    projection: &str,
    paused: bool,
) -> Result<bool, ProjectionLoopError> {
    let row = client
        .query_opt(
            "with before as (select name, paused from throughline.projections where name = $1 for update)
             update throughline.projections p set paused = $2, updated_at = now() from before
             where p.name = before.name returning before.paused",
            &[&projection, &paused],
        )
        .await
        .map_err(StoreError::at("pause or resume a projection"))?;
    match row {
        Some(row) => Ok(row.get::<_, bool>(0) != paused),
        None => Err(ProjectionLoopError::refused(projection, "it is not installed; run `throughline db apply`")),
    }
}

/// The role whose connections operators' commands use.
pub const OPERATOR: DatabaseRole = DatabaseRole::Owner;
