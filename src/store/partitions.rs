//! Time partitions of `outbox` and `commands`: made ahead, dropped when no longer needed.
//!
//! Each step is idempotent, safe beside another process's, and gives up rather than wait for readers.
//! PostgreSQL decides what may go: an outbox partition behind the relay's watermark, outcomes whose time is
//! over by its clock and by the time that was seen to pass.

use std::time::Instant;

use tokio_postgres::Client;

use super::StoreError;
use crate::settings::DatabaseSettings;

/// Rows can be written for this long ahead even if no turn succeeds any more; the widths that it takes are
/// bounded, since every read of the outbox looks into each partition.
const AHEAD_MINUTES: i32 = 3 * 60;
const AHEAD_WIDTHS: std::ops::RangeInclusive<i32> = 2..=12;

/// Pieces of about a second that one turn sets apart, at most: a turn has a minute for everything.
const PIECES_MAX: u32 = 20;

/// What one turn did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    pub created: i32,
    pub dropped: Vec<String>,
    /// Outbox partitions of which only the unpublished rows were kept, by their new names.
    pub held: Vec<String>,
}

/// A table's time partitions, and for how long from now on rows can be written without a hole.
#[derive(Debug, Clone, PartialEq)]
pub struct Coverage {
    pub table: &'static str,
    pub seconds: f64,
    /// One that ends before a partition's width is over will be noticed by writers soon.
    pub is_short: bool,
}

/// The tables, with the width of their partitions in minutes.
fn tables(settings: &DatabaseSettings) -> [(&'static str, i32); 2] {
    let minutes = |count: u32, of: u32| i32::try_from(count.max(1).saturating_mul(of)).unwrap_or(i32::MAX);
    [
        ("outbox", minutes(settings.outbox_partition_minutes, 1)),
        ("commands", minutes(settings.command_partition_days, 24 * 60)),
    ]
}

/// Makes the partitions that lack from now on. Returns how many it made. Maintenance does so ahead; a writer
/// whose rows have none does so on the spot, since the clock was set.
pub async fn extend(client: &Client, settings: &DatabaseSettings) -> Result<i32, StoreError> {
    let mut created = 0;
    for (table, minutes) in tables(settings) {
        let ahead = (AHEAD_MINUTES / minutes + 1).clamp(*AHEAD_WIDTHS.start(), *AHEAD_WIDTHS.end());
        created += client
            .query_one(
                "select throughline.create_time_partitions($1, make_interval(mins => $2), $3)",
                &[&table, &minutes, &ahead],
            )
            .await
            .map_err(StoreError::at("create time partitions"))?
            .get::<_, i32>(0);
    }
    Ok(created)
}

/// How long writers can go on with what there is.
pub async fn coverage(client: &Client, settings: &DatabaseSettings) -> Result<[Coverage; 2], StoreError> {
    let row = client
        .query_one(
            "select coalesce(extract(epoch from throughline.covered_until('outbox') - now()), 0)::float8,
                    coalesce(extract(epoch from throughline.covered_until('commands') - now()), 0)::float8",
            &[],
        )
        .await
        .map_err(StoreError::at("look how far time partitions reach"))?;
    let mut seconds = [row.get::<_, f64>(0), row.get(1)].into_iter();
    Ok(tables(settings).map(|(table, minutes)| {
        let seconds = seconds.next().unwrap_or_default();
        Coverage { table, seconds, is_short: seconds < 60.0 * f64::from(minutes) }
    }))
}

/// Makes the partitions of the near future and drops those of the past.
pub async fn maintain(client: &Client, settings: &DatabaseSettings) -> Result<Turn, StoreError> {
    let mut turn = Turn { created: extend(client, settings).await?, ..Turn::default() };
    let keep = i32::try_from(settings.command_retention_days).unwrap_or(i32::MAX);
    let [outbox, commands] = tables(settings).map(|(_, minutes)| minutes);
    let outcomes = "select throughline.drop_old_commands(make_interval(days => $1), make_interval(mins => $2))";
    for rows in [
        client.query("select throughline.drop_published_outbox(make_interval(mins => $1))", &[&outbox]).await,
        client.query(outcomes, &[&keep, &commands]).await,
    ] {
        let rows = rows.map_err(StoreError::at("drop old time partitions"))?;
        turn.dropped.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    hold(client, outbox, &mut turn).await?;
    Ok(turn)
}

/// Sets unpublished rows of the past apart, piece by piece: what is left for the next turn goes on where this one
/// stopped.
async fn hold(client: &Client, width_minutes: i32, turn: &mut Turn) -> Result<(), StoreError> {
    for _ in 0..PIECES_MAX {
        let piece = client
            .query_opt(
                "select held, complete from throughline.hold_piece(make_interval(mins => $1))",
                &[&width_minutes],
            )
            .await
            .map_err(StoreError::at("set unpublished rows of the past apart"))?;
        let Some(piece) = piece else { break };
        if piece.get(1) {
            turn.held.push(piece.get(0));
            break;
        }
    }
    Ok(())
}

/// Tells the store how much time passes, by this process's monotonic clock: no other one tells what is old
/// enough to be dropped.
#[derive(Debug, Default)]
pub struct Stopwatch {
    /// What the store had seen pass when this process last looked, and when that was.
    read: Option<(f64, Instant)>,
}

impl Stopwatch {
    /// Raises what the store has seen pass to what passed since the last call.
    pub async fn tell(&mut self, client: &Client) -> Result<(), StoreError> {
        // From behind the last answer to before this request: never more than passed between the two readings.
        let (seen, passed) = self.read.map_or((0.0, 0.0), |(seen, at)| (seen, at.elapsed().as_secs_f64()));
        let row = client
            .query_one(
                "select extract(epoch from throughline.pass_time(make_interval(secs => $1), make_interval(secs => $2)))::float8",
                &[&seen, &passed],
            )
            .await
            .map_err(StoreError::at("tell the store how much time passed"))?;
        self.read = Some((row.get(0), Instant::now()));
        Ok(())
    }
}
