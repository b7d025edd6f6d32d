//! Events as an older version wrote them, read as today: what upcasters are for.

use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::Value;

use crate::avro::{Catalogue, SchemaIds};
use crate::engine::{Aggregate, EventCodec as _};
use crate::plain::{Plain, PlainContext};

/// The event that `fields`, published as `event_type` in `version`, are to the program of today.
///
/// ```
/// # use garde::Validate;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # use throughline::engine::{Aggregate, Decision};
/// # use throughline::plain::PlainContext;
/// use serde_json::json;
/// use throughline::apache_avro::types::Value as Avro;
/// use throughline::avro::{Published, Schemas, Upcasters};
///
/// #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
/// enum Event {
///     Counted { by: i64, who: String },
/// }
/// # #[derive(Debug, Clone, Serialize, Deserialize, Validate, JsonSchema)]
/// # enum Command { Count { #[garde(skip)] by: i64 } }
/// # #[derive(Debug, Clone, Default, Serialize, Deserialize)]
/// # struct Counter { total: i64 }
/// # impl Aggregate for Counter {
/// #     type Command = Command;
/// #     type Event = Event;
/// #     const SNAPSHOT_VERSION: i16 = 1;
/// #     fn decide(&self, _: &Command) -> Decision<Event> { Ok(vec![]) }
/// #     fn evolve(&mut self, Event::Counted { by, .. }: &Event) { self.total += by; }
/// # }
/// # struct Counters;
/// # impl PlainContext for Counters {
/// #     type Aggregate = Counter;
/// #     const NAME: &'static str = "counters";
/// #     const NAMESPACE: &'static str = "acme.counters";
/// #     const STREAM_ID_FIELD: &'static str = "counterId";
/// #     const SCHEMAS: Schemas = Schemas {
/// #         published: &[
/// #             Published { event_type: "Counted", version: 1, definition: r#"{"type": "record", "name": "Counted",
/// #                 "namespace": "acme.counters", "fields": [{"name": "by", "type": "long"}]}"# },
/// #             Published { event_type: "Counted", version: 2, definition: r#"{"type": "record", "name": "Counted",
/// #                 "namespace": "acme.counters", "fields": [{"name": "by", "type": "long"},
/// #                 {"name": "who", "type": "string"}]}"# },
/// #         ],
/// #         upcasters: || Upcasters::new(&[("Counted", 1, |fields| {
/// #             fields.set("who", Avro::String("nobody".into()));
/// #             Ok(())
/// #         })]),
/// #         lock: "",
/// #     };
/// # }
/// // Version 1 had no `who`; its upcaster says `nobody`.
/// let event = throughline::testing::written_in::<Counters>("Counted", 1, json!({"by": 7}));
/// assert_eq!(event, Event::Counted { by: 7, who: "nobody".into() });
/// ```
///
/// # Panics
/// There is no such version, the fields are not of it, or the program of today does not read them.
#[track_caller]
pub fn written_in<P: PlainContext>(
    event_type: &str,
    version: i16,
    fields: Value,
) -> <P::Aggregate as Aggregate>::Event {
    let catalogue = Catalogue::new(&format!("{}-events", P::NAME), P::NAMESPACE, P::SCHEMAS.published)
        .unwrap_or_else(|error| panic!("the schemas of {}: {error}", P::NAME));
    let ids = SchemaIds::in_order(&catalogue);
    let (Some(schema), Some(id)) = (catalogue.schema(event_type, version), ids.id_of(event_type, version)) else {
        panic!("{} has no {event_type} of version {version}", P::NAME)
    };
    let written = avro(&fields)
        .resolve(&schema.schema)
        .and_then(|value| GenericDatumWriter::builder(&schema.schema).build()?.write_value_to_vec(value))
        .unwrap_or_else(|error| panic!("{fields} is no {event_type} of version {version}: {error}"));
    let codec = Plain::<P>::codec(&ids).unwrap_or_else(|error| panic!("{error:#}"));
    let framed = [&[0][..], &id.to_be_bytes(), &written].concat();
    codec.decode(&framed).unwrap_or_else(|error| panic!("{fields}, of version {version}, is not read: {error}"))
}

/// As near as JSON comes; the schema settles the rest.
fn avro(value: &Value) -> Avro {
    match value {
        Value::Null => Avro::Null,
        Value::Bool(value) => Avro::Boolean(*value),
        Value::Number(number) => {
            number.as_i64().map_or_else(|| Avro::Double(number.as_f64().unwrap_or(f64::NAN)), Avro::Long)
        }
        Value::String(text) => Avro::String(text.clone()),
        Value::Array(items) => Avro::Array(items.iter().map(avro).collect()),
        Value::Object(fields) => Avro::Map(fields.iter().map(|(name, value)| (name.clone(), avro(value))).collect()),
    }
}
