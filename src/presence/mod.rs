//! Who lives: each process registers itself in PostgreSQL, with a heartbeat, and keeps there what it does
//! with each of its partitions, so that others can read it.
//!
//! Told for people and tools; nothing is decided by it, and no loop waits for it. Whoever is killed leaves its
//! rows behind: whether they count is told by the database's clock ([`LIVES_FOR`]), to both sides, so that a
//! clock that leaps makes somebody look dead until the next heartbeat and no longer. Knows no loop: what the
//! loops told [`Health`] is passed on.

pub mod read;
mod stands;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use read::{Process, Seen, processes};
pub use stands::{Behind, Stand, of_projections};

use crate::health::{Health, PartitionReport, Told};
use crate::settings::Settings;
use crate::store::{DatabaseRole, StoreError, connect};

/// Between two heartbeats.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// A heartbeat takes this long, at most; then the connection is given up.
const ANSWER_WAIT: Duration = Duration::from_secs(4);
/// Who was not seen for longer is taken for dead: two heartbeats may be late.
pub const LIVES_FOR: Duration = Duration::from_secs(6);
/// Between two turns of what is seldom due: rows of the dead, the store's gauges.
const SELDOM: Duration = Duration::from_secs(10);
/// Rows of the dead are kept this long, for people.
const KEPT_FOR: &str = "1 hour";
/// Longest text that is passed on, bytes.
const TEXT_BYTES_MAX: usize = 2_000;

/// Who this process is.
#[derive(Debug, Clone)]
pub struct Identity {
    id: Uuid,
    host: String,
    pid: i32,
    roles: Vec<String>,
    started_at: Timestamp,
}

impl Identity {
    /// This run of this process, with these roles.
    pub fn new(roles: Vec<String>) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            id: Uuid::new_v4(),
            host: host.trim().to_owned(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            roles,
            started_at: Timestamp::now(),
        }
    }
}

/// The heartbeat, and whether the row was missing: then whoever removed it removed the states with it.
/// $1 id, $2 host, $3 pid, $4 roles, $5 admin address, $6 version, $7 started at.
const BEAT: &str = "
    insert into throughline.processes as p (id, host, pid, roles, admin, version, started_at, seen_at)
    values ($1, $2, $3, $4, $5, $6, $7, clock_timestamp())
    on conflict (id) do update set seen_at = excluded.seen_at, admin = excluded.admin
    returning xmax = 0";
/// All states in one statement: what is not among them goes, what did not change is not written.
/// $1 process, then a column each.
const TELL: &str = "
    with told as (
        select * from unnest($2::text[], $3::text[], $4::int[], $5::text[], $6::timestamptz[], $7::text[], $8::text[])
            as told (loop, topic, partition, state, since, reason, cure)),
    gone as (
        delete from throughline.partition_states s where s.process = $1
           and not exists (select from told t
                           where t.loop = s.loop and t.topic = s.topic and t.partition = s.partition))
    insert into throughline.partition_states as s (process, loop, topic, partition, state, since, reason, cure)
    select $1, told.* from told
    on conflict (process, loop, topic, partition) do update
        set state = excluded.state, since = excluded.since, reason = excluded.reason, cure = excluded.cure
        where (s.state, s.since, s.reason, s.cure)
              is distinct from (excluded.state, excluded.since, excluded.reason, excluded.cure)";
/// $1 how long rows of the dead are kept. On either side: a clock may have leapt back.
const FORGET: &str = "
    delete from throughline.processes
    where seen_at < clock_timestamp() - $1::text::interval or seen_at > clock_timestamp() + $1::text::interval";
const DEAD_LETTERS: &str = "select status, count(*) from throughline.dead_letters group by status";
const DEAD_LETTER_STATUSES: [&str; 3] = ["parked", "replayed", "discarded"];

struct Presence {
    settings: Arc<Settings>,
    health: Arc<Health>,
    who: Identity,
    client: Option<Client>,
    /// What PostgreSQL has of us; none where that is not known.
    written: Option<Vec<PartitionReport>>,
    seldom_at: Instant,
}

/// Tells until `shutdown`, then takes the rows back. PostgreSQL may be away for as long as it likes.
///
/// # Errors
/// Settings that no retry can cure.
pub async fn run(
    settings: Arc<Settings>,
    health: Arc<Health>,
    who: Identity,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let seldom_at = Instant::now();
    let mut presence = Presence { settings, health, who, client: None, written: None, seldom_at };
    let told = Told::new("this process cannot be registered, and is not seen by `throughline status`");
    loop {
        match tokio::time::timeout(ANSWER_WAIT, presence.turn()).await {
            Ok(Ok(())) => drop(told.well()),
            Ok(Err(error @ StoreError::Settings(_))) => return Err(error),
            failed => {
                // What arrived is not known.
                (presence.client, presence.written) = (None, None);
                let late = format!("no answer within {} s", ANSWER_WAIT.as_secs());
                told.failed(
                    &failed.map_or(late, |answer| answer.map_or_else(|error| error.to_string(), |()| String::new())),
                );
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(BEAT_EVERY)).await.is_none() {
            break;
        }
    }
    // Where this fails the rows are taken for a dead process's, soon.
    let _ = tokio::time::timeout(ANSWER_WAIT, presence.leave()).await;
    Ok(())
}

impl Presence {
    async fn turn(&mut self) -> Result<(), StoreError> {
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.connect().await?,
        };
        if self.beat(&client).await? {
            self.written = None;
        }
        let reports = self.health.partition_reports();
        if self.written.as_ref() != Some(&reports) {
            self.tell(&client, &reports).await?;
            self.written = Some(reports);
        }
        if self.seldom_at <= Instant::now() {
            self.seldom_at = Instant::now() + SELDOM;
            self.seldom(&client).await?;
        }
        self.client = Some(client);
        Ok(())
    }

    /// What is written here may be lost, and must not wait for a standby that is away.
    async fn connect(&self) -> Result<Client, StoreError> {
        let client = connect::connect(&self.settings.database, &DatabaseRole::Presence).await?;
        let setup = format!("set synchronous_commit = off; set statement_timeout = {}", ANSWER_WAIT.as_millis());
        client.batch_execute(&setup).await.map_err(StoreError::at("set up the session that tells who lives"))?;
        Ok(client)
    }

    /// Whether the row was missing.
    async fn beat(&self, client: &Client) -> Result<bool, StoreError> {
        let Identity { id, host, pid, roles, started_at } = &self.who;
        let admin = self.health.admin_address().map(|address| address.to_string());
        let version = env!("CARGO_PKG_VERSION");
        let row = client
            .query_one(BEAT, &[id, host, pid, roles, &admin, &version, started_at])
            .await
            .map_err(StoreError::at("tell that this process lives"))?;
        Ok(row.get(0))
    }

    async fn tell(&self, client: &Client, reports: &[PartitionReport]) -> Result<(), StoreError> {
        fn column<'a, T>(reports: &'a [PartitionReport], pick: impl Fn(&'a PartitionReport) -> T) -> Vec<T> {
            reports.iter().map(pick).collect()
        }
        client
            .execute(
                TELL,
                &[
                    &self.who.id,
                    &column(reports, |report| &*report.loop_name),
                    &column(reports, |report| &*report.topic),
                    &column(reports, |report| report.partition),
                    &column(reports, |report| report.state.name()),
                    &column(reports, |report| report.since),
                    &column(reports, |report| report.reason.as_deref().map(clean)),
                    &column(reports, |report| report.cure.as_deref().map(clean)),
                ],
            )
            .await
            .map_err(StoreError::at("tell the states of the partitions"))?;
        Ok(())
    }

    async fn seldom(&self, client: &Client) -> Result<(), StoreError> {
        client.execute(FORGET, &[&KEPT_FOR]).await.map_err(StoreError::at("forget dead processes"))?;
        let rows = client.query(DEAD_LETTERS, &[]).await.map_err(StoreError::at("count dead letters"))?;
        let counted = |status: &str| {
            let row = rows.iter().find(|row| row.get::<_, &str>(0) == status);
            row.map_or(0, |row| row.get::<_, i64>(1))
        };
        for status in DEAD_LETTER_STATUSES {
            metrics::gauge!("throughline_dead_letters", "status" => status).set(counted(status) as f64);
        }
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), StoreError> {
        let Some(client) = &self.client else { return Ok(()) };
        client
            .execute("delete from throughline.processes where id = $1", &[&self.who.id])
            .await
            .map_err(StoreError::at("tell that this process ends"))?;
        Ok(())
    }
}

/// Text that PostgreSQL takes, of bounded length: a reason may quote a record.
fn clean(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_quotes_a_record_is_text_that_postgresql_takes() {
        assert_eq!(clean("a\0b"), "a\u{fffd}b");
        let long = format!("{}é", "x".repeat(TEXT_BYTES_MAX - 1));
        assert_eq!(clean(&long).len(), TEXT_BYTES_MAX - 1, "cut between characters");
    }
}
