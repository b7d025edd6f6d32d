//! The bounded hand-off between the consumer thread and one worker.
//!
//! The thread pushes while there is room; the worker takes whatever has gathered since its last
//! batch. So batches grow with the backlog and stay small without one, by themselves. The mailbox
//! also holds the claims: which partitions are ours, from which offset, under which epoch. A record
//! of a partition that is no longer claimed never leaves the mailbox.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::record::{Record, TopicPartition};

/// The right to consume one partition, as PostgreSQL granted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Fencing token: an effect under an older epoch is refused.
    pub epoch: i64,
    /// Offset of the next record to handle.
    pub next_offset: i64,
    /// Last sequence number applied; projections only.
    pub seq: i64,
}

/// What a worker takes: records in order per partition, and the claims they stand under.
#[derive(Debug, Default)]
pub struct Batch {
    pub records: Vec<Record>,
    pub claims: HashMap<TopicPartition, Claim>,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<Record>,
    bytes: usize,
    claims: HashMap<TopicPartition, Claim>,
    /// Ends of what holds no record behind a claim, and the claim.
    bare: HashMap<TopicPartition, (Claim, i64)>,
    closed: bool,
}

/// The hand-off. One thread pushes, one worker takes.
#[derive(Debug)]
pub struct Mailbox {
    state: Mutex<State>,
    filled: Notify,
    drained: Condvar,
    records_max: usize,
    bytes_max: usize,
}

impl Mailbox {
    /// A mailbox that holds `records_max` records and about `bytes_max` bytes, at most.
    pub fn new(records_max: usize, bytes_max: usize) -> Self {
        Self { state: Mutex::default(), filled: Notify::new(), drained: Condvar::new(), records_max, bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes what has gathered, within the bounds but at least one record; waits for the first.
    /// `None` when the consumer has stopped and nothing is left to do.
    pub async fn take(&self, records_max: usize, bytes_max: usize) -> Option<Batch> {
        loop {
            if let Some(batch) = self.try_take(records_max, bytes_max) {
                return Some(batch);
            }
            if self.lock().closed {
                return None;
            }
            self.filled.notified().await;
        }
    }

    /// As [`Mailbox::take`], without waiting.
    pub fn try_take(&self, records_max: usize, bytes_max: usize) -> Option<Batch> {
        let mut state = self.lock();
        let mut batch = Batch::default();
        let mut bytes = 0;
        while let Some(record) = state.records.front() {
            let weight = record.weight();
            if batch.records.len() == records_max || (bytes + weight > bytes_max && !batch.records.is_empty()) {
                break;
            }
            bytes += weight;
            let Some(record) = state.records.pop_front() else { break };
            state.bytes -= weight.min(state.bytes);
            if !batch.claims.contains_key(&record.source) {
                match state.claims.get(&record.source) {
                    Some(claim) => batch.claims.insert(record.source.clone(), claim.clone()),
                    None => continue,
                };
            }
            // Below the claim: fetched before the claim moved on.
            if batch.claims.get(&record.source).is_some_and(|claim| record.offset >= claim.next_offset) {
                batch.records.push(record);
            }
        }
        drop(state);
        self.drained.notify_all();
        (!batch.records.is_empty()).then_some(batch)
    }

    /// Waits until something has gathered, or a claim can be moved past what is no record; true unless the
    /// mailbox is closed and empty.
    pub async fn wait_filled(&self) -> bool {
        loop {
            {
                let state = self.lock();
                if !state.records.is_empty() || !state.bare.is_empty() {
                    return true;
                }
                if state.closed {
                    return false;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Records waiting.
    pub fn len(&self) -> usize {
        self.lock().records.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves a claim forward after its effect was committed. Ignored when the claim has changed.
    pub fn advance(&self, source: &TopicPartition, claim: &Claim) {
        let mut state = self.lock();
        if let Some(held) = state.claims.get_mut(source).filter(|held| held.epoch == claim.epoch) {
            *held = claim.clone();
        }
    }

    /// Tells the worker that nothing from the claim's offset up to `end` is a record.
    pub fn pass(&self, source: TopicPartition, claim: Claim, end: i64) {
        let mut state = self.lock();
        if !state.closed && state.claims.get(&source) == Some(&claim) {
            state.bare.insert(source, (claim, end));
            drop(state);
            self.filled.notify_one();
        }
    }

    /// The claims that can be moved past offsets without a record, and to where.
    pub fn take_passed(&self) -> HashMap<TopicPartition, (Claim, i64)> {
        let mut state = self.lock();
        let mut passed = std::mem::take(&mut state.bare);
        passed.retain(|source, (claim, _)| state.claims.get(source) == Some(claim));
        passed
    }

    /// The claims of partitions of which nothing waits.
    pub fn idle_claims(&self) -> HashMap<TopicPartition, Claim> {
        let state = self.lock();
        let mut idle = state.claims.clone();
        let mut last = None;
        for record in &state.records {
            // Records come in runs of one partition.
            if last.replace(&record.source) != Some(&record.source) {
                idle.remove(&record.source);
            }
        }
        idle
    }

    /// The claims held now.
    pub fn claims(&self) -> HashMap<TopicPartition, Claim> {
        self.lock().claims.clone()
    }

    /// Whether this claim is still the one held.
    pub fn holds(&self, source: &TopicPartition, epoch: i64) -> bool {
        self.lock().claims.get(source).is_some_and(|held| held.epoch == epoch)
    }

    pub(super) fn push(&self, records: Vec<Record>) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        for record in records {
            state.bytes += record.weight();
            state.records.push_back(record);
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Waits for room, at most `wait`; whether there is room.
    pub(super) fn wait_for_room(&self, wait: Duration) -> bool {
        let full = |state: &mut State| state.records.len() >= self.records_max || state.bytes >= self.bytes_max;
        let (mut state, _) = self
            .drained
            .wait_timeout_while(self.lock(), wait, |state| full(state) && !state.closed)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        !full(&mut state)
    }

    pub(super) fn grant(&self, source: TopicPartition, claim: Claim) {
        let mut state = self.lock();
        Self::forget(&mut state, &source);
        state.claims.insert(source, claim);
    }

    pub(super) fn revoke(&self, source: &TopicPartition) {
        let mut state = self.lock();
        Self::forget(&mut state, source);
        state.claims.remove(source);
    }

    /// Whether the partition is claimed, under any epoch.
    pub(super) fn claims_partition(&self, source: &TopicPartition) -> bool {
        self.lock().claims.contains_key(source)
    }

    /// Drops the claim if it is of `epoch`; whether it was.
    pub(super) fn revoke_epoch(&self, source: &TopicPartition, epoch: i64) -> bool {
        let mut state = self.lock();
        if state.claims.get(source).is_none_or(|held| held.epoch != epoch) {
            return false;
        }
        Self::forget(&mut state, source);
        state.claims.remove(source);
        true
    }

    /// Nothing more is handed out. The claims stay: a worker may be finishing its last batch.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.records.clear();
        state.bare.clear();
        state.bytes = 0;
        drop(state);
        self.drained.notify_all();
        self.filled.notify_one();
    }

    fn forget(state: &mut State, source: &TopicPartition) {
        state.records.retain(|record| record.source != *source);
        state.bytes = state.records.iter().map(Record::weight).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(partition: i32) -> TopicPartition {
        TopicPartition { topic: "t".into(), partition }
    }

    fn record(partition: i32, offset: i64) -> Record {
        Record::new(source(partition), offset, None, Some(vec![0; 1_000]))
    }

    fn claim(epoch: i64, next_offset: i64) -> Claim {
        Claim { epoch, next_offset, seq: 0 }
    }

    /// What a worker is handed: partitions and offsets.
    fn taken(mailbox: &Mailbox, records_max: usize, bytes_max: usize) -> Vec<(i32, i64)> {
        let batch = mailbox.try_take(records_max, bytes_max).unwrap_or_default();
        batch.records.iter().map(|record| (record.source.partition, record.offset)).collect()
    }

    #[test]
    fn a_record_is_handed_out_only_under_a_claim_and_from_its_offset_on() {
        let mailbox = Mailbox::new(100, usize::MAX);
        mailbox.grant(source(0), claim(1, 5));
        mailbox.push(vec![record(0, 4), record(1, 9), record(0, 5), record(0, 6)]);
        assert_eq!(taken(&mailbox, 100, usize::MAX), [(0, 5), (0, 6)]);
        mailbox.push(vec![record(0, 7)]);
        assert!(!mailbox.revoke_epoch(&source(0), 2), "another's epoch");
        assert!(mailbox.revoke_epoch(&source(0), 1));
        mailbox.push(vec![record(0, 8)]);
        assert_eq!(taken(&mailbox, 100, usize::MAX), []);
        // What was fetched under the claim before is fetched again under the next.
        mailbox.push(vec![record(0, 7)]);
        mailbox.grant(source(0), claim(2, 7));
        mailbox.push(vec![record(0, 7)]);
        assert_eq!(taken(&mailbox, 100, usize::MAX), [(0, 7)]);
    }

    #[test]
    fn a_claim_moves_only_under_its_own_epoch_and_past_what_is_no_record_only_as_it_was() {
        let mailbox = Mailbox::new(100, usize::MAX);
        mailbox.grant(source(0), claim(2, 5));
        mailbox.advance(&source(0), &claim(1, 50));
        assert_eq!(mailbox.claims()[&source(0)], claim(2, 5));
        mailbox.pass(source(0), claim(2, 4), 9);
        assert!(mailbox.take_passed().is_empty(), "it had moved on when that was found");
        mailbox.pass(source(0), claim(2, 5), 9);
        mailbox.advance(&source(0), &claim(2, 6));
        assert!(mailbox.take_passed().is_empty(), "it has moved on since");
        mailbox.pass(source(0), claim(2, 6), 9);
        assert_eq!(mailbox.take_passed(), HashMap::from([(source(0), (claim(2, 6), 9))]));
    }

    #[test]
    fn what_waits_and_what_is_taken_at_once_is_bounded_by_number_and_bytes() {
        let mailbox = Mailbox::new(4, 10_000);
        mailbox.grant(source(0), claim(1, 0));
        mailbox.push((0..3).map(|offset| record(0, offset)).collect());
        assert!(mailbox.wait_for_room(Duration::ZERO));
        mailbox.push(vec![record(0, 3)]);
        assert!(!mailbox.wait_for_room(Duration::ZERO), "as many as may wait");
        assert_eq!(taken(&mailbox, 2, usize::MAX), [(0, 0), (0, 1)]);
        assert_eq!(taken(&mailbox, 9, 1), [(0, 2)], "one at least");
        assert!(mailbox.wait_for_room(Duration::ZERO));
        mailbox.push(vec![Record::new(source(0), 4, None, Some(vec![0; 10_000]))]);
        assert!(!mailbox.wait_for_room(Duration::ZERO), "as many bytes as may");
        mailbox.revoke(&source(0));
        assert!(mailbox.wait_for_room(Duration::ZERO), "what is dropped takes no room");
    }

    #[tokio::test]
    async fn who_waits_for_a_record_hears_of_the_end() {
        let mailbox = std::sync::Arc::new(Mailbox::new(4, 10_000));
        mailbox.grant(source(0), claim(1, 0));
        let waits = tokio::spawn({
            let mailbox = mailbox.clone();
            async move { (mailbox.take(9, 9).await.is_some(), mailbox.take(9, 9).await.is_some()) }
        });
        tokio::task::yield_now().await;
        mailbox.push(vec![record(0, 0)]);
        while !mailbox.is_empty() {
            tokio::task::yield_now().await;
        }
        mailbox.push(Vec::new());
        mailbox.close();
        mailbox.push(vec![record(0, 1)]);
        let heard = tokio::time::timeout(Duration::from_secs(5), waits).await.expect("it is woken").unwrap();
        assert_eq!(heard, (true, false));
    }
}
