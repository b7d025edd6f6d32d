//! Bytes that nobody meant, into everything that reads bytes of others: each answers, and none panics.
//!
//! Seeds are good inputs; each is changed at random, some times over. `FUZZ_SECONDS` (2 a target) makes it longer,
//! `FUZZ_SEED` repeats a run.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use reference::orders::{CommandKind, OrdersCodec, OrdersContext, RequestContext, parse_request, schemas};
use throughline::avro::SchemaIds;
use throughline::engine::{BoundedContext, EventCodec as _, ids};
use throughline::kafka::{Record, RecordHeaders, TopicPartition, headers};
use uuid::Uuid;

/// Tries each target on changed seeds, for a while.
fn fuzz(what: &str, seeds: &[Vec<u8>], mut target: impl FnMut(&[u8])) {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let seed = number("FUZZ_SEED", rand::random::<u32>().into());
    let (mut random, began) = (SmallRng::seed_from_u64(seed), Instant::now());
    let span = Duration::from_secs(number("FUZZ_SECONDS", 2));
    let mut tries = 0_u64;
    while began.elapsed() < span {
        let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
        for _ in 0..random.random_range(1..6) {
            change(&mut bytes, seeds, &mut random);
        }
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&bytes)));
        assert!(tried.is_ok(), "FUZZ_SEED={seed}: {what} panicked at {:?}", String::from_utf8_lossy(&bytes));
        tries += 1;
    }
    println!("{what}: {tries} inputs");
    assert!(tries > 100, "{what} is slow");
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut SmallRng) {
    const PIECES: [&[u8]; 16] = [
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"{",
        b"[[[[[[[[",
        b"\"",
        b"\\u0000",
        b"\\ud800",
        b"1e999",
        b"-0",
        b"null",
        b"99999999999999999999999",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b":",
        b",",
        b"\xe2\x80\xae",
    ];
    let at = random.random_range(0..=bytes.len());
    match random.random_range(0..6) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes.truncate(at),
        2 => drop(bytes.splice(at..at, PIECES[random.random_range(0..PIECES.len())].iter().copied())),
        3 => {
            let end = random.random_range(at..=bytes.len());
            drop(bytes.drain(at..end));
        }
        4 => {
            let other = &seeds[random.random_range(0..seeds.len())];
            let from = random.random_range(0..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => {
            let end = random.random_range(at..=bytes.len());
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
    }
    bytes.truncate(64 * 1024);
}

fn commands() -> Vec<Vec<u8>> {
    let order = "0198c0de-7a3e-7000-8000-000000000001";
    [
        format!(
            r#"{{"type":"PlaceOrder","commandId":"{order}","orderId":"{order}","customerId":"customer-42","currency":"USD",
                "items":[{{"productId":"{order}","quantity":2,"unitPrice":"19.99"}}],"payment":{{"token":"tok_approve"}}}}"#
        ),
        format!(r#"{{"type":"RecordPayment","orderId":"{order}","paymentId":"{order}","amount":"39.98","currency":"USD"}}"#),
        format!(r#"{{"type":"ShipOrder","orderId":"{order}","carrier":"DHL","trackingNumber":"J1","expectedVersion":2}}"#),
        format!(r#"{{"type":"CancelOrder","orderId":"{order}","reason":"changed my mind"}}"#),
        format!(r#"{{"type":"AuthorizePayment","paymentId":"{order}","orderId":"{order}","amount":"1.00","currency":"USD","token":"t"}}"#),
    ]
    .map(String::into_bytes)
    .to_vec()
}

#[test]
fn commands_of_any_bytes_are_commands_or_refused() {
    fuzz("orders' commands", &commands(), |bytes| drop(OrdersContext::parse_command(bytes, Uuid::nil())));
    let context = reference::payments::context();
    let payments: &dyn throughline::app::Hosted = &context;
    fuzz("plain commands", &commands(), |bytes| drop(payments.parse_command(bytes)));
}

#[test]
fn bodies_of_any_bytes_are_commands_or_refused() {
    let kinds = [CommandKind::PlaceOrder, CommandKind::RecordPayment, CommandKind::ShipOrder, CommandKind::CancelOrder];
    fuzz("bodies", &commands(), |bytes| {
        for kind in kinds {
            let (order_id, command_id) = (Uuid::from_u128(1), Uuid::from_u128(2));
            drop(parse_request(bytes, RequestContext { kind, order_id, order_id_is_fixed: true, command_id }));
        }
    });
}

#[test]
fn events_of_any_bytes_are_events_or_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/orders");
    let golden = std::fs::read_dir(folder).expect("golden bytes").map(|entry| entry.expect("an entry").path());
    let hex = golden.filter(|path| path.extension().is_some_and(|extension| extension == "hex"));
    let bytes = hex.map(|path| {
        let text: String = std::fs::read_to_string(path).expect("text").split_whitespace().collect();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
    });
    let seeds: Vec<Vec<u8>> = bytes.collect();
    let codec = OrdersCodec::new(&SchemaIds::in_order(&schemas::catalogue().expect("schemas"))).expect("a codec");
    fuzz("events", &seeds, |bytes| drop(codec.decode(bytes)));
}

#[test]
fn cursors_and_ids_of_any_bytes_are_read_or_refused() {
    let cursor = throughline::api::cursor::encode("orders", &["2026-01-01T00:00:00Z".into(), Uuid::nil().to_string()]);
    let seeds = [cursor.into_bytes(), Uuid::nil().to_string().into_bytes(), b"00-4bf92f-00f0-01".to_vec()];
    fuzz("cursors and ids", &seeds, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        drop(throughline::api::cursor::decode("orders", &text));
        let _ = (ids::parse_id(&text), ids::parse_key(bytes), headers::is_traceparent(&text));
    });
}

#[test]
fn headers_of_any_bytes_are_read_or_left() {
    let place = TopicPartition { topic: "t".into(), partition: 0 };
    let names: [&[u8]; 4] = [b"seq", b"command-id", b"ce_id", b"\xff"];
    let seeds = [b"17".to_vec(), Uuid::nil().to_string().into_bytes(), b"text".to_vec()];
    let mut turn = 0;
    fuzz("headers", &seeds, |bytes| {
        turn += 1;
        let mut read = RecordHeaders::default();
        read.push(names[turn % names.len()], Some(bytes));
        read.push(bytes, (turn % 2 == 0).then_some(bytes));
        let record = Record::new(place.clone(), 0, Some(bytes.to_vec()), None).with_headers(Some(read));
        let _ = (headers::seq_of(&record), record.header("ce_id"), record.sole_header("command-id").is_ok());
    });
}
