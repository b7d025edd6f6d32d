//! The shapes of a plain context's commands as JSON schemas, for its documents. `garde`'s bounds are in them.
//!
//! What is valid is decided by `command`; these only tell it, and are made from the same types.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::api::status_shape;

/// The schema of the fields that one variant of an enum has, or none if no variant has that name.
pub(super) fn of_variant<C: JsonSchema>(name: &str) -> Option<Value> {
    variants::<C>().into_iter().find(|(one, _)| one == name).map(|(_, fields)| fields)
}

/// The variants of an enum, each with the schema of its fields.
pub(super) fn variants<C: JsonSchema>() -> Vec<(String, Value)> {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut whole = Value::from(settings.into_generator().into_root_schema_for::<C>());
    without_nul(&mut whole);
    match whole["oneOf"].as_array() {
        Some(variants) => variants.iter().flat_map(named).collect(),
        None => named(&whole),
    }
}

/// Says of texts what `command` refuses in any of them.
fn without_nul(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let is_free = ["pattern", "format", "enum", "const"].iter().all(|word| !fields.contains_key(*word));
            if is_free && fields.get("type").is_some_and(|kind| kind == "string") {
                fields.insert("pattern".into(), r"^[^\x00]*$".into());
            }
            fields.values_mut().for_each(without_nul);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nul),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Variants with fields are objects of one property; those without are told together, as texts.
fn named(schema: &Value) -> Vec<(String, Value)> {
    if let Some((name, fields)) = schema["properties"].as_object().and_then(|variants| variants.iter().next()) {
        let mut fields = fields.clone();
        if let Some(text) = schema.get("description") {
            fields["description"] = text.clone();
        }
        return vec![(name.clone(), fields)];
    }
    let alone = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    alone.map(|name| (name.to_owned(), json!({"type": "object"}))).collect()
}

/// A command whole: its fields with its type and its ids.
pub(super) fn command(name: &str, stream_id_field: &str, mut fields: Value) -> Value {
    fields["properties"]["type"] = json!({"type": "string", "const": name});
    fields["properties"][stream_id_field] = id("The stream; also the record's key, as lower-case text.");
    fields["properties"]["commandId"] =
        id("Idempotency key within the stream. The header command-id, or the record's place, when absent.");
    fields["properties"]["expectedVersion"] = json!({"type": "integer", "minimum": 0});
    let mut required = vec![json!("type"), json!(stream_id_field)];
    required.extend(fields["required"].as_array().into_iter().flatten().cloned());
    fields["required"] = required.into();
    fields
}

/// What became of a command, as its topic tells it.
pub(super) fn outcome(stream_id_field: &str) -> Value {
    let mut outcome = status_shape([stream_id_field]);
    // What is on the topic is decided.
    outcome["properties"]["status"]["enum"] = json!(["accepted", "refused"]);
    for always in ["correlationId", "decidedAt"] {
        outcome["properties"][always]["type"] = json!("string");
    }
    outcome["required"] = json!(["commandId", stream_id_field, "status", "correlationId", "decidedAt"]);
    outcome
}

fn id(description: &str) -> Value {
    json!({"type": "string", "format": "uuid", "description": description})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(JsonSchema)]
    #[schemars(deny_unknown_fields, rename_all_fields = "camelCase")]
    #[expect(dead_code, reason = "only its schema is looked at")]
    enum Ask {
        /// Opens it.
        Open {
            #[garde(length(min = 1, max = 5))]
            owner_name: String,
            #[garde(range(min = 1))]
            cents: Option<i64>,
        },
        Close,
    }

    #[test]
    fn a_variant_has_its_fields_and_their_bounds() {
        let open = of_variant::<Ask>("Open").expect("a variant");
        assert_eq!(open["description"], "Opens it.");
        let owner = &open["properties"]["ownerName"];
        assert_eq!(
            (&owner["type"], &owner["minLength"], &owner["maxLength"]),
            (&json!("string"), &json!(1), &json!(5))
        );
        assert_eq!((&open["properties"]["cents"]["minimum"], &open["required"]), (&json!(1), &json!(["ownerName"])));
        assert!(of_variant::<Ask>("Close").is_some());
        assert!(of_variant::<Ask>("Burn").is_none());
    }
}
