//! What this program would decide of commands that were decided before: each on the state that its stream had then.
//!
//! Admitted and decided as by the processor, one by one, and nothing is written. The store is authoritative for what was
//! decided and what came of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use super::Payload;
use super::batch::Source;
use super::intake::{Ask, COMMAND_FAILED, Incoming, Intake};
use super::outcome::IdScope;
use crate::engine::{Aggregate, BoundedContext, EventCodec as _};
use crate::kafka::Record;
use crate::panics;
use crate::settings::Settings;
use crate::store::commands::{self, StoredOutcome};
use crate::store::events::{self, StoredEvent};
use crate::store::{Destination, StoreError};

/// Streams whose history is asked for at once.
const ASKED_MAX: usize = 16;

/// How a command is decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ruling {
    pub accepted: bool,
    /// Of a refusal.
    pub code: Option<String>,
    /// Of a refusal, for people; two that differ in it alone are the same.
    pub reason: Option<String>,
    /// The public JSON of what happens.
    pub events: Vec<Value>,
}

impl Ruling {
    fn refused(code: &str, reason: impl Into<String>) -> Self {
        Self { accepted: false, code: Some(code.to_owned()), reason: Some(reason.into()), events: Vec::new() }
    }

    fn accepted(events: Vec<Value>) -> Self {
        Self { accepted: true, code: None, reason: None, events }
    }

    fn is_as(&self, other: &Self) -> bool {
        (self.accepted, &self.code, &self.events) == (other.accepted, &other.code, &other.events)
    }

    /// In a few words: the code, or the types of the events.
    pub fn told(&self) -> String {
        let types: Vec<&str> = self.events.iter().filter_map(|event| event["type"].as_str()).collect();
        match &self.code {
            Some(code) => code.clone(),
            None if types.is_empty() => "accepted, nothing happens".to_owned(),
            None => types.join(", "),
        }
    }
}

/// A command that would be decided otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    pub stream_id: Uuid,
    pub command_id: Uuid,
    pub decided_at: Timestamp,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// The state that it is decided on is that after this version.
    pub at_version: i64,
    pub was: Ruling,
    pub would: Ruling,
}

/// What came of some commands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Retried {
    /// Decided again.
    pub checked: u64,
    /// Not decided again, by the reason.
    pub skipped: BTreeMap<&'static str, u64>,
    pub changes: Vec<Change>,
}

impl Retried {
    fn skip(&mut self, why: &'static str) {
        *self.skipped.entry(why).or_default() += 1;
    }
}

/// A context's rules with its event type erased; implemented once, for each of them.
pub trait Retrial: Send + Sync {
    /// Decides `records` of one commands partition again. `namespace` stands for their topic in the ids of commands
    /// that carry none.
    fn retry<'a>(
        &'a self,
        client: &'a Client,
        destination: &'a Destination,
        records: Vec<Record>,
        namespace: &'a str,
    ) -> BoxFuture<'a, Result<Retried, StoreError>>;
}

/// The rules of a context.
pub fn retrial<C: BoundedContext>(settings: &Settings, codec: Arc<C::Codec>) -> Box<dyn Retrial> {
    Box::new(Rules::<C> { codec, command_bytes_max: settings.processor.command_bytes_max })
}

struct Rules<C: BoundedContext> {
    codec: Arc<C::Codec>,
    command_bytes_max: usize,
}

/// A command with its outcome.
struct Case<P> {
    incoming: Incoming<P>,
    outcome: StoredOutcome,
}

impl<C: BoundedContext> Retrial for Rules<C> {
    fn retry<'a>(
        &'a self,
        client: &'a Client,
        destination: &'a Destination,
        records: Vec<Record>,
        namespace: &'a str,
    ) -> BoxFuture<'a, Result<Retried, StoreError>> {
        Box::pin(self.retry_all(client, destination, records, namespace))
    }
}

impl<C: BoundedContext> Rules<C> {
    async fn retry_all(
        &self,
        client: &Client,
        destination: &Destination,
        records: Vec<Record>,
        namespace: &str,
    ) -> Result<Retried, StoreError> {
        let mut retried = Retried::default();
        let cases = self.cases(client, destination, records, namespace, &mut retried).await?;
        let mut of_stream: BTreeMap<(i32, Uuid), Vec<Case<Payload<C>>>> = BTreeMap::new();
        for case in cases {
            let key = (case.incoming.destination, case.incoming.stream_id);
            of_stream.entry(key).or_default().push(case);
        }
        let histories = stream::iter(of_stream).map(|((partition, stream_id), cases)| async move {
            let history = match stream_id.is_nil() {
                true => Vec::new(),
                false => events::of_stream(client, destination, partition, stream_id).await?,
            };
            Ok::<_, StoreError>((cases, history))
        });
        let mut histories = std::pin::pin!(histories.buffered(ASKED_MAX));
        while let Some((cases, history)) = histories.try_next().await? {
            self.stream(cases, &history, &mut retried);
        }
        retried.changes.sort_by_key(|change| change.offset);
        Ok(retried)
    }

    /// The commands that have an outcome of their own.
    async fn cases(
        &self,
        client: &Client,
        destination: &Destination,
        records: Vec<Record>,
        namespace: &str,
        retried: &mut Retried,
    ) -> Result<Vec<Case<Payload<C>>>, StoreError> {
        let intake = Intake { partitions: destination.partitions, command_bytes_max: self.command_bytes_max };
        let admit = |record: Record| {
            let place = record.source.clone();
            let source = Source { lane: 0, place, epoch: 0, expected: 0, next: 0, out: false, lost: false };
            intake.admit::<C>(record, 0, &source, namespace)
        };
        let incoming: Vec<_> = records.into_iter().map(admit).collect();
        let ids: Vec<Uuid> = incoming.iter().map(|one| one.command_id).collect();
        let found = commands::outcomes(client, &destination.name, &ids).await?;
        let mut outcomes: HashMap<IdScope, StoredOutcome> = HashMap::new();
        for outcome in found {
            let StoredOutcome { partition, stream_id, command_id, .. } = outcome;
            // The latest counts: one that an operator had decided anew has two.
            outcomes.insert(IdScope { partition, stream_id, command_id }, outcome);
        }
        let mut cases = Vec::new();
        for one in incoming {
            // A second copy of a command has the same outcome: the first is taken, the others are none.
            match outcomes.get(&one.scope()) {
                None => retried.skip("without an outcome: not decided yet, or it is not kept any more"),
                Some(outcome) if !is_of(&one, outcome) => retried.skip("under the id of another command"),
                Some(_) => cases.extend(outcomes.remove(&one.scope()).map(|outcome| Case { incoming: one, outcome })),
            }
        }
        Ok(cases)
    }

    /// Decides the commands of one stream, each on the state that it was decided on.
    fn stream(&self, cases: Vec<Case<Payload<C>>>, history: &[StoredEvent], retried: &mut Retried) {
        let mut cases: Vec<(i64, Case<Payload<C>>)> =
            cases.into_iter().map(|case| (version_before(&case.outcome, history), case)).collect();
        cases.sort_by_key(|(version, case)| (*version, case.incoming.record.offset));
        let (mut state, mut reached, mut applied) = (C::Aggregate::default(), 0, history.iter());
        for (version, case) in cases {
            while reached < version {
                let next = applied.next().map(|event| self.codec.decode(&event.payload));
                let Some(Ok(event)) = next else {
                    retried.skip("of a stream that cannot be read");
                    break;
                };
                state.evolve(&event);
                reached += 1;
            }
            if reached < version {
                continue;
            }
            let Some(was) = self.was(&case, history) else {
                retried.skip("of a stream that cannot be read");
                continue;
            };
            let would = self.would(&case.incoming, &state, version);
            retried.checked += 1;
            if !was.is_as(&would) {
                let Incoming { stream_id, command_id, record, .. } = case.incoming;
                retried.changes.push(Change {
                    stream_id,
                    command_id,
                    decided_at: case.outcome.decided_at,
                    topic: record.source.topic.to_string(),
                    partition: record.source.partition,
                    offset: record.offset,
                    at_version: version,
                    was,
                    would,
                });
            }
        }
    }

    /// What was decided; none where what happened cannot be read.
    fn was(&self, case: &Case<Payload<C>>, history: &[StoredEvent]) -> Option<Ruling> {
        let StoredOutcome { accepted, code, reason, .. } = &case.outcome;
        if !accepted {
            return Some(Ruling::refused(code.as_deref().unwrap_or_default(), reason.clone().unwrap_or_default()));
        }
        let events = own(&case.outcome, history).map(|event| self.codec.decode(&event.payload).ok());
        let events: Option<Vec<Value>> = events.map(|event| Some(C::describe_event(&event?))).collect();
        events.map(Ruling::accepted)
    }

    fn would(&self, command: &Incoming<Payload<C>>, state: &C::Aggregate, version: i64) -> Ruling {
        match &command.ask {
            Ask::Refuse { code, reason, .. } => Ruling::refused(code, reason.as_str()),
            Ask::Decide { expected_version: Some(expected), .. } if *expected != version => {
                Ruling::refused("VERSION_MISMATCH", format!("expected version {expected}, the stream is at {version}"))
            }
            Ask::Decide { payload, .. } => match panics::contain(|| state.decide(payload)) {
                Ok(Ok(events)) => Ruling::accepted(events.iter().map(C::describe_event).collect()),
                Ok(Err(refusal)) => Ruling::refused(refusal.code, refusal.reason),
                Err(panic) => Ruling::refused(COMMAND_FAILED, format!("deciding it panicked: {panic}")),
            },
        }
    }
}

/// Whether the outcome is that of this very command.
fn is_of<P>(command: &Incoming<P>, outcome: &StoredOutcome) -> bool {
    outcome.payload_hash.as_slice().try_into().is_ok_and(|hash| command.is_what_was(&hash))
        // Whether a record is a command at all may be decided otherwise now; it has another fingerprint then.
        || outcome.version.is_none()
}

/// The events of a command.
fn own<'h>(outcome: &StoredOutcome, history: &'h [StoredEvent]) -> impl Iterator<Item = &'h StoredEvent> {
    let id = outcome.command_id;
    history.iter().filter(move |event| event.command_id == id)
}

/// The version of the stream before a command was decided.
fn version_before(outcome: &StoredOutcome, history: &[StoredEvent]) -> i64 {
    match (own(outcome, history).next(), outcome.version) {
        (Some(first), _) if outcome.accepted => first.version - 1,
        (_, Some(version)) => version,
        // Refused before anything was loaded: by the time, since nothing else tells.
        (_, None) => history.iter().take_while(|event| event.recorded_at <= outcome.decided_at).count() as i64,
    }
}
