//! Decides a batch in order over in-memory state. No I/O.
//!
//! Commands of one stream coalesce: each sees what the one before it did. A command id that has an outcome in its
//! stream, from the store or from earlier in the batch, has no second effect there. In other streams it is as good as new.

use std::borrow::Cow;
use std::collections::HashMap;

use jiff::Timestamp;
use uuid::Uuid;

use crate::crash::is_sabotaged;
use crate::engine::{Aggregate, BoundedContext, Encoded, EventCodec, ids};
use crate::panics;

use super::batch::Batch;
use super::cache::Cached;
use super::intake::{Ask, COMMAND_FAILED, Incoming, clean_reason};
use super::load::Loaded;
use super::outcome::{IdScope, Outcome};
use super::retry::BatchFailure;
use super::{Payload, Scope};

/// An event to append.
pub(super) struct NewEvent {
    /// Index of its command in the batch.
    pub command: usize,
    pub seq: i64,
    pub version: i64,
    pub event_id: Uuid,
    pub encoded: Encoded,
}

/// A record for the results topic.
pub(super) struct NewResult {
    pub command: usize,
    pub seq: i64,
    pub message_id: Uuid,
    pub value: Vec<u8>,
}

/// Everything that one transaction writes.
pub(super) struct Decided<A> {
    pub now: Timestamp,
    pub events: Vec<NewEvent>,
    pub results: Vec<NewResult>,
    /// First outcomes of their command ids in their streams.
    pub outcomes: Vec<Outcome>,
    /// Commands to park, as indices, with code and reason.
    pub parked: Vec<(usize, &'static str, String)>,
    /// Last sequence numbers that moved, by (partition, topic id).
    pub counters: HashMap<(i32, i16), i64>,
    /// States after the batch.
    pub streams: HashMap<Uuid, Cached<A>>,
    /// Commands by outcome code, for metrics.
    pub tally: HashMap<Cow<'static, str>, u64>,
}

/// How one command ended.
struct Verdict {
    accepted: bool,
    code: Option<Cow<'static, str>>,
    reason: Option<String>,
    version: Option<i64>,
    seq: Option<i64>,
}

impl Verdict {
    fn refused(code: &'static str, reason: String, version: Option<i64>) -> Self {
        Self { accepted: false, code: Some(code.into()), reason: Some(reason), version, seq: None }
    }
}

/// Decides every live command of the batch.
///
/// # Errors
/// [`BatchFailure::Command`] names a command that has to be given up before the batch can be decided.
pub(super) fn decide<C: BoundedContext>(
    scope: &Scope<C>,
    batch: &Batch<Payload<C>>,
    loaded: Loaded<C::Aggregate>,
) -> Result<Decided<C::Aggregate>, BatchFailure> {
    let commands = batch.commands.len();
    let mut desk = Desk {
        scope,
        last_seq: loaded.last_seq,
        known: loaded.outcomes,
        fresh: HashMap::with_capacity(commands),
        decided: Decided {
            now: loaded.now,
            events: Vec::with_capacity(commands),
            results: Vec::new(),
            outcomes: Vec::with_capacity(commands),
            parked: Vec::new(),
            counters: HashMap::new(),
            streams: loaded.streams,
            tally: HashMap::new(),
        },
    };
    for (index, command) in batch.live() {
        desk.handle(index, command)?;
    }
    Ok(desk.decided)
}

struct Desk<'a, C: BoundedContext> {
    scope: &'a Scope<C>,
    last_seq: HashMap<(i32, i16), i64>,
    /// Outcomes of earlier batches.
    known: HashMap<IdScope, Outcome>,
    /// Outcomes of this batch, as indices.
    fresh: HashMap<IdScope, usize>,
    decided: Decided<C::Aggregate>,
}

impl<C: BoundedContext> Desk<'_, C> {
    fn handle(&mut self, index: usize, command: &Incoming<Payload<C>>) -> Result<(), BatchFailure> {
        let scope = command.scope();
        let first = match self.fresh.get(&scope) {
            Some(place) => Some(&self.decided.outcomes[*place]),
            None => self.known.get(&scope),
        };
        let first = first.filter(|_| !is_sabotaged("no_dedupe"));
        if let Some(first) = first.cloned() {
            self.repeat(index, command, first);
            return Ok(());
        }
        let verdict = match &command.ask {
            Ask::Refuse { code, reason, park } => {
                if *park && !is_sabotaged("poison_dropped") {
                    self.decided.parked.push((index, code, reason.clone()));
                }
                Verdict::refused(code, reason.clone(), None)
            }
            Ask::Decide { payload, expected_version } => self.decide(index, command, payload, *expected_version)?,
        };
        let outcome = self.outcome(command, verdict);
        if !outcome.accepted || command.reply_to.is_some() {
            self.publish(index, command, &outcome, result_id::<C>(command));
        }
        let code = outcome.code.clone().unwrap_or(Cow::Borrowed("ACCEPTED"));
        *self.decided.tally.entry(code).or_default() += 1;
        if is_sabotaged("outcome_dropped") && command.command_id.as_u128().is_multiple_of(50) {
            return Ok(());
        }
        self.fresh.insert(scope, self.decided.outcomes.len());
        self.decided.outcomes.push(outcome);
        Ok(())
    }

    /// A command id that already has an outcome in its stream: the same command gets the same answer, another one is
    /// refused, and the first outcome stays the one of this id.
    fn repeat(&mut self, index: usize, command: &Incoming<Payload<C>>, first: Outcome) {
        const CODE: &str = "COMMAND_ID_REUSED";
        if command.is_what_was(&first.payload_hash) {
            *self.decided.tally.entry(Cow::Borrowed("DUPLICATE")).or_default() += 1;
            if command.reply_to.is_some() {
                self.publish(index, command, &first, result_id::<C>(command));
            }
            return;
        }
        *self.decided.tally.entry(Cow::Borrowed(CODE)).or_default() += 1;
        if let Ask::Refuse { code, reason, park: true } = &command.ask {
            // No stream tells of it: reused or not, its bytes are kept.
            self.decided.parked.push((index, code, reason.clone()));
        }
        let reason = format!("command id {} was used before, with another payload", command.command_id);
        tracing::warn!(command_id = %command.command_id, stream_id = %command.stream_id,
            correlation_id = command.correlation_id, "command id reused with another payload; refused");
        let outcome = self.outcome(command, Verdict::refused(CODE, reason, None));
        let place = &command.record.source;
        // An id of its own: the record is not the first outcome's.
        let message_id = ids::command_id_of_record(&place.topic, place.partition, command.record.offset);
        self.publish(index, command, &outcome, message_id);
    }

    fn decide(
        &mut self,
        index: usize,
        command: &Incoming<Payload<C>>,
        payload: &Payload<C>,
        expected_version: Option<i64>,
    ) -> Result<Verdict, BatchFailure> {
        let unloaded = || BatchFailure::World(format!("stream {} was not loaded", command.stream_id));
        let stream = self.decided.streams.get_mut(&command.stream_id).ok_or_else(unloaded)?;
        if let Some(expected) = expected_version.filter(|expected| *expected != stream.version) {
            let reason = format!("expected version {expected}, the stream is at version {}", stream.version);
            return Ok(Verdict::refused("VERSION_MISMATCH", reason, Some(stream.version)));
        }
        // Deciding takes the state by reference: a panic leaves it as it was.
        let events = match panics::contain(|| stream.state.decide(payload)) {
            Ok(Ok(events)) => events,
            Ok(Err(refusal)) => {
                return Ok(Verdict::refused(refusal.code, clean_reason(&refusal.reason), Some(stream.version)));
            }
            Err(panic) => {
                let reason = clean_reason(&format!("deciding it panicked: {panic}"));
                let version = stream.version;
                self.decided.parked.push((index, COMMAND_FAILED, reason.clone()));
                return Ok(Verdict::refused(COMMAND_FAILED, reason, Some(version)));
            }
        };
        if is_sabotaged("event_dropped") && command.command_id.as_u128().is_multiple_of(50) {
            return Ok(Verdict { accepted: true, code: None, reason: None, version: Some(stream.version), seq: None });
        }
        let encoded: Result<Vec<Encoded>, _> = events.iter().map(|event| encode(self.scope, event)).collect();
        let encoded =
            encoded.map_err(|reason| BatchFailure::Command(index, format!("its event cannot be written: {reason}")))?;
        let evolved = panics::contain(|| events.iter().for_each(|event| stream.state.evolve(event)));
        // The state may be half changed: the batch is loaded anew, without this command.
        evolved.map_err(|panic| BatchFailure::Command(index, format!("applying its event panicked: {panic}")))?;
        let counter = (command.destination, self.scope.events.id);
        let last_seq = self.last_seq.entry(counter).or_default();
        let mut seq = None;
        for encoded in encoded {
            *last_seq += 1;
            stream.version += 1;
            seq = Some(*last_seq);
            self.decided.counters.insert(counter, *last_seq);
            let event_id = match is_sabotaged("event_id_without_stream") {
                true => ids::event_id(C::NAME, Uuid::nil(), 0, command.command_id),
                false => ids::event_id(C::NAME, command.stream_id, stream.version, command.command_id),
            };
            let event = NewEvent { command: index, seq: *last_seq, version: stream.version, event_id, encoded };
            self.decided.events.push(event);
        }
        Ok(Verdict { accepted: true, code: None, reason: None, version: Some(stream.version), seq })
    }

    fn outcome(&self, command: &Incoming<Payload<C>>, verdict: Verdict) -> Outcome {
        Outcome {
            command_id: command.command_id,
            stream_id: command.stream_id,
            payload_hash: command.payload_hash,
            accepted: verdict.accepted,
            code: verdict.code,
            reason: verdict.reason,
            version: verdict.version,
            partition: command.destination,
            seq: verdict.seq,
            correlation_id: command.correlation_id.clone(),
            decided_at: self.decided.now,
        }
    }

    fn publish(&mut self, index: usize, command: &Incoming<Payload<C>>, outcome: &Outcome, message_id: Uuid) {
        let counter = (command.destination, self.scope.results.id);
        let seq = self.last_seq.entry(counter).or_default();
        *seq += 1;
        self.decided.counters.insert(counter, *seq);
        let value = outcome.json(C::STREAM_ID_FIELD);
        self.decided.results.push(NewResult { command: index, seq: *seq, message_id, value });
    }
}

fn result_id<C: BoundedContext>(command: &Incoming<Payload<C>>) -> Uuid {
    ids::result_id(C::NAME, command.stream_id, command.command_id)
}

/// The stored form of an event. One that no record can carry would be appended and never published,
/// and its partition would stand still: it has to be found before it is written.
fn encode<C: BoundedContext>(scope: &Scope<C>, event: &<C::Aggregate as Aggregate>::Event) -> Result<Encoded, String> {
    let encoded = scope.codec.encode(event).map_err(|error| error.to_string())?;
    match encoded.bytes.len() {
        bytes if bytes > scope.event_bytes_max => Err(format!(
            "{} would have {bytes} bytes, topics.event_bytes_max allows {}",
            encoded.event_type, scope.event_bytes_max
        )),
        _ => Ok(encoded),
    }
}
