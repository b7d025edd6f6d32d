//! The smallest context that tests of deciding need: accounts that open once and are paid from.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::engine::ids::parse_id;
use crate::engine::{
    Aggregate, BoundedContext, Command, CommandMeta, Decision, Encoded, EventCodec, InvalidCommand, Refusal,
    UndecodableEvent,
};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Account {
    left: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub(super) enum Ask {
    Open { amount: i64, owner: String },
    Pay { amount: i64 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub(super) enum Happened {
    Opened { amount: i64, owner: String },
    Paid { amount: i64 },
}

impl Aggregate for Account {
    type Command = Ask;
    type Event = Happened;

    const SNAPSHOT_VERSION: i16 = 1;

    fn decide(&self, command: &Ask) -> Decision<Happened> {
        match (self.left, command) {
            (None, Ask::Open { amount, owner }) => Ok(vec![Happened::Opened { amount: *amount, owner: owner.clone() }]),
            (Some(_), Ask::Open { .. }) => Err(Refusal::new("ALREADY_OPEN", "it is open")),
            (None, Ask::Pay { .. }) => Err(Refusal::new("NOT_OPEN", "open it first")),
            (Some(left), Ask::Pay { amount }) if *amount > left => {
                Err(Refusal::new("TOO_MUCH", "that much is not left"))
            }
            (Some(_), Ask::Pay { amount }) => Ok(vec![Happened::Paid { amount: *amount }]),
        }
    }

    fn evolve(&mut self, event: &Happened) {
        self.left = Some(match event {
            Happened::Opened { amount, .. } => *amount,
            Happened::Paid { amount } => self.left.unwrap_or_default() - amount,
        });
    }
}

/// The context.
pub(super) struct Accounts;

impl BoundedContext for Accounts {
    type Aggregate = Account;
    type Codec = AsJson;

    const NAME: &'static str = "accounts";
    const NAMESPACE: &'static str = "test.accounts";
    const STREAM_ID_FIELD: &'static str = "accountId";

    fn parse_command(value: &[u8], fallback_id: Uuid) -> Result<Command<Ask>, InvalidCommand> {
        let fields: Value = serde_json::from_slice(value).unwrap_or_default();
        let id = |name: &str| fields[name].as_str().and_then(|text| parse_id(text).ok());
        let (command_id, stream_id) = (id("commandId"), id("accountId"));
        let invalid = |reason: String| InvalidCommand { reason, command_id, stream_id };
        let payload = serde_json::from_value(fields.clone()).map_err(|error| invalid(error.to_string()))?;
        let meta = CommandMeta {
            command_id: command_id.unwrap_or(fallback_id),
            stream_id: stream_id.ok_or_else(|| invalid("accountId is missing".into()))?,
            expected_version: fields["expectedVersion"].as_i64(),
        };
        Ok(Command { meta, payload })
    }

    fn write_meaning(command: &Ask, into: &mut Vec<u8>) {
        serde_json::to_writer(into, command).expect("memory takes it");
    }

    fn describe_state(state: &Account) -> Value {
        json!(state)
    }

    fn describe_event(event: &Happened) -> Value {
        json!(event)
    }
}

/// Events as JSON.
pub(super) struct AsJson;

impl EventCodec for AsJson {
    type Event = Happened;

    fn encode(&self, event: &Happened) -> Result<Encoded, UndecodableEvent> {
        let event_type = match event {
            Happened::Opened { .. } => "Opened",
            Happened::Paid { .. } => "Paid",
        };
        let bytes = serde_json::to_vec(event).map_err(|error| UndecodableEvent(error.to_string()))?;
        Ok(Encoded { event_type, schema_version: 1, bytes })
    }

    fn decode(&self, bytes: &[u8]) -> Result<Happened, UndecodableEvent> {
        serde_json::from_slice(bytes).map_err(|error| UndecodableEvent(error.to_string()))
    }
}
