//! The AsyncAPI document: valid, the one that is committed, and true of what stands on the topics.

use jiff::Timestamp;
use serde_json::{Value, json};
use throughline::app::asyncapi;
use throughline::settings::Settings;
use throughline::store::commands::StoredOutcome;
use uuid::Uuid;

fn read(path: &str) -> Value {
    let path = format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap()
}

fn document() -> Value {
    let app = reference::app();
    asyncapi::document(app.name(), app.find(Some("orders")).unwrap().as_ref(), &Settings::default()).unwrap()
}
#[test]
fn the_committed_document_is_what_the_program_generates() {
    let generated = document();
    let stale = "deploy/asyncapi.json is stale: `throughline schema asyncapi > deploy/asyncapi.json`";
    assert!(read("deploy/asyncapi.json") == generated, "{stale}");
}

#[test]
fn the_document_is_valid_asyncapi() {
    let schema = read("tests/asyncapi-schema/3.0.0.json");
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut document = document();
    let errors: Vec<_> = validator.iter_errors(&document).map(|error| format!("{error:.400}")).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    // The validator sees mistakes: it is not that anything goes.
    document["channels"]["events"]["addres"] = json!("x");
    assert!(!validator.is_valid(&document));
}

#[test]
fn commands_and_results_match_their_schemas() {
    let app = reference::app();
    let context = app.find(Some("orders")).unwrap();
    let messages = context.messages();
    for (name, schema) in &messages.commands {
        let validator = jsonschema::validator_for(schema).unwrap();
        let example = &schema["examples"][0];
        assert!(validator.is_valid(example), "{name}: {example}");
        let parsed = context.parse_command(example.to_string().as_bytes());
        assert!(parsed.is_ok(), "{name}: {parsed:?}");
        let mut wrong = example.clone();
        wrong["type"] = json!("DestroyOrder");
        assert!(!validator.is_valid(&wrong), "{name}");
    }
    let validator = jsonschema::validator_for(&messages.result).unwrap();
    let accepted = StoredOutcome {
        command_id: Uuid::nil(),
        stream_id: Uuid::nil(),
        payload_hash: Vec::new(),
        accepted: true,
        code: None,
        reason: None,
        version: Some(1),
        partition: 0,
        seq: Some(1),
        correlation_id: "c".into(),
        decided_at: Timestamp::UNIX_EPOCH,
    };
    let refused = StoredOutcome { accepted: false, code: Some("ORDER_NOT_PAID".into()), seq: None, ..accepted.clone() };
    for outcome in [accepted, refused] {
        assert!(validator.is_valid(&outcome.to_json(context.stream_id_field())), "{}", outcome.to_json("orderId"));
    }
}
