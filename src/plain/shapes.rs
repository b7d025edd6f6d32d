//! The shapes of a plain context's commands as JSON schemas, for its documents. `garde`'s bounds are in them.
//!
//! What is valid is decided by `command`; these only tell it, and are made from the same types.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

/// The schema of the fields that one variant of an enum has, or none if no variant has that name.
pub(super) fn of_variant<C: JsonSchema>(name: &str) -> Option<Value> {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let whole = Value::from(settings.into_generator().into_root_schema_for::<C>());
    let variant = |schema: &Value| {
        let fields = schema["properties"].get(name).cloned();
        let alone = schema["enum"].as_array().is_some_and(|names| names.iter().any(|one| one == name));
        let mut found = fields.or_else(|| alone.then(|| json!({"type": "object"})))?;
        if let Some(text) = schema.get("description").filter(|_| !alone) {
            found["description"] = text.clone();
        }
        Some(found)
    };
    match whole["oneOf"].as_array() {
        Some(variants) => variants.iter().find_map(variant),
        None => variant(&whole),
    }
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
