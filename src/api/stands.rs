//! What stands of the read tables, kept in memory, so that a read that finds nothing can say whether that means
//! anything. Looked up in the background: no read asks for it, and a table that goes on costs a read one look at a
//! map that is empty. PostgreSQL is the authority; what is told may be [`LOOK_EVERY`] and a heartbeat late.
//!
//! A stand is over once what was committed until it went on is shown: until then absence still means nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::problem::{PROJECTION_STANDING, Problem};
use crate::health::{Heartbeat, Told};
use crate::presence::{self, Behind, Stand};
use crate::store::{Database, StoreError};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A look takes this long, at most.
const ANSWER_WAIT: Duration = Duration::from_secs(4);
/// What a look found counts for this long; then nothing is known, and reads answer as if all went on.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// When a read may be worth another try, seconds.
const RETRY_SECONDS: u64 = 5;

/// Partitions of one projection that stand, by number.
pub(super) type Standing = BTreeMap<i32, Stand>;

struct Look {
    at: Instant,
    found: HashMap<String, Arc<Standing>>,
    /// What each of them has to show for its stand to be over; `i64::MAX` while it does not go on. None before the
    /// first look.
    upto: Option<HashMap<(String, i32), i64>>,
}

/// What the last look found.
pub(super) struct Stands {
    topic: String,
    projections: Vec<&'static str>,
    look: watch::Sender<Look>,
}

impl Stands {
    /// Nothing is known yet. `topic` is the events topic, `projections` are those that read it.
    pub(super) fn new(topic: String, projections: Vec<&'static str>) -> Arc<Self> {
        let look = Look { at: Instant::now(), found: HashMap::new(), upto: None };
        Arc::new(Self { topic, projections, look: watch::Sender::new(look) })
    }

    /// What stands of `projection`; none where nothing does.
    pub(super) fn of(&self, projection: &str) -> Option<Arc<Standing>> {
        let look = self.look.borrow();
        let found = look.found.get(projection)?;
        (look.at.elapsed() < KNOWN_FOR).then(|| found.clone())
    }

    /// Looks until cancelled.
    pub(super) async fn run(self: Arc<Self>, database: Database, heartbeat: Heartbeat, shutdown: CancellationToken) {
        let told = Told::new("it is not known which read tables stand, and reads cannot tell");
        // Ready for good: whether the database answers, the admission's loop tells.
        heartbeat.ready();
        loop {
            heartbeat.beat();
            match tokio::time::timeout(ANSWER_WAIT, self.look(&database)).await {
                Ok(Ok(())) => drop(told.well()),
                Ok(Err(error)) => drop(told.failed(&error.to_string())),
                Err(_) => drop(told.failed(&format!("no answer within {} s", ANSWER_WAIT.as_secs()))),
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }

    async fn look(&self, database: &Database) -> Result<(), StoreError> {
        let at = Instant::now();
        let client = database.client().await?;
        self.keep(at, presence::of_projections(&**client, &self.topic, &self.projections).await?);
        Ok(())
    }

    fn keep(&self, at: Instant, behind: Vec<Behind>) {
        let (mut found, mut upto) = (HashMap::<String, Standing>::new(), HashMap::new());
        for Behind { stand, stands, last_seq, seq } in behind {
            let place = (stand.projection.clone(), stand.partition);
            // Of what was behind before the first look, nobody knows whether it stood.
            let before = self.look.borrow().upto.as_ref().map_or(Some(i64::MAX), |upto| upto.get(&place).copied());
            let end = if stands { Some(i64::MAX) } else { before.map(|upto| upto.min(last_seq)) };
            let Some(end) = end.filter(|end| stands || seq < *end) else { continue };
            upto.insert(place, end);
            found.entry(stand.projection.clone()).or_default().insert(stand.partition, stand);
        }
        let found = found.into_iter().map(|(projection, standing)| (projection, Arc::new(standing))).collect();
        self.look.send_replace(Look { at, found, upto: Some(upto) });
    }
}

/// The answer where nothing was found and `stand` may be why.
pub(super) fn problem(stand: &Stand) -> Problem {
    let Stand { projection, partition, since, reason, cure } = stand;
    let since = since.map(|at| format!(" since {at:.0}")).unwrap_or_default();
    let detail = format!("projection {projection} stands at partition {partition}{since}: {reason}. Next step: {cure}");
    Problem::new(PROJECTION_STANDING, detail).retry_after(RETRY_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand() -> Stand {
        let [projection, reason, cure] = ["balances", "a hole", "look"].map(str::to_owned);
        Stand { projection, partition: 2, since: None, reason, cure }
    }

    fn behind(stands: bool, last_seq: i64, seq: i64) -> Vec<Behind> {
        vec![Behind { stand: stand(), stands, last_seq, seq }]
    }

    #[test]
    fn what_a_look_found_counts_until_the_next_one_and_for_a_while() {
        let stands = Stands::new("events".to_owned(), Vec::new());
        assert_eq!(stands.of("balances"), None);
        stands.keep(Instant::now(), behind(true, 9, 5));
        assert_eq!(stands.of("balances").map(|found| found[&2].clone()), Some(stand()));
        assert_eq!(stands.of("order-details"), None);
        let Some(long_ago) = Instant::now().checked_sub(KNOWN_FOR) else { return };
        stands.keep(long_ago, behind(true, 9, 5));
        assert_eq!(stands.of("balances"), None);
        stands.keep(Instant::now(), Vec::new());
        assert_eq!(stands.of("balances"), None);
    }

    #[test]
    fn a_stand_is_over_once_what_was_committed_until_it_went_on_is_shown() {
        let stands = Stands::new("events".to_owned(), Vec::new());
        let counts_after = |stands_now, last_seq, seq| {
            stands.keep(Instant::now(), behind(stands_now, last_seq, seq));
            stands.of("balances").is_some()
        };
        // Behind at the first look: whether it stood is not known.
        assert!(counts_after(false, 9, 5) && counts_after(false, 20, 8));
        assert!(!counts_after(false, 20, 9), "what came since is lag as ever");
        assert!(!counts_after(false, 30, 20));
        assert!(counts_after(true, 30, 20) && counts_after(true, 40, 20));
        assert!(counts_after(false, 50, 20) && counts_after(false, 60, 49));
        // Halted again on its way.
        assert!(counts_after(true, 70, 49) && counts_after(false, 80, 50) && counts_after(false, 90, 79));
        assert!(!counts_after(false, 90, 80));
    }
}
