//! What each partition of each loop of this process is doing: pending, claimed, running or standing.
//!
//! Loops tell; status, probes and gauges read. One line of log a change, however often a loop says the same:
//! whoever tries again for hours tells it once, with reason and cure, and once more when it goes on. Knows no
//! database: what is told here is this process's own, gone with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

/// What a loop does with a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionState {
    /// Assigned to us, and not ours yet: the claim was not granted so far.
    Pending,
    /// Ours; where to go on is being found out.
    Claimed,
    /// Ours, and worked on.
    Running,
    /// It does not go on, for the reason told; looked at again by itself.
    Standing,
}

impl PartitionState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Claimed, Self::Running, Self::Standing];

    /// Lower case, as it is printed and kept.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Claimed => "claimed",
            Self::Running => "running",
            Self::Standing => "standing",
        }
    }
}

/// One partition of one loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionReport {
    /// `processor`, `relay`, `projection balances`.
    #[serde(rename = "loop")]
    pub loop_name: Arc<str>,
    pub topic: Arc<str>,
    pub partition: i32,
    pub state: PartitionState,
    /// When it entered this state. Another reason of the same state does not change it.
    pub since: Timestamp,
    /// The same moment, by the clock that never leaps.
    #[serde(skip)]
    pub entered: Instant,
    /// Why it stands, or why its claim is not granted.
    pub reason: Option<String>,
    /// What helps; none where only waiting does.
    pub cure: Option<String>,
}

type Key = (Arc<str>, Arc<str>, i32);

/// The states of all partitions of one process.
#[derive(Debug, Default)]
pub struct PartitionStates {
    states: Mutex<BTreeMap<Key, PartitionReport>>,
    /// Loops that had a partition once; as many as the process has loops.
    loops: Mutex<BTreeSet<Arc<str>>>,
}

/// One loop's handle.
#[derive(Debug, Clone)]
pub struct Partitions {
    states: Arc<PartitionStates>,
    loop_name: Arc<str>,
}

impl PartitionStates {
    /// The handle of one loop.
    pub fn of_loop(self: &Arc<Self>, loop_name: impl Into<Arc<str>>) -> Partitions {
        Partitions { states: self.clone(), loop_name: loop_name.into() }
    }

    /// Every partition, ordered by loop, topic and number.
    pub fn reports(&self) -> Vec<PartitionReport> {
        self.lock().values().cloned().collect()
    }

    /// The partition whose claim is not granted for the longest, where that is longer than `most`; for people.
    pub fn pending_longer_than(&self, most: Duration) -> Option<String> {
        let states = self.lock();
        let pending = states.values().filter(|report| report.state == PartitionState::Pending);
        let late = pending.filter(|report| report.entered.elapsed() > most).min_by_key(|report| report.entered)?;
        let PartitionReport { loop_name, topic, partition, reason, .. } = late;
        let seconds = late.entered.elapsed().as_secs();
        let reason = reason.as_deref().unwrap_or("no answer so far");
        Some(format!("{loop_name} waits for its claim of {topic}/{partition} for {seconds} s: {reason}"))
    }

    /// Sets the gauge of the partitions of each loop by state.
    pub fn publish(&self) {
        let mut counts: BTreeMap<(Arc<str>, PartitionState), f64> = BTreeMap::new();
        {
            let (states, mut loops) = (self.lock(), self.loops.lock().unwrap_or_else(PoisonError::into_inner));
            loops.extend(states.keys().map(|(loop_name, ..)| loop_name.clone()));
            // Also those without any now: a gauge that is not set again keeps what it said.
            for loop_name in loops.iter() {
                counts.extend(PartitionState::ALL.map(|state| ((loop_name.clone(), state), 0.0)));
            }
            for report in states.values() {
                *counts.entry((report.loop_name.clone(), report.state)).or_default() += 1.0;
            }
        }
        for ((loop_name, state), count) in counts {
            let labels = [("loop", loop_name.to_string()), ("state", state.name().to_owned())];
            metrics::gauge!("throughline_partitions", &labels).set(count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, PartitionReport>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partitions {
    /// Assigned, and not granted so far; `reason` where a try has failed.
    pub fn pending(&self, topic: &str, partition: i32, reason: Option<&str>) {
        self.enter(topic, partition, PartitionState::Pending, reason, None);
    }

    /// Ours; where to go on is being found out.
    pub fn claimed(&self, topic: &str, partition: i32) {
        self.enter(topic, partition, PartitionState::Claimed, None, None);
    }

    /// Worked on.
    pub fn running(&self, topic: &str, partition: i32) {
        self.enter(topic, partition, PartitionState::Running, None, None);
    }

    /// Stands: `reason` names what failed, `cure` the next step where a person can take one.
    pub fn standing(&self, topic: &str, partition: i32, reason: &str, cure: Option<&str>) {
        self.enter(topic, partition, PartitionState::Standing, Some(reason), cure);
    }

    /// Another's now.
    pub fn gone(&self, topic: &str, partition: i32) {
        let removed = self.states.lock().remove(&self.key(topic, partition));
        if removed.is_some_and(|report| report.state == PartitionState::Standing) {
            self.gauge(topic, partition, false);
        }
    }

    /// All of the loop's partitions are another's now.
    pub fn all_gone(&self) {
        let ours: Vec<Key> = self.states.lock().keys().filter(|(name, ..)| *name == self.loop_name).cloned().collect();
        ours.iter().for_each(|(_, topic, partition)| self.gone(topic, *partition));
    }

    fn key(&self, topic: &str, partition: i32) -> Key {
        (self.loop_name.clone(), topic.into(), partition)
    }

    fn enter(&self, topic: &str, partition: i32, state: PartitionState, reason: Option<&str>, cure: Option<&str>) {
        let key = self.key(topic, partition);
        let before = {
            let mut states = self.states.lock();
            let before = states.get(&key).map(|report| (report.state, report.since, report.entered));
            let (since, entered) = match before {
                Some((held, since, entered)) if held == state => (since, entered),
                _ => (Timestamp::now(), Instant::now()),
            };
            let (loop_name, topic) = (key.0.clone(), key.1.clone());
            let (reason, cure) = (reason.map(str::to_owned), cure.map(str::to_owned));
            let report = PartitionReport { loop_name, topic, partition, state, since, entered, reason, cure };
            states.insert(key, report);
            before.map(|(state, ..)| state)
        };
        if before == Some(state) {
            return;
        }
        let name = &*self.loop_name;
        match (before, state) {
            (_, PartitionState::Standing) => {
                let (reason, cure) = (reason.unwrap_or_default(), cure.unwrap_or("none needed: it goes on by itself"));
                tracing::error!(r#loop = name, topic, partition, reason, cure, "partition stands; others go on");
                self.gauge(topic, partition, true);
            }
            (Some(PartitionState::Standing), _) => {
                tracing::info!(r#loop = name, topic, partition, state = state.name(), "partition stands no longer");
                self.gauge(topic, partition, false);
            }
            _ => tracing::debug!(r#loop = name, topic, partition, state = state.name(), reason, "partition"),
        }
    }

    fn gauge(&self, topic: &str, partition: i32, stands: bool) {
        let labels =
            [("loop", self.loop_name.to_string()), ("topic", topic.to_owned()), ("partition", partition.to_string())];
        metrics::gauge!("throughline_partitions_standing", &labels).set(if stands { 1.0 } else { 0.0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_keeps_its_beginning_while_its_reason_changes() {
        let states = Arc::new(PartitionStates::default());
        let relay = states.of_loop("relay");
        relay.standing("t", 1, "no leader", None);
        let first = states.reports().remove(0);
        relay.standing("t", 1, "no leader yet", Some("start a broker"));
        let second = states.reports().remove(0);
        assert_eq!((first.since, second.reason.as_deref()), (second.since, Some("no leader yet")));
        relay.running("t", 1);
        let third = states.reports().remove(0);
        assert_eq!((third.state, third.reason), (PartitionState::Running, None));
        assert!(third.since >= second.since);
    }

    #[test]
    fn a_loop_forgets_its_own_partitions_only() {
        let states = Arc::new(PartitionStates::default());
        let (relay, processor) = (states.of_loop("relay"), states.of_loop("processor"));
        relay.running("t", 1);
        relay.running("t", 2);
        processor.running("t", 1);
        relay.gone("t", 2);
        relay.all_gone();
        let left: Vec<_> = states.reports().iter().map(|report| report.loop_name.clone()).collect();
        assert_eq!(left, ["processor".into()]);
    }
}
