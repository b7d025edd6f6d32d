//! The fields of a schema definition, flat, and what differs between two: for people who review a
//! change. Whether a change is allowed is `lock`'s to say.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

/// One field that differs between two definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// `items[].unitPrice`.
    pub field: String,
    /// `added`, `removed` or `changed`.
    pub change: &'static str,
    /// Type and default before; none when added.
    pub from: Option<String>,
    /// Type and default after; none when removed.
    pub to: Option<String>,
}

/// Every field of a definition by its path, with its type and default as text. Documentation and
/// order do not count.
pub fn fields(definition: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    if let Ok(schema) = serde_json::from_str::<Value>(definition) {
        record("", &schema, &mut found);
    }
    found
}

/// What changed from one definition to another, by path.
pub fn changes(from: &str, to: &str) -> Vec<FieldChange> {
    let (old, new) = (fields(from), fields(to));
    let paths: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let change = |path: &String| {
        let (from, to) = (old.get(path).cloned(), new.get(path).cloned());
        let change = match (&from, &to) {
            (from, to) if from == to => return None,
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        Some(FieldChange { field: path.clone(), change, from, to })
    };
    paths.into_iter().filter_map(change).collect()
}

fn record(prefix: &str, schema: &Value, found: &mut BTreeMap<String, String>) {
    for field in schema["fields"].as_array().into_iter().flatten() {
        let path = format!("{prefix}{}", field["name"].as_str().unwrap_or_default());
        let default = field.get("default").map(|default| format!(" = {default}")).unwrap_or_default();
        found.insert(path.clone(), format!("{}{default}", type_text(&field["type"])));
        inner(&path, &field["type"], found);
    }
}

/// The fields of records within a field's type.
fn inner(path: &str, schema: &Value, found: &mut BTreeMap<String, String>) {
    match schema["type"].as_str() {
        Some("record") => record(&format!("{path}."), schema, found),
        Some("array") => inner(&format!("{path}[]"), &schema["items"], found),
        Some("map") => inner(&format!("{path}{{}}"), &schema["values"], found),
        _ => {
            for branch in schema.as_array().into_iter().flatten() {
                inner(path, branch, found);
            }
        }
    }
}

fn type_text(schema: &Value) -> String {
    match schema {
        Value::String(name) => name.clone(),
        Value::Array(branches) => branches.iter().map(type_text).collect::<Vec<_>>().join(" | "),
        schema => match (schema["type"].as_str().unwrap_or_default(), schema["logicalType"].as_str()) {
            ("array", _) => format!("array of {}", type_text(&schema["items"])),
            ("map", _) => format!("map of {}", type_text(&schema["values"])),
            ("record", _) => format!("record {}", schema["name"].as_str().unwrap_or_default()),
            (name, Some(logical)) => format!("{name} ({logical})"),
            (name, None) => name.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_found_at_every_depth() {
        let old = r#"{"type":"record","name":"A","fields":[{"name":"a","type":"long","doc":"x"},{"name":"gone","type":"int"},
            {"name":"list","type":{"type":"array","items":{"type":"record","name":"B","fields":[{"name":"b","type":"int"}]}}}]}"#;
        let new = r#"{"type":"record","name":"A","fields":[{"name":"a","type":"long"},
            {"name":"new","type":["null","string"],"default":null},
            {"name":"list","type":{"type":"array","items":{"type":"record","name":"B","fields":[{"name":"b","type":"long"}]}}}]}"#;
        let change = |field: &str, change, from: Option<&str>, to: Option<&str>| FieldChange {
            field: field.to_owned(),
            change,
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        let expected = [
            change("gone", "removed", Some("int"), None),
            change("list[].b", "changed", Some("int"), Some("long")),
            change("new", "added", None, Some("null | string = null")),
        ];
        assert_eq!(changes(old, new), expected);
        assert!(changes(old, old).is_empty());
    }
}
