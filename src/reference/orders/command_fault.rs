//! Why a record is no command: the field at fault and the ids that can still be read.
//!
//! Runs on the error path only, so it may look at the input a second time and leniently. What is
//! echoed of the input is short and escaped: it goes into logs and answers.

use std::fmt::Display;

use serde_json::Value;

use super::command::CommandKind;
use throughline::engine::InvalidCommand;
use throughline::engine::ids::parse_id;

/// A field (JSON pointer) and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pointer: String,
    problem: String,
}

impl Fault {
    pub(super) fn new(pointer: impl Into<String>, problem: impl Display) -> Self {
        Self { pointer: pointer.into(), problem: problem.to_string() }
    }

    /// The same problem at another field.
    pub(super) fn at(self, pointer: String) -> Self {
        Self { pointer, ..self }
    }
}

/// The most characters of the input that a message repeats.
const ECHO: usize = 48;

/// A text of the input, quoted, escaped and shortened.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(ECHO) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The answer for a record at fault, with the ids that it still tells.
pub(super) fn invalid(value: &[u8], fault: &Fault) -> InvalidCommand {
    let fields = serde_json::from_slice::<Value>(value).ok();
    let id = |name| parse_id(fields.as_ref()?.get(name)?.as_str()?).ok();
    let reason = match fault.pointer.as_str() {
        "" => fault.problem.clone(),
        pointer => format!("{pointer} {}", fault.problem),
    };
    InvalidCommand { reason, command_id: id("commandId"), stream_id: id("orderId") }
}

/// Finds the field that serde stumbled over.
pub(super) fn diagnose(value: &[u8], error: &serde_json::Error) -> Fault {
    if value.is_empty() {
        return Fault::new("", "the value is empty; a command is a JSON object");
    }
    match serde_json::from_slice::<Value>(value) {
        Err(syntax) => Fault::new("", format!("the value is not JSON: {syntax}")),
        Ok(Value::Object(fields)) => fields
            .iter()
            .find_map(|(name, value)| field_fault(name, value))
            // What a generic look cannot see, such as a field given twice.
            .unwrap_or_else(|| Fault::new("", error)),
        Ok(_) => Fault::new("", "the value must be a JSON object"),
    }
}

fn field_fault(name: &str, value: &Value) -> Option<Fault> {
    let pointer = format!("/{}", escaped(name));
    match name {
        _ if value.is_null() => None,
        "expectedVersion" => (!value.is_i64()).then(|| Fault::new(pointer, "must be an integer")),
        "items" => items_fault(pointer, value),
        "payment" => payment_fault(pointer, value),
        "type" | "commandId" | "orderId" => string_fault(pointer, value),
        _ if CommandKind::ALL.iter().any(|kind| kind.fields().contains(&name)) => string_fault(pointer, value),
        _ => Some(Fault::new(pointer, "is no field of a command")),
    }
}

fn items_fault(pointer: String, value: &Value) -> Option<Fault> {
    let Some(items) = value.as_array() else {
        return Some(Fault::new(pointer, "must be an array of items"));
    };
    items.iter().enumerate().find_map(|(n, item)| {
        let at = format!("{pointer}/{n}");
        let Some(fields) = item.as_object() else {
            return Some(Fault::new(at, "must be an object with productId, quantity and unitPrice"));
        };
        let known = ["productId", "quantity", "unitPrice"];
        let wrong = fields.iter().find_map(|(name, value)| {
            let at = format!("{at}/{}", escaped(name));
            match name.as_str() {
                "productId" | "unitPrice" => string_fault(at, value),
                "quantity" => (!value.is_i64()).then(|| Fault::new(at, "must be an integer")),
                _ => Some(Fault::new(at, "is no field of an item")),
            }
        });
        let missing = || known.iter().find(|name| !fields.contains_key(**name));
        wrong.or_else(|| missing().map(|name| Fault::new(format!("{at}/{name}"), "is missing")))
    })
}

fn payment_fault(pointer: String, value: &Value) -> Option<Fault> {
    let Some(fields) = value.as_object() else {
        return Some(Fault::new(pointer, "must be an object with token"));
    };
    fields.iter().find_map(|(name, value)| {
        let at = format!("{pointer}/{}", escaped(name));
        match name.as_str() {
            "token" => string_fault(at, value),
            _ => Some(Fault::new(at, "is no field of a payment")),
        }
    })
}

fn string_fault(pointer: String, value: &Value) -> Option<Fault> {
    (!value.is_string()).then(|| Fault::new(pointer, "must be a string"))
}

/// A name as a token of a JSON pointer, shortened and without control characters.
fn escaped(name: &str) -> String {
    let short: String = name.chars().filter(|c| !c.is_control()).take(ECHO).collect();
    short.replace('~', "~0").replace('/', "~1")
}
