//! Commands as JSON: what is taken, what is refused, and which field the refusal names.

use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::command::{MAX_COMMAND_BYTES, RequestContext};
use super::domain::OrderCommand;
use super::{CommandKind, command_to_json, parse_command, parse_request};
use crate::engine::{Command, InvalidCommand};

const COMMAND: &str = "0198c0de-7a3e-7000-8000-000000000001";
const ORDER: &str = "0198c0de-7a3e-7000-8000-000000000002";
const OTHER: &str = "0198c0de-7a3e-7000-8000-000000000003";
const FALLBACK: Uuid = Uuid::from_u128(99);

fn parse(value: &Value) -> Result<Command<OrderCommand>, InvalidCommand> {
    parse_command(value.to_string().as_bytes(), FALLBACK)
}

fn place() -> Value {
    json!({"type": "PlaceOrder", "commandId": COMMAND, "orderId": ORDER, "customerId": "customer-42", "currency": "USD",
           "items": [{"productId": OTHER, "quantity": 2, "unitPrice": "19.99"},
                     {"productId": OTHER, "quantity": 1_000_000, "unitPrice": "0.1234"}]})
}

fn pay() -> Value {
    json!({"type": "RecordPayment", "commandId": COMMAND, "orderId": ORDER, "paymentId": OTHER, "amount": "39.98",
           "currency": "USD"})
}

fn ship() -> Value {
    json!({"type": "ShipOrder", "commandId": COMMAND, "orderId": ORDER, "carrier": "DHL", "trackingNumber": "JD014600"})
}

fn cancel() -> Value {
    json!({"type": "CancelOrder", "commandId": COMMAND, "orderId": ORDER, "reason": "changed my \"mind\" ☂"})
}

fn with(mut value: Value, pointer: &str, replacement: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap() {
        Value::Object(fields) => drop(fields.insert(name.to_owned(), replacement)),
        Value::Array(elements) => elements[name.parse::<usize>().unwrap()] = replacement,
        other => panic!("{other} has no {name}"),
    }
    value
}

fn without(mut value: Value, pointer: &str) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
    value
}

#[test]
fn every_command_of_the_contract_is_taken_and_written_back_the_same() {
    for value in [place(), pay(), ship(), cancel()] {
        let command = parse(&value).unwrap();
        assert_eq!(command.meta.command_id.to_string(), COMMAND);
        assert_eq!(command.meta.stream_id.to_string(), ORDER);
        assert_eq!(command.meta.expected_version, None);
        assert_eq!(serde_json::from_slice::<Value>(&command_to_json(&command)).unwrap(), value);
    }
}

#[test]
fn what_is_optional_may_be_absent_or_null() {
    assert_eq!(parse(&without(pay(), "/commandId")).unwrap().meta.command_id, FALLBACK);
    assert_eq!(parse(&with(pay(), "/commandId", Value::Null)).unwrap().meta.command_id, FALLBACK);
    assert_eq!(parse(&with(pay(), "/expectedVersion", json!(3))).unwrap().meta.expected_version, Some(3));
}

#[test]
fn a_refusal_names_the_field_and_keeps_the_ids() {
    let cases = [
        (with(place(), "/type", json!("PlaceOrders")), "/type must be one of"),
        (with(place(), "/type", json!(7)), "/type must be a string"),
        (without(place(), "/type"), "/type is missing"),
        (without(place(), "/customerId"), "/customerId is missing"),
        (with(place(), "/customerId", json!("")), "/customerId must be 1 to 128"),
        (with(place(), "/customerId", json!("x".repeat(129))), "/customerId must be 1 to 128"),
        (with(place(), "/customerId", json!("a\u{0}b")), "/customerId must not hold control"),
        (with(place(), "/currency", json!("usd")), "/currency must be a currency code"),
        (with(place(), "/currency", json!("XAU")), "/currency must be a currency code"),
        (with(place(), "/items", json!([])), "/items must be 1 to 1000 items, they are 0"),
        (with(place(), "/items", json!({})), "/items must be an array"),
        (with(place(), "/items/1", json!(4)), "/items/1 must be an object"),
        (with(place(), "/items/1/quantity", json!(0)), "/items/1/quantity must be 1 to 1000000, it is 0"),
        (with(place(), "/items/1/quantity", json!(-1)), "/items/1/quantity must be 1 to"),
        (with(place(), "/items/1/quantity", json!(1_000_001)), "/items/1/quantity must be 1 to"),
        (with(place(), "/items/1/quantity", json!("2")), "/items/1/quantity must be an integer"),
        (with(place(), "/items/1/quantity", json!(1.5)), "/items/1/quantity must be an integer"),
        (with(place(), "/items/1/quantity", json!(u64::MAX)), "/items/1/quantity must be an integer"),
        (with(place(), "/items/0/unitPrice", json!("1.23456")), "/items/0/unitPrice must have at most 4"),
        (with(place(), "/items/0/unitPrice", json!("-1")), "/items/0/unitPrice must be a decimal"),
        (with(place(), "/items/0/unitPrice", json!("1e3")), "/items/0/unitPrice must be a decimal"),
        (with(place(), "/items/0/unitPrice", json!(19.99)), "/items/0/unitPrice must be a string"),
        (with(place(), "/items/0/productId", json!("x")), "/items/0/productId must be a UUID"),
        (with(place(), "/items/0/color", json!("red")), "/items/0/color is no field of an item"),
        (without(place(), "/items/0/unitPrice"), "/items/0/unitPrice is missing"),
        (with(place(), "/reason", json!("x")), "/reason is no field of PlaceOrder"),
        (with(place(), "/status~x", json!("x")), "/status~0x is no field of a command"),
        (with(pay(), "/amount", json!("0.00")), "/amount must be above zero"),
        (with(pay(), "/amount", json!("1.234")), "/amount must have at most 2 decimals"),
        (with(pay(), "/amount", json!("9".repeat(400))), "/amount must be at most"),
        (with(pay(), "/paymentId", json!(OTHER.replace('-', ""))), "/paymentId must be a UUID"),
        (with(pay(), "/expectedVersion", json!(-1)), "/expectedVersion must be 0 or more"),
        (with(pay(), "/expectedVersion", json!("1")), "/expectedVersion must be an integer"),
        (with(pay(), "/colour", json!("red")), "/colour is no field of a command"),
        (without(ship(), "/carrier"), "/carrier is missing"),
        (with(ship(), "/trackingNumber", json!("x".repeat(129))), "/trackingNumber must be 1 to 128"),
        (with(cancel(), "/reason", json!("")), "/reason must be 1 to 1000"),
    ];
    for (value, expected) in cases {
        let refusal = parse(&value).unwrap_err();
        assert!(refusal.reason.starts_with(expected), "{}\nexpected {expected}", refusal.reason);
        assert_eq!(refusal.command_id.map(|id| id.to_string()).as_deref(), Some(COMMAND));
        assert_eq!(refusal.stream_id.map(|id| id.to_string()).as_deref(), Some(ORDER));
    }
}

#[test]
fn a_bad_id_is_named_and_the_other_kept() {
    let refusal = parse(&with(pay(), "/orderId", json!("42"))).unwrap_err();
    assert_eq!(
        refusal.reason,
        "/orderId must be a UUID such as \"0198c0de-7a3e-7000-8000-000000000001\"; it is \"42\""
    );
    assert_eq!((refusal.stream_id, refusal.command_id.is_some()), (None, true));
}

#[test]
fn what_is_no_json_object_is_refused() {
    for (value, expected) in [
        (&b""[..], "the value is empty"),
        (b"nonsense", "the value is not JSON"),
        (b"{\"type\":\"PlaceOrder\"", "the value is not JSON"),
        (b"[]", "the value must be a JSON object"),
        (b"null", "the value must be a JSON object"),
        (b"{\"type\":\"PlaceOrder\",\"type\":\"PlaceOrder\"}", "duplicate field"),
        (b"{\"type\":\"ShipOrder\"} {}", "the value is not JSON"),
        (b"{\"type\":\"\xff\"}", "the value is not JSON"),
    ] {
        let refusal = parse_command(value, FALLBACK).unwrap_err();
        assert!(refusal.reason.starts_with(expected), "{}\nexpected {expected}", refusal.reason);
        assert_eq!(refusal.command_id, None);
    }
}

#[test]
fn sizes_are_bounded() {
    let item = json!({"productId": OTHER, "quantity": 1, "unitPrice": "1"});
    assert!(parse(&with(place(), "/items", json!(vec![item.clone(); 1_000]))).is_ok());
    let refusal = parse(&with(place(), "/items", json!(vec![item; 1_001]))).unwrap_err();
    assert_eq!(refusal.reason, "/items must be 1 to 1000 items, they are 1001");
    let refusal = parse_command(&vec![b' '; MAX_COMMAND_BYTES + 1], FALLBACK).unwrap_err();
    assert!(refusal.reason.contains("bytes long"), "{}", refusal.reason);
    let deep = "[".repeat(100_000);
    assert!(parse_command(deep.as_bytes(), FALLBACK).unwrap_err().reason.contains("not JSON"));
    let long_name = with(pay(), &format!("/{}", "n".repeat(10_000)), json!(1));
    assert!(parse(&long_name).unwrap_err().reason.len() < 200);
}

#[test]
fn a_request_may_leave_out_what_its_route_tells() {
    let order_id = Uuid::from_u128(5);
    let route =
        RequestContext { kind: CommandKind::ShipOrder, order_id, order_id_is_fixed: true, command_id: FALLBACK };
    let body = json!({"carrier": "DHL", "trackingNumber": "1"});
    let command = parse_request(body.to_string().as_bytes(), route).unwrap();
    assert_eq!((command.meta.command_id, command.meta.stream_id), (FALLBACK, order_id));

    let given = with(body.clone(), "/commandId", json!(COMMAND));
    let command = parse_request(given.to_string().as_bytes(), route).unwrap();
    assert_eq!(command.meta.command_id.to_string(), COMMAND);

    for (pointer, value) in [("/orderId", json!(ORDER)), ("/type", json!("CancelOrder"))] {
        let refusal = parse_request(with(body.clone(), pointer, value).to_string().as_bytes(), route).unwrap_err();
        assert!(refusal.reason.starts_with(pointer), "{}", refusal.reason);
    }
    let free = RequestContext { order_id_is_fixed: false, ..route };
    let command = parse_request(with(body, "/orderId", json!(ORDER)).to_string().as_bytes(), free).unwrap();
    assert_eq!(command.meta.stream_id.to_string(), ORDER);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_commands_never_panic(which in 0usize..4, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = [place(), pay(), ship(), cancel()][which].to_string().into_bytes();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        if let Err(refusal) = parse_command(&bytes, FALLBACK) {
            prop_assert!(!refusal.reason.is_empty() && refusal.reason.len() < 400);
        }
    }
}
