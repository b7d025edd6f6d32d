//! JSON schemas of what stands on the JSON topics: commands and their results. Made from the same
//! structs as the HTTP document, so that the two cannot tell different stories.

use serde_json::{Value, json};
use utoipa::PartialSchema;

use super::routes::answers::CommandStatus;
use super::routes::command_bodies::{
    CancelOrderBody, ItemBody, PaymentChoiceBody, PlaceOrderBody, RecordPaymentBody, ShipOrderBody,
};

/// Decimal text of any currency.
const AMOUNT: &str = r"^(0|[1-9][0-9]*)(\.[0-9]+)?$";

/// Every command by its type, as a JSON schema.
pub fn commands() -> Vec<(String, Value)> {
    let mut place = command::<PlaceOrderBody>("PlaceOrder");
    let mut item = plain(&ItemBody::schema());
    item["properties"]["unitPrice"]["pattern"] = json!(AMOUNT);
    place["properties"]["items"]["items"] = item;
    place["properties"]["payment"] = plain(&PaymentChoiceBody::schema());
    let mut payment = command::<RecordPaymentBody>("RecordPayment");
    payment["properties"]["amount"]["pattern"] = json!(AMOUNT);
    [
        ("PlaceOrder", place),
        ("RecordPayment", payment),
        ("ShipOrder", command::<ShipOrderBody>("ShipOrder")),
        ("CancelOrder", command::<CancelOrderBody>("CancelOrder")),
    ]
    .map(|(name, schema)| (name.to_owned(), schema))
    .into()
}

/// What became of a command, as a JSON schema.
pub fn result() -> Value {
    let mut schema = plain(&CommandStatus::schema());
    // What is on the topic is decided.
    schema["properties"]["status"] = json!({"type": "string", "enum": ["accepted", "refused"]});
    schema["properties"]["orderId"] =
        json!({"type": ["string", "null"], "format": "uuid", "description": "Null where the record told none."});
    schema["required"] = json!(["commandId", "orderId", "status", "correlationId", "decidedAt"]);
    for always in ["correlationId", "decidedAt"] {
        schema["properties"][always]["type"] = json!("string");
    }
    schema
}

/// The body of the HTTP call, with what the route says otherwise.
fn command<B: PartialSchema>(name: &str) -> Value {
    let mut schema = plain(&B::schema());
    for (_, property) in schema["properties"].as_object_mut().into_iter().flatten() {
        // An absent field is absent, not null.
        if let Some(types) = property["type"].as_array() {
            property["type"] = types.iter().find(|one| *one != "null").cloned().unwrap_or_default();
        }
    }
    schema["description"] = json!("A command; what an order allows is decided later, and told by the result.");
    let id = |text: &str| json!({"type": "string", "format": "uuid", "description": text});
    schema["properties"]["type"] = json!({"type": "string", "const": name});
    schema["properties"]["orderId"] = id("The order; also the record's key, as lower-case text.");
    schema["properties"]["commandId"] = id(
        "Idempotency key within the order: one outcome per order and id. The header command-id, or the record's place, when absent.",
    );
    for required in ["orderId", "type"] {
        if let Some(list) = schema["required"].as_array_mut() {
            list.insert(0, json!(required));
        }
    }
    if let Some(example) = schema.as_object_mut().and_then(|object| object.remove("examples")) {
        let mut example = example[0].clone();
        example["type"] = json!(name);
        example["orderId"] = json!("0198c0de-7a3e-7000-8000-00000000a001");
        schema["examples"] = json!([example]);
    }
    schema
}

/// OpenAPI's dialect to plain JSON schema: its one `example` is a list of `examples`.
fn plain(schema: &impl serde::Serialize) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                if let Some(example) = fields.remove("example") {
                    fields.insert("examples".to_owned(), json!([example]));
                }
                fields.values_mut().for_each(walk);
            }
            Value::Array(elements) => elements.iter_mut().for_each(walk),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(schema).expect("a schema of strings and numbers always serializes");
    walk(&mut value);
    value
}
