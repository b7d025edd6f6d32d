//! What the author of a process manager writes: a state machine from what happened to what is to be done.
//!
//! No clock, no random, no I/O, as an aggregate: it is told events of any context, the outcomes of its own
//! commands, and deadlines; it answers with commands and deadlines. The engine gives ids, causes and correlation.

use std::fmt::Debug;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::context::BoundedContext;

/// A process between contexts, such as a transfer between two accounts. Each run of it is an instance.
///
/// ```
/// use std::time::Duration;
/// use throughline::engine::{Action, Input, ProcessManager};
///
/// #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
/// enum Told { Ordered, Answered }
///
/// struct Reminder;
///
/// impl ProcessManager for Reminder {
///     const NAME: &'static str = "reminder";
///     type Event = Told;
///     type State = bool;
///
///     fn handle(&self, _: uuid::Uuid, answered: &mut bool, input: &Input<Told>) -> Vec<Action> {
///         match input {
///             Input::Event(Told::Ordered) => vec![Action::set_deadline("answer", Duration::from_secs(60))],
///             Input::Event(Told::Answered) => { *answered = true; vec![Action::clear_deadline("answer")] }
///             Input::Deadline(_) | Input::Outcome(_) => vec![],
///         }
///     }
/// }
/// ```
pub trait ProcessManager: Send + Sync + 'static {
    /// Kebab case; names its consumer group and the role `process:NAME`.
    const NAME: &'static str;

    /// What it takes of the events of others. Kept with each instance, as JSON: a field that comes later has a default.
    type Event: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// What an instance remembers; `Default` is before its first input. Kept as JSON. One that cannot be read any more
    /// is made anew from the inputs by `throughline process reset`.
    type State: Default + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Takes one input and tells what is to be done. Total, and the same for the same state and input: a reset handles
    /// all inputs of an instance again, in the order in which they came.
    ///
    /// Inputs of different contexts come in any order among each other; those of one stream come in its order.
    fn handle(&self, instance: Uuid, state: &mut Self::State, input: &Input<Self::Event>) -> Vec<Action>;
}

/// What a process manager is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Input<E> {
    /// Something happened in a context.
    Event(E),
    /// A command of the instance was decided.
    Outcome(CommandOutcome),
    /// The deadline of this name was reached.
    Deadline(String),
}

/// What became of a command that a process manager sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandOutcome {
    /// The context that decided it.
    pub context: String,
    /// The `type` of the command.
    pub command: String,
    pub stream_id: Uuid,
    pub accepted: bool,
    /// Of a refusal.
    pub code: Option<String>,
    /// Of a refusal, for people.
    pub reason: Option<String>,
}

/// Whose an event is, for [`ProcessManager::handle`]. An event that concerns no instance is none of these.
#[derive(Debug, Clone, PartialEq)]
pub enum Concern<E> {
    /// Of an instance that begins with it, unless it has begun.
    Begins(Uuid, E),
    /// Of an instance that has begun; of no interest where it has not.
    Continues(Uuid, E),
}

/// What a process manager wants done.
#[derive(Debug, Clone)]
pub enum Action {
    Send(Sending),
    /// Tell me of `name` once so long has passed; in place of an earlier one of that name.
    SetDeadline {
        name: &'static str,
        after: Duration,
    },
    /// No more of `name`, should it be set.
    ClearDeadline(&'static str),
}

/// A command to a context.
#[derive(Debug, Clone)]
pub struct Sending {
    pub context: &'static str,
    pub stream_id: Uuid,
    /// As on its commands topic, without ids: the engine adds them.
    pub body: Value,
    /// What its context calls the stream.
    pub stream_id_field: &'static str,
    /// Whether the context takes it for a command.
    pub check: fn(&[u8]) -> Result<(), String>,
}

impl PartialEq for Action {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Send(one), Self::Send(other)) => one == other,
            (Self::SetDeadline { name, after }, Self::SetDeadline { name: other, after: later }) => {
                (name, after) == (other, later)
            }
            (Self::ClearDeadline(name), Self::ClearDeadline(other)) => name == other,
            _ => false,
        }
    }
}

/// What it says and to whom; the check follows from the context.
impl PartialEq for Sending {
    fn eq(&self, other: &Self) -> bool {
        (self.context, self.stream_id, &self.body) == (other.context, other.stream_id, &other.body)
    }
}

impl Action {
    /// Sends a command to a stream of `C`: an object with its `type` and fields, without ids.
    pub fn send<C: BoundedContext>(stream_id: Uuid, body: Value) -> Self {
        let check =
            |value: &[u8]| C::parse_command(value, Uuid::from_u128(1)).map(drop).map_err(|invalid| invalid.reason);
        Self::Send(Sending { context: C::NAME, stream_id, body, stream_id_field: C::STREAM_ID_FIELD, check })
    }

    /// Asks to be told once so long has passed.
    pub fn set_deadline(name: &'static str, after: Duration) -> Self {
        Self::SetDeadline { name, after }
    }

    /// Takes a deadline back.
    pub fn clear_deadline(name: &'static str) -> Self {
        Self::ClearDeadline(name)
    }
}

impl Sending {
    /// The value of its commands record.
    pub fn value(&self, command_id: Uuid) -> Vec<u8> {
        let mut body = self.body.clone();
        if let Some(fields) = body.as_object_mut() {
            fields.insert("commandId".into(), command_id.to_string().into());
            fields.insert(self.stream_id_field.into(), self.stream_id.to_string().into());
        }
        body.to_string().into_bytes()
    }

    /// The `type` that it says it is.
    pub fn command(&self) -> &str {
        self.body.get("type").and_then(Value::as_str).unwrap_or_default()
    }
}
