//! Commands as JSON: what is taken, what is refused, and which field the refusal names.

use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::command::{MAX_COMMAND_BYTES, RequestContext};
use super::domain::OrderCommand;
use super::{CommandKind, OrdersContext, command_to_json, parse_command, parse_request};
use throughline::engine::{Command, Fingerprint, InvalidCommand};

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
fn ids_are_judged_alike_in_every_field() {
    let upper = ORDER.to_uppercase();
    let spellings = [ORDER.replace('-', ""), format!("{{{ORDER}}}"), format!("urn:uuid:{ORDER}"), format!(" {ORDER}")];
    for pointer in ["/commandId", "/orderId", "/paymentId"] {
        assert!(parse(&with(pay(), pointer, json!(upper))).is_ok(), "{pointer}");
        for other in &spellings {
            let refusal = parse(&with(pay(), pointer, json!(other))).unwrap_err();
            assert!(refusal.reason.starts_with(&format!("{pointer} must be a UUID")), "{}", refusal.reason);
        }
    }
    // Other people's books may know a nil id; a command or an order of that name would be everybody's.
    let nil = json!(Uuid::nil());
    assert!(parse(&with(pay(), "/paymentId", nil.clone())).is_ok());
    for (pointer, told) in [("/commandId", (None, true)), ("/orderId", (Some(COMMAND), false))] {
        let refusal = parse(&with(pay(), pointer, nil.clone())).unwrap_err();
        assert!(refusal.reason.starts_with(&format!("{pointer} must not be the nil UUID")), "{}", refusal.reason);
        let command_id = refusal.command_id.map(|id| id.to_string());
        assert_eq!((command_id.as_deref(), refusal.stream_id.is_some()), told);
    }
}

fn meaning(json: &str) -> Fingerprint {
    parse_command(json.as_bytes(), FALLBACK)
        .unwrap_or_else(|error| panic!("{json}: {error}"))
        .fingerprint::<OrdersContext>()
}

/// The same commands as other writers write them.
#[test]
fn the_same_command_written_otherwise_means_the_same() {
    for value in [place(), pay(), ship(), cancel()] {
        let meant = meaning(&value.to_string());
        let fields: Vec<String> = value.as_object().unwrap().iter().rev().map(|(k, v)| format!("{k:?}:{v}")).collect();
        let escaped = value.to_string().replace('D', "\\u0044").replace('☂', "\\u2602").replace('/', "\\/");
        for written in [
            format!(" {value:#}\r\n\t "),
            format!("{{{}}}", fields.join(",")),
            escaped,
            with(value.clone(), "/expectedVersion", Value::Null).to_string(),
            with(value.clone(), "/commandId", json!(COMMAND.to_uppercase())).to_string(),
            // An id is what a command is found by: it may also come by header.
            without(value.clone(), "/commandId").to_string(),
            with(value.clone(), "/orderId", json!(ORDER.to_uppercase())).to_string(),
            String::from_utf8(command_to_json(&parse(&value).unwrap())).unwrap(),
        ] {
            assert_eq!(meaning(&written), meant, "{written}");
        }
    }
    let paid = |amount: &str| meaning(&with(pay(), "/amount", json!(amount)).to_string());
    assert_eq!(paid("39.9"), paid("39.90"));
    let priced = |price: &str| meaning(&with(place(), "/items/0/unitPrice", json!(price)).to_string());
    assert_eq!((priced("19.9"), priced("20")), (priced("19.9000"), priced("20.0")));
    let upper =
        with(with(place(), "/items/0/productId", json!(OTHER.to_uppercase())), "/items/1/productId", json!(OTHER));
    assert_eq!(meaning(&upper.to_string()), meaning(&place().to_string()));
}

#[test]
fn what_differs_in_any_field_means_something_else() {
    let mut items = place();
    items["items"].as_array_mut().unwrap().reverse();
    let others = [
        place(),
        with(place(), "/customerId", json!("customer-43")),
        with(place(), "/currency", json!("EUR")),
        with(place(), "/items/0/productId", json!(ORDER)),
        with(place(), "/items/0/quantity", json!(3)),
        with(place(), "/items/0/unitPrice", json!("19.98")),
        with(place(), "/items", json!([place()["items"][0]])),
        items,
        with(place(), "/expectedVersion", json!(0)),
        pay(),
        with(pay(), "/paymentId", json!(ORDER)),
        with(pay(), "/amount", json!("39.99")),
        with(pay(), "/currency", json!("EUR")),
        with(pay(), "/expectedVersion", json!(0)),
        with(pay(), "/expectedVersion", json!(1)),
        ship(),
        with(ship(), "/carrier", json!("DHLJ")),
        with(with(ship(), "/carrier", json!("DHLJ")), "/trackingNumber", json!("D014600")),
        cancel(),
        with(cancel(), "/reason", json!("changed my \"mind\" ☂ ")),
        with(cancel(), "/reason", json!("Changed my \"mind\" ☂")),
    ];
    let meanings: std::collections::HashSet<_> = others.iter().map(|value| meaning(&value.to_string())).collect();
    assert_eq!(meanings.len(), others.len());
}

/// Stored with outcomes: a form that changes takes retries of commands decided before for other commands.
#[test]
fn meanings_stay_what_they_were() {
    let hex = |value: Value| meaning(&value.to_string()).map(|byte| format!("{byte:02x}")).concat();
    let kept = [place(), pay(), ship(), cancel(), with(pay(), "/expectedVersion", json!(7))].map(hex);
    let as_stored = [
        "c4979cd892c8abf8e18bc0771313597e",
        "c335917d519658eff285cd66b02f414c",
        "8c6b02eb26d57e5cae236d748f7d6094",
        "a4714550051e3c48c8b26bf495c7db1a",
        "5cf10feef3894ee924cf2ec58b34f4e2",
    ];
    assert_eq!(kept, as_stored);
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
