//! A context that breaks on demand: what a defect in a context, or in its data, does to others.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use throughline::engine::{
    Aggregate, BoundedContext, Command, CommandMeta, Decision, Encoded, EventCodec, InvalidCommand, Refusal,
    UndecodableEvent,
};
use uuid::Uuid;

/// Named as orders is, to use its topics.
pub struct FragileContext;

/// Defects that are mended by now. Each test that mends one has a name of its own for it: `mendable-…`.
static MENDED: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);

pub fn mend(defect: &str) {
    MENDED.lock().unwrap_or_else(PoisonError::into_inner).insert(defect.to_owned());
}

fn is_broken(defect: &str) -> bool {
    defect.starts_with("mendable") && !MENDED.lock().unwrap_or_else(PoisonError::into_inner).contains(defect)
}

/// Counts what happened.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Fragile {
    count: u32,
}

/// `value` asks for trouble, or for none.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    order_id: Uuid,
    command_id: Option<Uuid>,
    trouble: Option<String>,
}

impl Aggregate for Fragile {
    type Command = Ask;
    type Event = String;
    const SNAPSHOT_VERSION: i16 = 1;

    fn decide(&self, command: &Ask) -> Decision<String> {
        match command.trouble.as_deref() {
            Some("decide") => panic!("decide broke"),
            Some(defect) if is_broken(defect) => panic!("not mended yet"),
            // More than any record carries, and a character that PostgreSQL does not take.
            Some("refuse") => Err(Refusal::new("REFUSED", format!("a NUL: \0{}", "!".repeat(2_000_000)))),
            Some(trouble) => Ok(vec![trouble.to_owned()]),
            None => Ok(vec!["fine".to_owned()]),
        }
    }

    fn evolve(&mut self, event: &String) {
        self.count += 1;
        assert_ne!(event, "evolve", "evolve broke");
    }
}

/// Events are their text.
pub struct FragileCodec;

impl EventCodec for FragileCodec {
    type Event = String;

    fn encode(&self, event: &String) -> Result<Encoded, UndecodableEvent> {
        match event.as_str() {
            "encode" => Err(UndecodableEvent("encode broke".into())),
            // PostgreSQL takes no NUL in a text: the whole statement fails.
            "append" => Ok(Encoded { event_type: "bad\0type", schema_version: 1, bytes: Vec::new() }),
            // One byte more than an event may have.
            "bulk" => Ok(Encoded { event_type: "Bulky", schema_version: 1, bytes: vec![0; 1_000_001] }),
            text => Ok(Encoded { event_type: "Happened", schema_version: 1, bytes: text.as_bytes().to_vec() }),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Result<String, UndecodableEvent> {
        match bytes {
            b"decode" => Err(UndecodableEvent("decode broke".into())),
            bytes => Ok(String::from_utf8_lossy(bytes).into_owned()),
        }
    }
}

impl BoundedContext for FragileContext {
    type Aggregate = Fragile;
    type Codec = FragileCodec;
    const NAME: &'static str = "orders";
    const NAMESPACE: &'static str = "throughline.orders";

    fn parse_command(value: &[u8], fallback_id: Uuid) -> Result<Command<Ask>, InvalidCommand> {
        let invalid =
            |error: serde_json::Error| InvalidCommand { reason: error.to_string(), command_id: None, stream_id: None };
        let payload: Ask = serde_json::from_slice(value).map_err(invalid)?;
        assert_ne!(payload.trouble.as_deref(), Some("parse"), "parse broke");
        let command_id = payload.command_id.unwrap_or(fallback_id);
        let meta = CommandMeta { command_id, stream_id: payload.order_id, expected_version: None };
        Ok(Command { meta, payload })
    }

    fn write_meaning(command: &Ask, into: &mut Vec<u8>) {
        serde_json::to_writer(into, command).expect("plain fields");
    }

    fn describe_state(state: &Fragile) -> serde_json::Value {
        serde_json::json!({ "count": state.count })
    }

    fn describe_event(event: &String) -> serde_json::Value {
        event.as_str().into()
    }
}
