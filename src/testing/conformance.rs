//! What the pipeline takes for granted of a plain context, held on histories that its author tells.
//!
//! Pure: no services, no clock. The processor, the codec and the snapshots rely on each of these in silence.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::avro::{Catalogue, SchemaIds, lock};
use crate::engine::{Aggregate, BoundedContext, Encoded, EventCodec as _};
use crate::plain::{Plain, PlainCodec, PlainContext};

type CommandOf<P> = <<P as PlainContext>::Aggregate as Aggregate>::Command;

/// Holds `P` against what the pipeline takes for granted, along `histories`: the commands of one stream each, in
/// order. Refused ones belong there, too.
///
/// - Schemas, upcasters and lock fit each other.
/// - A command is read back from its JSON as it was.
/// - Deciding is a function: the same command on the same state gives the same answer.
/// - An event is read back from its bytes, and from its JSON, as it was, and has a schema.
/// - A state is read back from its snapshot as it was.
/// - Every type of event happens somewhere: what no history reaches is not held.
///
/// ```
/// # use garde::Validate;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// use throughline::avro::{Published, Schemas, Upcasters};
/// use throughline::engine::{Aggregate, Decision};
/// use throughline::plain::PlainContext;
///
/// #[derive(Debug, Clone, Serialize, Deserialize, Validate, JsonSchema)]
/// enum Command {
///     Count { #[garde(range(min = 1))] by: i64 },
/// }
///
/// #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
/// enum Event {
///     Counted { by: i64 },
/// }
///
/// #[derive(Debug, Clone, Default, Serialize, Deserialize)]
/// struct Counter {
///     total: i64,
/// }
///
/// impl Aggregate for Counter {
///     type Command = Command;
///     type Event = Event;
///     const SNAPSHOT_VERSION: i16 = 1;
///
///     fn decide(&self, Command::Count { by }: &Command) -> Decision<Event> {
///         Ok(vec![Event::Counted { by: *by }])
///     }
///
///     fn evolve(&mut self, Event::Counted { by }: &Event) {
///         self.total += by;
///     }
/// }
///
/// struct Counters;
///
/// impl PlainContext for Counters {
///     type Aggregate = Counter;
///     const NAME: &'static str = "counters";
///     const NAMESPACE: &'static str = "acme.counters";
///     const STREAM_ID_FIELD: &'static str = "counterId";
///     const SCHEMAS: Schemas = Schemas {
///         published: &[Published {
///             event_type: "Counted",
///             version: 1,
///             definition: r#"{"type": "record", "name": "Counted", "namespace": "acme.counters",
///                             "fields": [{"name": "by", "type": "long"}]}"#,
///         }],
///         upcasters: || Upcasters::new(&[]),
///         lock: "Counted 1 8943542684bde5b2e034c66cecd7315ffe635b9f48afb1908d042994c56fb53e",
///     };
/// }
/// throughline::testing::conforms::<Counters>([vec![Command::Count { by: 7 }]]);
/// ```
///
/// # Panics
/// At the first that does not hold, with what to do.
#[track_caller]
pub fn conforms<P: PlainContext>(histories: impl IntoIterator<Item = Vec<CommandOf<P>>>) {
    let schemas = P::SCHEMAS;
    let catalogue = Catalogue::new(&format!("{}-events", P::NAME), P::NAMESPACE, schemas.published)
        .unwrap_or_else(|error| panic!("the schemas of {}: {error}", P::NAME));
    let problems = lock::check(&catalogue, &(schemas.upcasters)(), schemas.lock);
    assert!(problems.is_empty(), "the schemas of {}: {}", P::NAME, told(&problems));
    let codec = Plain::<P>::codec(&SchemaIds::in_order(&catalogue)).unwrap_or_else(|error| panic!("{error:#}"));
    let mut seen = BTreeSet::new();
    for history in histories {
        let mut state = P::Aggregate::default();
        for command in history {
            reads_back::<P>(&command);
            let decided = state.decide(&command);
            assert_eq!(decided, state.decide(&command), "decided twice, {command:?} gave two answers on {state:?}");
            for event in decided.unwrap_or_default() {
                seen.insert(keeps::<P>(&codec, &event));
                state.evolve(&event);
                snapshots(&state);
            }
        }
    }
    let unseen: Vec<&str> =
        schemas.published.iter().map(|one| one.event_type).filter(|name| !seen.contains(name)).collect();
    assert!(unseen.is_empty(), "no history comes to {}: add a command that leads there", unseen.join(", "));
}

fn told(problems: &[impl ToString]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A command as any client sends it.
#[track_caller]
fn reads_back<P: PlainContext>(command: &CommandOf<P>) {
    let meaning = |command: &CommandOf<P>| {
        let mut bytes = Vec::new();
        Plain::<P>::write_meaning(command, &mut bytes);
        bytes
    };
    let (id, stream) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut sent = crate::plain::described(command);
    let Some(fields) = sent.as_object_mut() else { panic!("{command:?} is no variant of an enum") };
    fields.insert(P::STREAM_ID_FIELD.into(), json!(stream));
    let read = Plain::<P>::parse_command(sent.to_string().as_bytes(), id)
        .unwrap_or_else(|error| panic!("{sent} is not read: {}", error.reason));
    assert_eq!((read.meta.command_id, read.meta.stream_id), (id, stream), "{sent}");
    assert!(meaning(&read.payload) == meaning(command), "{command:?} is read back as {:?}", read.payload);
}

/// Reads an event back from both its forms; its type.
#[track_caller]
fn keeps<P: PlainContext>(codec: &PlainCodec<P>, event: &<P::Aggregate as Aggregate>::Event) -> &'static str {
    let Encoded { event_type, bytes, .. } =
        codec.encode(event).unwrap_or_else(|error| panic!("{event:?} is not written: {error}"));
    let read = codec.decode(&bytes).unwrap_or_else(|error| panic!("{event:?} is not read back: {error}"));
    assert_eq!(&read, event, "read back from its bytes");
    let shown: Value = Plain::<P>::describe_event(event);
    let read = crate::plain::undescribed(&shown).unwrap_or_else(|| panic!("{shown} is not read back"));
    assert_eq!(event, &read, "read back from its JSON");
    event_type
}

#[track_caller]
fn snapshots<A: Aggregate>(state: &A) {
    let kept = serde_json::to_value(state).unwrap_or_else(|error| panic!("{state:?} makes no snapshot: {error}"));
    let read: A = serde_json::from_value(kept.clone()).unwrap_or_else(|error| panic!("{kept} is no state: {error}"));
    assert_eq!(serde_json::to_value(&read).ok(), Some(kept), "the state is another one after its snapshot");
}
