//! Contexts of plain Rust types: what an author writes by default. Serde carries commands, events and state.
//!
//! Commands are JSON objects `{"type": …, "commandId": …, STREAM_ID_FIELD: …, fields…}` and the variants of one
//! enum; events are the variants of another and Avro records of the same names. Ids are read by one rule for all.
//! A context that is tuned by hand implements [`BoundedContext`] itself. Schema files stay the authority on shapes.

mod codec;
mod command;
mod history_table;
mod reads;
mod routes;
mod shapes;
mod state_table;

use std::marker::PhantomData;

use garde::Validate;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use uuid::Uuid;

pub use codec::{PlainCodec, PlainCodecError};
pub use history_table::HistoryTable;
pub use routes::Routes;
pub use state_table::StateTable;

use crate::avro::{SchemaIds, Schemas};
use crate::engine::{Aggregate, BoundedContext, Command, InvalidCommand, ReadModel};

/// A context whose commands and events are enums with the default representation of serde.
///
/// `garde` judges the bounds of a command's fields before anything is loaded; what the aggregate allows is its own
/// business. `type` is the name of the variant wherever JSON is shown, so that no field is called that. Fields that no
/// variant knows are refused where the enum says `#[serde(deny_unknown_fields)]`.
pub trait PlainContext: Send + Sync + 'static {
    /// Its state and its rules.
    type Aggregate: Aggregate<
            Command: Serialize + DeserializeOwned + Validate<Context = ()> + JsonSchema,
            Event: Serialize + DeserializeOwned,
        >;

    /// Prefix of its topics and groups: `bank` gives `bank-commands`, `bank-events`.
    const NAME: &'static str;
    /// Name space of its events' types, such as `acme.bank`.
    const NAMESPACE: &'static str;
    /// What its JSON calls the id of a stream, such as `accountId`.
    const STREAM_ID_FIELD: &'static str;
    /// All that it ever published.
    const SCHEMAS: Schemas;
}

/// The [`BoundedContext`] of a [`PlainContext`].
pub struct Plain<P>(PhantomData<P>);

impl<P: PlainContext> Plain<P> {
    /// Its codec, for [`crate::app::Context::new`].
    ///
    /// # Errors
    /// A type of event has no schema, or the schemas are at fault.
    pub fn codec(ids: &SchemaIds) -> anyhow::Result<PlainCodec<P>> {
        Ok(PlainCodec::new(ids)?)
    }

    /// Every command by its type, as the commands topics take it: a JSON schema.
    pub fn command_shapes() -> Vec<(String, Value)> {
        let shape = |(name, fields): (String, Value)| {
            let shape = shapes::command(&name, P::STREAM_ID_FIELD, fields);
            (name, shape)
        };
        shapes::variants::<<P::Aggregate as Aggregate>::Command>().into_iter().map(shape).collect()
    }

    /// What became of a command, as the results topic tells it: a JSON schema.
    pub fn outcome_shape() -> Value {
        shapes::outcome(P::STREAM_ID_FIELD)
    }
}

impl<P: PlainContext> BoundedContext for Plain<P> {
    type Aggregate = P::Aggregate;
    type Codec = PlainCodec<P>;

    const NAME: &'static str = P::NAME;
    const NAMESPACE: &'static str = P::NAMESPACE;
    const STREAM_ID_FIELD: &'static str = P::STREAM_ID_FIELD;

    fn parse_command(
        value: &[u8],
        fallback_id: Uuid,
    ) -> Result<Command<<P::Aggregate as Aggregate>::Command>, InvalidCommand> {
        command::parse(value, P::STREAM_ID_FIELD, fallback_id)
    }

    fn write_meaning(command: &<P::Aggregate as Aggregate>::Command, into: &mut Vec<u8>) {
        // Fields go in the order in which the type declares them, whatever the order they came in.
        if let Err(error) = serde_json::to_writer(into, command) {
            panic!("a command of {} that was read cannot be written: {error}", P::NAME);
        }
    }

    fn describe_state(state: &P::Aggregate) -> Value {
        serde_json::to_value(state).unwrap_or_default()
    }

    fn describe_event(event: &<P::Aggregate as Aggregate>::Event) -> Value {
        described(event)
    }
}

/// The read model of one table of ours. Made once for the life of the program: its texts are kept for as long.
fn read_model(table: &'static str, version: i32, ddl: String) -> ReadModel {
    let keep = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    ReadModel {
        name: keep(table.replace('_', "-")),
        version,
        ddl: keep(ddl),
        indexes: &[],
        tables: Box::leak(Box::new([table])),
        views: &[],
    }
}

/// A variant as an object with its name under `type`.
pub(crate) fn described<T: Serialize>(event: &T) -> Value {
    match serde_json::to_value(event).unwrap_or_default() {
        Value::Object(fields) => {
            let Some((name, Value::Object(mut fields))) = fields.into_iter().next() else { return Value::Null };
            fields.insert("type".into(), name.into());
            fields.into()
        }
        Value::String(name) => json!({"type": name}),
        _ => Value::Null,
    }
}

/// A described event back; none when it is none of these.
pub(crate) fn undescribed<T: DeserializeOwned>(event: &Value) -> Option<T> {
    let mut fields = event.as_object()?.clone();
    let name = fields.remove("type")?;
    let alone = fields.is_empty().then(|| name.clone());
    let tagged = Value::from(Map::from_iter([(name.as_str()?.to_owned(), fields.into())]));
    // A variant without braces is its name alone.
    serde_json::from_value(tagged).ok().or_else(|| serde_json::from_value(alone?).ok())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Event {
        Opened { owner: String },
        Closed {},
        Burnt,
    }

    #[test]
    fn what_is_described_is_read_back() {
        for event in [Event::Opened { owner: "ann".into() }, Event::Closed {}, Event::Burnt] {
            let shown = described(&event);
            assert_eq!(undescribed::<Event>(&shown), Some(event), "{shown}");
        }
        for nonsense in [json!({}), json!({"type": "Lost"}), json!({"type": "Opened"}), json!(7), json!({"type": 7})] {
            assert_eq!(undescribed::<Event>(&nonsense), None, "{nonsense}");
        }
    }
}
