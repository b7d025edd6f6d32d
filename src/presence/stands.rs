//! Which partitions of the projections are behind, or do not go on, and why: for whoever reads their tables.
//!
//! Joins what processes told with what PostgreSQL itself knows: a projection that nobody runs tells nothing, but
//! its checkpoint stays behind its counter. Reads only; decides nothing.

use jiff::Timestamp;
use tokio_postgres::GenericClient;

use super::LIVES_FOR;
use crate::health::PartitionState;
use crate::store::StoreError;

/// A partition of a projection that does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    pub projection: String,
    pub partition: i32,
    /// In its state since when; where nobody has it, when it last moved; none where it never did.
    pub since: Option<Timestamp>,
    pub reason: String,
    /// The next step.
    pub cure: String,
}

/// A partition of a projection that does not show all that was committed, or stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Why; where it goes on, that it does.
    pub stand: Stand,
    /// It does not go on.
    pub stands: bool,
    /// Last sequence number committed.
    pub last_seq: i64,
    /// Last sequence number applied.
    pub seq: i64,
}

/// What shows all that happened answers no row, so that this costs next to nothing while all is well: such a table
/// answers for itself, whoever runs it. Who is not told of as standing stands if it is behind for a while.
/// $1 the events topic, $2 seconds, $3 the projections that read it.
const STANDS: &str = "
    with told as (
        select distinct on (s.loop, s.partition) s.loop, s.partition, s.state, s.since, s.reason, s.cure
        from throughline.partition_states s join throughline.processes p on p.id = s.process
        where s.topic = $1 and abs(extract(epoch from clock_timestamp() - p.seen_at)::float8) <= $2
        order by s.loop, s.partition, array_position(array['running', 'standing', 'claimed', 'pending'], s.state))
    select p.name, k.partition, p.paused, told.state, coalesce(told.since, c.updated_at), told.reason, told.cure,
           told.state is not distinct from 'standing'
           or told.state is distinct from 'running'
              and coalesce(coalesce(told.since, c.updated_at) < clock_timestamp() - make_interval(secs => $2), true),
           k.last_seq, coalesce(c.seq, 0)
    from throughline.projections p
    join throughline.topics t on t.name = $1
    join throughline.counters k on k.topic = t.id
    left join throughline.checkpoints c
         on c.projection = p.name and c.partition = k.partition and c.generation = 'read'
    left join told on told.loop = 'projection ' || p.name and told.partition = k.partition
    where p.name = any($3) and (told.state = 'standing' or k.last_seq > coalesce(c.seq, 0))";

/// The partitions of the `projections`, which read `topic`, that are behind or stand.
pub async fn of_projections(
    client: &impl GenericClient,
    topic: &str,
    projections: &[&str],
) -> Result<Vec<Behind>, StoreError> {
    let look = StoreError::at("look which partitions of projections stand");
    let statement = match client.prepare(STANDS).await {
        Ok(statement) => statement,
        Err(error) => return Err(look(error)),
    };
    let rows = client.query(&statement, &[&topic, &LIVES_FOR.as_secs_f64(), &projections]).await.map_err(look)?;
    let behind = |row| Behind { stand: stand(row), stands: row.get(7), last_seq: row.get(8), seq: row.get(9) };
    Ok(rows.iter().map(behind).collect())
}

fn stand(row: &tokio_postgres::Row) -> Stand {
    let (projection, paused): (String, bool) = (row.get(0), row.get(2));
    let (state, reason, cure): (Option<String>, Option<String>, Option<String>) = (row.get(3), row.get(5), row.get(6));
    let (reason, cure) = match state.as_deref() {
        Some(state) if state == PartitionState::Standing.name() => (
            reason.unwrap_or_else(|| "its process does not say why".to_owned()),
            cure.unwrap_or_else(|| "none needed: it goes on by itself".to_owned()),
        ),
        Some(state) if state == PartitionState::Running.name() => (
            "it goes on, and does not show yet all that was committed before".to_owned(),
            "none needed: it catches up; ask again".to_owned(),
        ),
        Some(_) => (
            format!("its claim is not granted: {}", reason.as_deref().unwrap_or("no answer so far")),
            "none needed: it goes on once it is granted; `throughline status` names the process".to_owned(),
        ),
        None if paused => ("it is paused".to_owned(), format!("run `throughline projection resume {projection}`")),
        None => (
            "no process that lives has it".to_owned(),
            format!("run `throughline run projection:{projection}`; `throughline status` tells who lives"),
        ),
    };
    Stand { partition: row.get(1), since: row.get(4), projection, reason, cure }
}
