//! What processes told of themselves, read back. The database's clock says who counts as alive.

use jiff::Timestamp;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::LIVES_FOR;
use crate::store::StoreError;

/// A process that registered itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    pub id: Uuid,
    pub host: String,
    pub pid: i32,
    /// As `throughline run` takes them.
    pub roles: Vec<String>,
    /// Where its admin port listens.
    pub admin: Option<String>,
    pub version: String,
    pub started_at: Timestamp,
    pub last_seen: Timestamp,
    /// Seen lately; else it was killed, or is stopped or cut off.
    pub lives: bool,
}

impl Process {
    /// For people: `host:pid`.
    pub fn owner(&self) -> String {
        format!("{}:{}", self.host, self.pid)
    }
}

/// What one process does with one partition.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub process: Uuid,
    pub loop_name: String,
    pub topic: String,
    pub partition: i32,
    /// A name of [`crate::health::PartitionState`].
    pub state: String,
    pub since: Timestamp,
    pub reason: Option<String>,
    pub cure: Option<String>,
}

/// All processes on record, living ones first, and what the living ones do.
pub async fn processes(client: &impl GenericClient) -> Result<(Vec<Process>, Vec<Seen>), StoreError> {
    // On both sides: after a leap of the clock a row may lie in the future, until the next heartbeat.
    let alive = "abs(extract(epoch from clock_timestamp() - seen_at)::float8) <= $1";
    let processes = format!(
        "select id, host, pid, roles, admin, version, started_at, seen_at, {alive}
         from throughline.processes order by 9 desc, host, pid, started_at"
    );
    let states = format!(
        "select s.process, s.loop, s.topic, s.partition, s.state, s.since, s.reason, s.cure
         from throughline.partition_states s join throughline.processes p on p.id = s.process
         where {alive} order by s.loop, s.topic, s.partition"
    );
    let seconds = LIVES_FOR.as_secs_f64();
    let rows = client.query(&processes, &[&seconds]).await.map_err(StoreError::at("read who lives"))?;
    let states = client.query(&states, &[&seconds]).await.map_err(StoreError::at("read the states of partitions"))?;
    let process = |row: &tokio_postgres::Row| Process {
        id: row.get(0),
        host: row.get(1),
        pid: row.get(2),
        roles: row.get(3),
        admin: row.get(4),
        version: row.get(5),
        started_at: row.get(6),
        last_seen: row.get(7),
        lives: row.get(8),
    };
    let seen = |row: &tokio_postgres::Row| Seen {
        process: row.get(0),
        loop_name: row.get(1),
        topic: row.get(2),
        partition: row.get(3),
        state: row.get(4),
        since: row.get(5),
        reason: row.get(6),
        cure: row.get(7),
    };
    Ok((rows.iter().map(process).collect(), states.iter().map(seen).collect()))
}
