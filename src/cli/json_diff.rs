//! What differs between two JSON values, field by field, for people and audits.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// One row a difference: `path`, `from`, `to`; a side that lacks the field is null.
pub(super) fn differences(from: &Value, to: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    compare("", from, to, &mut found);
    found
}

fn compare(path: &str, from: &Value, to: &Value, found: &mut Vec<Value>) {
    match (from, to) {
        (from, to) if from == to => {}
        (Value::Object(old), Value::Object(new)) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(&path, old.get(name).unwrap_or(&Value::Null), new.get(name).unwrap_or(&Value::Null), found);
            }
        }
        // Nothing became a whole: each of its fields is news.
        (Value::Null, Value::Object(_)) => compare(path, &json!({}), to, found),
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (n, (old, new)) in old.iter().zip(new).enumerate() {
                compare(&format!("{path}[{n}]"), old, new, found);
            }
        }
        _ => found.push(json!({"path": path, "from": from, "to": to})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_the_field_and_both_values() {
        let old = json!({"a": 1, "b": {"c": [1, 2]}, "d": "gone"});
        let new = json!({"a": 1, "b": {"c": [1, 3]}, "e": null});
        let expected =
            [json!({"path": "b.c[1]", "from": 2, "to": 3}), json!({"path": "d", "from": "gone", "to": null})];
        assert_eq!(differences(&old, &new), expected);
        assert_eq!(differences(&Value::Null, &json!({"a": 1})), [json!({"path": "a", "from": null, "to": 1})]);
        assert!(differences(&old, &old).is_empty());
    }
}
