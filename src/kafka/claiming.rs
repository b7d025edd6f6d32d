//! Claims partitions: asks Kafka what it holds of each, and its owner to take it over.
//!
//! A claim waits for Kafka and for PostgreSQL. It is made on a thread of its own, so that one that nobody answers (a
//! partition without a leader, a database that is away) holds up neither the polling nor another partition's claim,
//! and is tried again for as long as the assignment lasts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rdkafka::consumer::Consumer as _;

use super::claims::CLAIM_WAIT;
use super::committed;
use super::mailbox::Claim;
use super::membership::{Client, Membership};
use super::owner::{ClaimError, Committed};
use super::record::TopicPartition;
use crate::panics;

/// Claims of one round that are made at a time.
const THREADS_MAX: usize = 4;

/// Starts a round for the partitions whose turn it is.
pub(super) fn ask(membership: &Arc<Membership>) {
    let due = membership.claims.due();
    if due.is_empty() {
        return;
    }
    let ours = membership.clone();
    let round = move || {
        ask_all(&ours, &due);
        ours.claims.round_ends();
    };
    if let Err(error) = std::thread::Builder::new().name(format!("claims {}", membership.group)).spawn(round) {
        membership.claims.round_ends();
        membership.fail(format!("no thread for claims: {error}"));
    }
}

/// One round: what Kafka holds of all, then each claim on the next thread that is free.
fn ask_all(membership: &Membership, due: &[(TopicPartition, u64)]) {
    let Some(consumer) = membership.client() else { return };
    let sources: Vec<TopicPartition> = due.iter().map(|(source, _)| source.clone()).collect();
    let commits = match membership.read_committed_offsets {
        true => contained(|| committed::named(membership, &consumer, &sources)).and_then(|commits| commits),
        false => Ok(HashMap::new()),
    };
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((source, number)) = due.get(next.fetch_add(1, Ordering::Relaxed)) {
            let is_wanted = membership.claims.is_wanted(source, *number);
            if !is_wanted || !membership.is_running() || consumer.assignment_lost() {
                membership.claims.put_off(source, *number);
                continue;
            }
            let answer = match &commits {
                Ok(commits) => {
                    contained(|| claim(membership, &consumer, source, &commits.get(source).cloned().flatten()))
                        .unwrap_or_else(|reason| Err(ClaimError::Transient(reason)))
                }
                Err(reason) => Err(ClaimError::Transient(reason.clone())),
            };
            settle(membership, source, *number, answer);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..due.len().min(THREADS_MAX) {
            let thread = std::thread::Builder::new().name(format!("claim {}", membership.group));
            if thread.spawn_scoped(scope, work).is_err() {
                // No thread to be had: this one does it.
                work();
            }
        }
    });
}

/// What an answer changes, and who is told.
fn settle(membership: &Membership, source: &TopicPartition, number: u64, answer: Result<Claim, ClaimError>) {
    let (claims, group) = (&membership.claims, &membership.group);
    match answer {
        Ok(claim) => {
            if let Some((tries, late)) = claims.granted(source, number, claim) {
                tracing::info!(group, partition = %source, tries, seconds = late.as_secs(), "claim granted at last");
            }
        }
        Err(ClaimError::Transient(reason)) => {
            let Some(failed) = claims.failed(source, number) else { return };
            metrics::counter!("throughline_claim_retries_total", "group" => group.clone()).increment(1);
            if failed.is_late {
                tracing::warn!(group, partition = %source, tries = failed.tries, reason,
                    "claim not granted; tried again until it is");
            }
            if !failed.halted {
                membership.partitions.pending(&source.topic, source.partition, Some(&reason));
            }
        }
        Err(ClaimError::Halt { reason, cure }) => {
            if claims.is_wanted(source, number) {
                membership.halt(source, &reason, &cure);
                claims.wake();
            }
        }
    }
}

/// # Errors
/// What a panic said.
fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    panics::contain(work).map_err(|panic| format!("claiming panicked: {panic}"))
}

/// One try.
fn claim(
    membership: &Membership,
    consumer: &Client,
    source: &TopicPartition,
    committed: &Committed,
) -> Result<Claim, ClaimError> {
    let watermarks = || {
        consumer
            .fetch_watermarks(&source.topic, source.partition, CLAIM_WAIT)
            .map_err(|error| ClaimError::Transient(format!("cannot read the offsets kept: {error}")))
    };
    let claim = membership.owner.claim(source, committed.clone(), watermarks()?)?;
    // Read again: until the claim, the previous owner went on, past what was the end before.
    let (first, next) = watermarks()?;
    if (first..=next).contains(&claim.next_offset) {
        return Ok(claim);
    }
    // Fetching there would fail, or be answered with records of another life of the topic.
    Err(ClaimError::Halt {
        reason: format!(
            "offset {} of {source} is not there any more: Kafka keeps {first} to {next}. Records were dropped by \
             retention, or the topic was created again.",
            claim.next_offset
        ),
        cure: "It is claimed again by itself; if it stays, `throughline topics check` tells of the topic.".into(),
    })
}
