//! Reads that see a given write: the token of a position, and the wait for a projection to pass it.
//!
//! The checkpoint row in PostgreSQL is the authority: it moves in the same transaction as the read
//! tables' rows, so a read that starts after it has passed a position sees that position's effects.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::outcomes::IDLE_TURN;
use super::problem::{INVALID_CONSISTENCY_TOKEN, Problem};
use crate::crash::is_sabotaged;
use crate::engine::Position;
use crate::health::{Heartbeat, Told};
use crate::settings::Settings;
use crate::store::{Database, StoreError};

/// Tokens that one read may carry.
const TOKENS_MAX: usize = 32;

/// The opaque text of a position of a context's events; [`decode`] reads it back.
pub fn encode(context: &str, position: Position) -> String {
    let check = checksum(context, position);
    format!("{:x}-{:x}-{check:08x}", position.partition, position.seq)
}

/// The positions of `context` in a `Consistency-Token` header: one token, or several separated by commas. Those of
/// the other contexts say nothing of what is read here: whoever keeps all its tokens may send them all.
pub fn decode(
    header: &str,
    context: &str,
    contexts: &[&'static str],
    partitions: i32,
) -> Result<Vec<Position>, Problem> {
    let invalid = || Problem::new(INVALID_CONSISTENCY_TOKEN, "Consistency-Token holds what no write has answered");
    let tokens: Vec<&str> = header.split(',').map(str::trim).collect();
    if tokens.len() > TOKENS_MAX {
        return Err(invalid());
    }
    let mut positions = Vec::new();
    for token in tokens {
        let of = |one: &str| decode_one(token, one, partitions);
        match of(context) {
            Some(position) => positions.push(position),
            None if contexts.iter().any(|other| of(other).is_some()) => {}
            None => return Err(invalid()),
        }
    }
    Ok(positions)
}

fn decode_one(token: &str, context: &str, partitions: i32) -> Option<Position> {
    let mut parts = token.split('-');
    let (partition, seq, check) = (parts.next()?, parts.next()?, parts.next()?);
    let position =
        Position { partition: i32::from_str_radix(partition, 16).ok()?, seq: i64::from_str_radix(seq, 16).ok()? };
    let valid = parts.next().is_none()
        && (0..partitions).contains(&position.partition)
        && position.seq > 0
        && u32::from_str_radix(check, 16).ok() == Some(checksum(context, position))
        && encode(context, position) == token;
    valid.then_some(position)
}

/// FNV-1a: tells a mangled token, and keeps nobody from making one up, which would gain nothing.
fn checksum(context: &str, position: Position) -> u32 {
    let bytes = context.bytes().chain(position.partition.to_be_bytes()).chain(position.seq.to_be_bytes());
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Where every projection stands: its name to seq by partition.
type Standing = HashMap<String, HashMap<i32, i64>>;

/// The waiting reads of one server, served by one poller.
pub struct Checkpoints {
    waiting: AtomicUsize,
    arrived: Notify,
    looks: watch::Sender<Standing>,
    poll_min: Duration,
    poll_max: Duration,
}

struct Present<'a>(&'a Checkpoints);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Checkpoints {
    /// Nobody waits yet.
    pub fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            waiting: AtomicUsize::new(0),
            arrived: Notify::new(),
            looks: watch::Sender::default(),
            poll_min: Duration::from_millis(settings.http.poll_min_ms.max(1)),
            poll_max: Duration::from_millis(settings.http.poll_max_ms.max(settings.http.poll_min_ms).max(1)),
        })
    }

    /// Waits until `projection` has passed all `positions`; whether it did within `wait`.
    pub async fn passed(&self, projection: &str, positions: &[Position], wait: Duration) -> bool {
        if positions.is_empty() || is_sabotaged("token_ignored") {
            return true;
        }
        // What was looked up before now does not count: an operator may have reset the projection.
        let mut looks = self.looks.subscribe();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _present = Present(self);
        self.arrived.notify_one();
        let passed = async {
            while looks.changed().await.is_ok() {
                let standing = looks.borrow_and_update();
                let seqs = standing.get(projection);
                let passed = |position: &Position| {
                    seqs.and_then(|seqs| seqs.get(&position.partition)).is_some_and(|seq| *seq >= position.seq)
                };
                if positions.iter().all(passed) {
                    return true;
                }
            }
            false
        };
        let met = tokio::time::timeout(wait, passed).await.unwrap_or(false);
        let met_label = if met { "met" } else { "not-met" };
        metrics::counter!("throughline_http_consistency_waits_total", "result" => met_label).increment(1);
        met
    }

    /// Looks while somebody waits, until cancelled.
    pub async fn run(self: Arc<Self>, database: Database, heartbeat: Heartbeat, shutdown: CancellationToken) {
        let mut pause = self.poll_min;
        let told = Told::new("checkpoints cannot be read, and waiting reads go on waiting");
        // Ready for good: whether the database answers, the admission's loop tells.
        heartbeat.ready();
        while !shutdown.is_cancelled() {
            heartbeat.beat();
            if self.waiting.load(Ordering::Relaxed) == 0 {
                pause = self.poll_min;
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.arrived.notified() => {}
                    () = tokio::time::sleep(IDLE_TURN) => continue,
                }
            }
            match standing(&database).await {
                Ok(standing) => {
                    told.well();
                    let moved = *self.looks.borrow() != standing;
                    pause = if moved { self.poll_min } else { self.poll_max.min(pause * 3 / 2) };
                    self.looks.send_replace(standing);
                }
                Err(error) => {
                    told.failed(&error.to_string());
                    pause = self.poll_max;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.arrived.notified() => pause = self.poll_min,
            }
        }
    }
}

async fn standing(database: &Database) -> Result<Standing, StoreError> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached("select projection, partition, seq from throughline.checkpoints where generation = 'read'")
        .await
        .map_err(StoreError::at("prepare checkpoints"))?;
    let rows = client.query(&statement, &[]).await.map_err(StoreError::at("read checkpoints"))?;
    let mut standing = Standing::new();
    for row in &rows {
        standing.entry(row.get(0)).or_default().insert(row.get(1), row.get(2));
    }
    Ok(standing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: fn(i32, i64) -> Position = |partition, seq| Position { partition, seq };

    const ALL: [&str; 2] = ["bank", "shop"];

    fn encoded(position: Position) -> String {
        encode("bank", position)
    }

    fn decoded(header: &str, partitions: i32) -> Result<Vec<Position>, Problem> {
        decode(header, "bank", &ALL, partitions)
    }

    #[test]
    fn a_token_is_read_back_and_several_may_come_together() {
        let (one, two) = (P(0, 1), P(5, i64::MAX));
        assert_eq!(decoded(&encoded(one), 6).unwrap(), [one]);
        assert_eq!(decoded(&format!("{}, {}", encoded(one), encoded(two)), 6).unwrap(), [one, two]);
    }

    #[test]
    fn a_token_of_another_context_holds_no_read_up_and_one_of_none_is_refused() {
        let both = format!("{},{}", encode("shop", P(1, 9_000)), encoded(P(1, 2)));
        assert_eq!(decoded(&both, 6).unwrap(), [P(1, 2)]);
        assert_eq!(decoded(&encode("shop", P(1, 9_000)), 6).unwrap(), []);
        assert!(decoded(&encode("stock", P(1, 2)), 6).is_err());
    }

    #[test]
    fn what_no_write_has_answered_is_refused() {
        let good = encoded(P(3, 77));
        let upper = good.to_uppercase();
        let many = vec![good.as_str(); TOKENS_MAX + 1].join(",");
        let negative = encoded(P(-1, 5));
        for bad in ["", "x", "3-4d", "3-4d-00000000", &format!("{good}-1"), &format!("+{good}"), &many, &negative] {
            assert!(decoded(bad, 6).is_err(), "{bad}");
        }
        assert!(upper == good || decoded(&upper, 6).is_err());
        assert!(decoded(&good, 3).is_err(), "a partition that the topic does not have");
        assert!(decoded(&encoded(P(0, 0)), 6).is_err());
    }

    #[tokio::test]
    async fn a_read_goes_on_once_all_its_positions_are_passed() {
        let checkpoints = Checkpoints::new(&Settings::default());
        let look = |seq: i64| {
            let standing = HashMap::from([("balances".to_owned(), HashMap::from([(0, seq), (1, 10)]))]);
            checkpoints.looks.send_replace(standing);
        };
        look(5);
        let positions = [P(0, 5), P(1, 9)];
        let waits = checkpoints.passed("balances", &positions, Duration::from_secs(5));
        let looks = async {
            tokio::task::yield_now().await;
            look(4);
            tokio::task::yield_now().await;
            look(5);
        };
        assert!(futures_util::join!(waits, looks).0);
        assert!(!checkpoints.passed("balances", &[P(0, 6)], Duration::ZERO).await);
        assert_eq!(checkpoints.waiting.load(Ordering::Relaxed), 0);
    }
}
