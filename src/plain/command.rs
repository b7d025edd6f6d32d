//! A command from its JSON: ids first, then the variant that `type` names, then the bounds of its fields.
//!
//! What is wrong is told with a JSON pointer to the field and why.

use garde::Validate;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::engine::ids::parse_id;
use crate::engine::{Command, CommandMeta, InvalidCommand};

/// Reads a command; `fallback_id` is its id when the value carries none.
pub(super) fn parse<C>(value: &[u8], stream_id_field: &str, fallback_id: Uuid) -> Result<Command<C>, InvalidCommand>
where
    C: DeserializeOwned + Validate<Context = ()>,
{
    let mut fields: Map<String, Value> = match serde_json::from_slice(value) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return Err(refused("the value is no JSON object".into())),
        Err(error) => return Err(refused(format!("the value is not JSON: {error}"))),
    };
    let command_id = take_id(&mut fields, "commandId");
    let stream_id = take_id(&mut fields, stream_id_field);
    let (known_command, known_stream) =
        (command_id.as_ref().ok().copied().flatten(), stream_id.as_ref().ok().copied().flatten());
    let read = || {
        if let Some(pointer) = nul_in(&fields) {
            return Err(format!("{pointer} holds U+0000, which no table can keep"));
        }
        let meta = CommandMeta {
            command_id: command_id?.unwrap_or(fallback_id),
            stream_id: stream_id?.ok_or_else(|| format!("/{stream_id_field} is missing"))?,
            expected_version: take_version(&mut fields)?,
        };
        let name = match fields.remove("type") {
            Some(Value::String(name)) => name,
            Some(_) => return Err("/type must be a text".to_owned()),
            None => return Err("/type is missing".to_owned()),
        };
        Ok(Command { meta, payload: variant(&name, fields)? })
    };
    read().map_err(|reason| InvalidCommand { reason, command_id: known_command, stream_id: known_stream })
}

/// Where a text, or the name of a field, holds U+0000: a JSON pointer.
fn nul_in(fields: &Map<String, Value>) -> Option<String> {
    fields.iter().find_map(|(name, value)| match name.contains('\0') {
        true => Some(format!("/{}", name.replace('\0', "\u{fffd}"))),
        false => nul_below(value).map(|below| format!("/{name}{below}")),
    })
}

fn nul_below(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(n, item)| nul_below(item).map(|below| format!("/{n}{below}")))
        }
        Value::Object(fields) => nul_in(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn refused(reason: String) -> InvalidCommand {
    InvalidCommand { reason, command_id: None, stream_id: None }
}

fn take_id(fields: &mut Map<String, Value>, name: &str) -> Result<Option<Uuid>, String> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => parse_id(&text).map(Some).map_err(|fault| format!("/{name} {fault}")),
        Some(_) => Err(format!("/{name} must be a UUID as text")),
    }
}

fn take_version(fields: &mut Map<String, Value>) -> Result<Option<i64>, String> {
    match fields.remove("expectedVersion") {
        None | Some(Value::Null) => Ok(None),
        Some(version) => match version.as_i64().filter(|version| *version >= 0) {
            Some(version) => Ok(Some(version)),
            None => Err("/expectedVersion must be an integer from 0 on".into()),
        },
    }
}

fn variant<C>(name: &str, fields: Map<String, Value>) -> Result<C, String>
where
    C: DeserializeOwned + Validate<Context = ()>,
{
    let tagged = Value::Object(Map::from_iter([(name.to_owned(), fields.into())]));
    let command: C = serde_path_to_error::deserialize(tagged).map_err(|error| {
        let pointer = pointer(&error.path().to_string(), name);
        format!("{pointer} {}", error.inner()).trim_start().to_owned()
    })?;
    match command.validate() {
        Ok(()) => Ok(command),
        Err(report) => match report.iter().next() {
            Some((path, error)) => Err(format!("{} {error}", pointer(&path.to_string(), name)).trim_start().to_owned()),
            None => Ok(command),
        },
    }
}

/// `items[0].unitPrice` as `/items/0/unitPrice`, without the variant's name before it.
fn pointer(path: &str, variant: &str) -> String {
    let path = path.strip_prefix(variant).unwrap_or(path).trim_start_matches('.');
    if path.is_empty() || path == "." {
        return String::new();
    }
    format!("/{}", path.replace('[', ".").replace(']', "").replace('.', "/")).replace("//", "/")
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, Validate)]
    #[serde(deny_unknown_fields, rename_all_fields = "camelCase")]
    enum Ask {
        Open {
            #[garde(length(min = 1, max = 5))]
            owner: String,
            #[garde(dive)]
            lines: Vec<Line>,
        },
        Close {},
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, Validate)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Line {
        #[garde(range(min = 1))]
        unit_price: i64,
    }

    const IDS: &str =
        r#""commandId":"00000000-0000-0000-0000-00000000000b","accountId":"00000000-0000-0000-0000-000000000001""#;

    fn read(rest: &str) -> Result<Command<Ask>, InvalidCommand> {
        parse(format!("{{{IDS},{rest}}}").as_bytes(), "accountId", Uuid::from_u128(9))
    }

    fn reason(rest: &str) -> String {
        let refused = read(rest).expect_err("refused");
        assert!(refused.command_id.is_some() && refused.stream_id.is_some(), "told whom it concerns: {refused:?}");
        refused.reason
    }

    #[test]
    fn a_command_is_its_ids_and_the_variant_of_its_type() {
        let command = read(r#""type":"Open","owner":"ann","lines":[{"unitPrice":2}],"expectedVersion":0"#).unwrap();
        assert_eq!(command.payload, Ask::Open { owner: "ann".into(), lines: vec![Line { unit_price: 2 }] });
        assert_eq!((command.meta.stream_id, command.meta.expected_version), (Uuid::from_u128(1), Some(0)));
        assert_eq!(read(r#""type":"Close""#).unwrap().payload, Ask::Close {});
        let fallback = r#"{"type":"Close","accountId":"00000000-0000-0000-0000-000000000001"}"#;
        let command: Command<Ask> = parse(fallback.as_bytes(), "accountId", Uuid::from_u128(9)).unwrap();
        assert_eq!(command.meta.command_id, Uuid::from_u128(9));
    }

    #[test]
    fn what_is_wrong_is_pointed_at() {
        let starts = [
            (r#""type":"Open","owner":"ann","lines":[{"unitPrice":"2"}]"#, "/lines/0/unitPrice invalid type"),
            (r#""type":"Open","owner":"ann","lines":[{"unitPrice":0}]"#, "/lines/0/"),
            (r#""type":"Open","owner":"","lines":[]"#, "/owner length"),
            (r#""type":"Open","lines":[]"#, "missing field `owner`"),
            (r#""type":"Close","more":1"#, "/more unknown field"),
            (r#""type":"Burn""#, "unknown variant `Burn`"),
            (r#""owner":"ann""#, "/type is missing"),
            (r#""type":"Open","owner":"a\u0000b","lines":[]"#, "/owner holds U+0000"),
            (r#""type":"Open","owner":"ann","lines":[{"\u0000":1}]"#, "/lines/0/\u{fffd} holds U+0000"),
            (r#""type":"Close","expectedVersion":-1"#, "/expectedVersion must be"),
        ];
        for (rest, start) in starts {
            let reason = reason(rest);
            assert!(reason.starts_with(start), "{rest}: {reason}");
        }
        for (value, start) in
            [("7", "the value is no"), ("{", "the value is not JSON"), ("{}", "/accountId is missing")]
        {
            let refused = parse::<Ask>(value.as_bytes(), "accountId", Uuid::nil()).expect_err("refused");
            assert!(refused.reason.starts_with(start), "{value}: {}", refused.reason);
        }
    }
}
