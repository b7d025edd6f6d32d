//! The open connections of one port: how many there may be, which one makes room, and when each is over.
//!
//! A connection is *in hand* while a request of it is handled or answered, else it is *quiet*: in its TLS
//! handshake, in the middle of a head, or between requests. Quiet ones are closed by time, and sooner when
//! a newcomer finds the port full. So nobody keeps others out by opening connections and sending little.
//! Knows nothing of routes.

mod service;
mod stream;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::http::Version;
use futures_util::task::AtomicWaker;
use nix::errno::Errno;
use tokio::sync::Notify;
use tokio::time::Instant;

pub(super) use service::Doorkeeper;
pub(super) use stream::Acceptor;

use crate::settings::HttpSettings;

/// A connection that was told to make room has gone within this; else the newcomer is refused.
const ROOM_WAIT: Duration = Duration::from_millis(250);
/// Once files have run out there are so many fewer connections than then, for so long. Who has no more than these
/// did not use them up, and is not bounded for it.
const SHRINK_BY: usize = 16;
const FEWER_FOR: Duration = Duration::from_secs(10);
/// That a port is full, or that nothing can be accepted, is told this often, at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// When a connection is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// To the first whole head, and to the end of each begun one.
    head: Duration,
    /// Between requests.
    idle: Duration,
    /// Without taking a byte of its answer.
    stall: Duration,
}

/// Why a connection was closed by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Head,
    Idle,
    Stalled,
    Evicted,
    Refused,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::Evicted => "evicted",
            Self::Refused => "refused",
        }
    }
}

/// The connections of one port.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) port: &'static str,
    /// As shared out at start; fewer for a while once files have run out.
    most: usize,
    fewer: Mutex<Option<(usize, Instant)>>,
    /// Whose connections go first when files run out.
    beside: Option<Arc<Gate>>,
    limits: Limits,
    open: AtomicUsize,
    /// A connection has gone.
    gone: Notify,
    line: Mutex<VecDeque<Weak<Connection>>>,
    told: Mutex<Option<Instant>>,
}

/// One open connection; counted until dropped.
#[derive(Debug)]
pub(super) struct Connection {
    gate: Arc<Gate>,
    opened: Instant,
    /// Requests begun so far, and those of them that are in hand.
    begun: AtomicU64,
    in_hand: AtomicUsize,
    /// The last request's end, milliseconds after `opened`.
    quiet_since_ms: AtomicU64,
    /// It had a request since it was last looked at for making room.
    used: AtomicBool,
    /// HTTP/2: what comes without a request in hand need not be half a head.
    multiplexed: AtomicBool,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    /// A gate for `most` connections to `port`, as metrics name it.
    pub(super) fn new(
        port: &'static str,
        most: usize,
        beside: Option<Arc<Gate>>,
        settings: &HttpSettings,
    ) -> Arc<Self> {
        let limits = Limits {
            head: Duration::from_millis(settings.head_timeout_ms),
            idle: Duration::from_millis(settings.idle_timeout_ms),
            stall: Duration::from_millis(settings.request_timeout_ms),
        };
        let (fewer, open, gone, line, told) = Default::default();
        Arc::new(Self { port, most, fewer, beside, limits, open, gone, line, told })
    }

    /// Lets a newcomer in, where need be in the place of a quiet one; none where all are in hand.
    async fn admit(self: &Arc<Self>) -> Option<Arc<Connection>> {
        if self.is_full() {
            self.tell("as many connections are open as may: quiet ones make room");
            if !self.make_room() || !self.has_room().await {
                self.count(Reason::Refused);
                return None;
            }
        }
        let connection = Arc::new(Connection::new(self.clone()));
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.len() >= 2 * self.most {
            line.retain(|connection| connection.strong_count() > 0);
        }
        line.push_back(Arc::downgrade(&connection));
        Some(connection)
    }

    fn is_full(&self) -> bool {
        let fewer = *self.fewer.lock().unwrap_or_else(PoisonError::into_inner);
        let fewer = fewer.filter(|(_, since)| since.elapsed() < FEWER_FOR).map_or(self.most, |(fewer, _)| fewer);
        self.open.load(Ordering::Acquire) >= fewer
    }

    async fn has_room(&self) -> bool {
        let room = async {
            while self.is_full() {
                self.gone.notified().await;
            }
        };
        tokio::time::timeout(ROOM_WAIT, room).await.is_ok()
    }

    /// Tells a quiet connection to go: the first in line without a request since it was last looked at, else
    /// the first quiet one. Whether there was one.
    pub(super) fn make_room(&self) -> bool {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        // The second lap finds those that were spared in the first.
        for _ in 0..2 * line.len() {
            let Some(connection) = line.pop_front() else { break };
            let Some(found) = connection.upgrade() else { continue };
            if found.in_hand.load(Ordering::Acquire) > 0 || found.used.swap(false, Ordering::Relaxed) {
                line.push_back(connection);
                continue;
            }
            found.evicted.store(true, Ordering::Release);
            found.waker.wake();
            return true;
        }
        false
    }

    /// A socket could not be accepted; the listener tries again by itself. Where files have run out, quiet
    /// connections give theirs, the API's first, and for a while there are fewer of them.
    pub(super) fn not_accepted(&self, error: &std::io::Error) {
        metrics::counter!("throughline_http_accept_errors_total", "port" => self.port).increment(1);
        self.tell(&format!("a connection could not be accepted: {error}; trying on"));
        if error.raw_os_error().is_some_and(|code| [Errno::EMFILE, Errno::ENFILE].contains(&Errno::from_raw(code))) {
            self.beside.as_deref().unwrap_or(self).shrink();
        }
    }

    fn shrink(&self) {
        let open = self.open.load(Ordering::Acquire);
        if open > SHRINK_BY {
            let fewer = (open - SHRINK_BY).max(SHRINK_BY);
            *self.fewer.lock().unwrap_or_else(PoisonError::into_inner) = Some((fewer, Instant::now()));
        }
        for _ in 0..SHRINK_BY {
            self.make_room();
        }
    }

    fn tell(&self, what: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(port = self.port, most = self.most, "{what}");
        }
    }

    fn count(&self, reason: Reason) {
        let labels = [("port", self.port), ("reason", reason.name())];
        metrics::counter!("throughline_http_connections_closed_total", &labels).increment(1);
    }

    fn publish(&self, open: usize) {
        metrics::gauge!("throughline_http_connections", "port" => self.port).set(open as f64);
    }
}

impl Connection {
    fn new(gate: Arc<Gate>) -> Self {
        gate.publish(gate.open.fetch_add(1, Ordering::AcqRel) + 1);
        let (begun, in_hand, quiet_since_ms, used, multiplexed, evicted, waker) = Default::default();
        Self { gate, opened: Instant::now(), begun, in_hand, quiet_since_ms, used, multiplexed, evicted, waker }
    }

    /// Takes a request in hand, until what is returned is dropped.
    fn begin(self: &Arc<Self>, version: Version) -> InHand {
        self.in_hand.fetch_add(1, Ordering::AcqRel);
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
        self.multiplexed.store(version == Version::HTTP_2, Ordering::Relaxed);
        InHand(self.clone())
    }

    /// The end of the last request.
    fn quiet_since(&self) -> Instant {
        self.opened + Duration::from_millis(self.quiet_since_ms.load(Ordering::Relaxed))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.gate.publish(self.gate.open.fetch_sub(1, Ordering::AcqRel) - 1);
        self.gate.gone.notify_one();
    }
}

/// A request that is handled, or whose answer is on its way.
#[derive(Debug)]
struct InHand(Arc<Connection>);

impl Drop for InHand {
    fn drop(&mut self) {
        let since = self.0.opened.elapsed().as_millis();
        self.0.quiet_since_ms.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.0.in_hand.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(most: usize) -> Arc<Gate> {
        Gate::new("test", most, None, &HttpSettings::default())
    }

    fn evicted(connections: &[&Arc<Connection>]) -> Vec<bool> {
        connections.iter().map(|connection| connection.evicted.load(Ordering::Relaxed)).collect()
    }

    #[tokio::test]
    async fn the_quiet_one_that_was_not_used_makes_room_first() {
        let gate = gate(3);
        let (used, busy, idle) =
            (gate.admit().await.unwrap(), gate.admit().await.unwrap(), gate.admit().await.unwrap());
        drop(used.begin(Version::HTTP_11));
        let in_hand = busy.begin(Version::HTTP_11);
        assert!(gate.make_room());
        assert_eq!(evicted(&[&used, &busy, &idle]), [false, false, true]);
        drop(idle);
        let newcomer = gate.admit().await.unwrap();
        // It was spared once; nothing came since. The one in hand is never asked.
        assert!(gate.make_room());
        assert_eq!(evicted(&[&used, &busy, &newcomer]), [true, false, false]);
        drop(in_hand);
    }

    #[tokio::test]
    async fn nobody_comes_in_while_all_are_in_hand() {
        let gate = gate(2);
        let (one, two) = (gate.admit().await.unwrap(), gate.admit().await.unwrap());
        let hands = (one.begin(Version::HTTP_11), two.begin(Version::HTTP_11));
        assert!(gate.admit().await.is_none());
        drop((hands, one));
        assert!(gate.admit().await.is_some());
        drop(two);
    }

    #[tokio::test]
    async fn where_files_run_out_the_quiet_ones_of_the_api_give_theirs() {
        let api = gate(100);
        let admin = Gate::new("admin", 10, Some(api.clone()), &HttpSettings::default());
        let connections = futures_util::future::join_all((0..40).map(|_| api.admit())).await;
        let gone = || connections.iter().flatten().filter(|one| one.evicted.load(Ordering::Relaxed)).count();
        let probe = admin.admit().await.unwrap();
        admin.not_accepted(&std::io::ErrorKind::ConnectionAborted.into());
        assert_eq!(gone(), 0, "one peer's misfortune");
        admin.not_accepted(&std::io::Error::from_raw_os_error(Errno::EMFILE as i32));
        assert_eq!((gone(), probe.evicted.load(Ordering::Relaxed)), (SHRINK_BY, false));
        assert!(api.is_full() && !admin.is_full());
        api.not_accepted(&std::io::Error::from_raw_os_error(Errno::EMFILE as i32));
        assert_eq!(gone(), 2 * SHRINK_BY);
        drop(connections);
        assert!(api.admit().await.is_some());
        // Files that others have used up.
        let alone = gate(100);
        alone.not_accepted(&std::io::Error::from_raw_os_error(Errno::EMFILE as i32));
        let connections = futures_util::future::join_all((0..40).map(|_| alone.admit())).await;
        assert!(connections.iter().all(Option::is_some));
    }

    #[tokio::test]
    async fn the_line_of_those_that_have_gone_is_bounded() {
        let gate = gate(4);
        for _ in 0..1_000 {
            gate.admit().await.unwrap();
        }
        assert!(gate.line.lock().unwrap().len() <= 8);
        assert_eq!(gate.open.load(Ordering::Relaxed), 0);
    }
}
