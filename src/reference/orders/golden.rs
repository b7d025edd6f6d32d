//! Golden bytes of every published version: they decode, upcast and equal the expected newest value.
//!
//! The bytes were produced once, by an encoder that shares no code with ours, and are never
//! produced again: a ten-year-old event is exactly such bytes. They are data without the frame.

use serde_json::Value;

use super::codec::OrdersCodec;
use super::schemas;
use super::{OrdersCodecError, OrdersContext};
use throughline::avro::{
    Catalogue, CodecError, Fields, Published, SchemaIds, SchemaProblem, Upcaster, Upcasters, lock,
};
use throughline::engine::{BoundedContext, EventCodec};

const NEXT_STEP: &str = "add tests/golden/orders/TYPE.vN.hex (Avro datum) and .json (newest value)";

fn catalogue() -> Catalogue {
    schemas::catalogue().unwrap()
}

fn read(name: &str) -> String {
    let path = format!("{}/../../tests/golden/orders/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}; {NEXT_STEP}"))
}

/// The golden bytes of one version, framed as the store would hold them.
fn framed(event_type: &str, version: i16, ids: &SchemaIds) -> Vec<u8> {
    let hex: Vec<u8> = read(&format!("{event_type}.v{version}.hex")).bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut bytes = vec![0];
    bytes.extend(ids.id_of(event_type, version).unwrap().to_be_bytes());
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    bytes.extend(hex.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])));
    bytes
}

fn expected(event_type: &str, version: i16) -> Value {
    serde_json::from_str(&read(&format!("{event_type}.v{version}.json"))).unwrap()
}

/// Every version whose golden bytes do not become the expected newest value under these upcasters.
fn broken_under(upcasters: Upcasters) -> Vec<(String, i16, String)> {
    let (catalogue, ids) = (catalogue(), SchemaIds::in_order(&catalogue()));
    let codec = OrdersCodec::with(catalogue.clone(), upcasters, &ids).unwrap();
    let mut broken = Vec::new();
    for one in catalogue.schemas() {
        let found = match codec.decode(&framed(&one.event_type, one.version, &ids)) {
            Ok(event) if OrdersContext::describe_event(&event) == expected(&one.event_type, one.version) => continue,
            Ok(event) => OrdersContext::describe_event(&event).to_string(),
            Err(error) => error.to_string(),
        };
        broken.push((one.event_type.clone(), one.version, found));
    }
    broken
}

#[test]
fn every_published_version_decodes_to_the_expected_newest_value() {
    assert_eq!(broken_under(schemas::upcasters()), []);
}

#[test]
fn newest_golden_bytes_are_what_we_write() {
    let (catalogue, ids) = (catalogue(), SchemaIds::in_order(&catalogue()));
    let codec = OrdersCodec::new(&ids).unwrap();
    for newest in catalogue.newest_of_each() {
        let bytes = framed(&newest.event_type, newest.version, &ids);
        let encoded = codec.encode(&codec.decode(&bytes).unwrap()).unwrap();
        assert_eq!(encoded.bytes, bytes, "{}", newest.event_type);
        assert_eq!((encoded.event_type, encoded.schema_version), (newest.event_type.as_str(), newest.version));
    }
}

#[test]
fn schemas_lock_and_upcasters_are_sound() {
    let problems = lock::check(&catalogue(), &schemas::upcasters(), schemas::LOCK);
    let list: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert!(list.is_empty(), "\n{}", list.join("\n"));
}

/// A file that nobody lists would be reviewed, merged and never written, read or locked.
#[test]
fn every_schema_file_is_listed() {
    let directory = format!("{}/../../schemas/orders", env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = names.filter(|name| name.ends_with(".avsc")).collect();
    files.sort();
    let listed =
        catalogue().schemas().iter().map(|one| format!("{}.v{}.avsc", one.event_type, one.version)).collect::<Vec<_>>();
    assert_eq!(files, listed, "list it in src/orders/schemas.rs");
}

#[test]
fn a_broken_upcaster_is_found() {
    let steps = |totals: Upcaster| {
        Upcasters::new(&[
            ("OrderPlaced", 1, |fields: &mut Fields| {
                fields.set("currency", apache_avro::types::Value::String("USD".to_owned()));
                Ok(())
            }),
            ("OrderPlaced", 2, totals),
            ("OrderPlaced", 3, |fields| {
                fields.set("payment", apache_avro::types::Value::Null);
                Ok(())
            }),
            ("PaymentReceived", 1, |_| Err("not today".to_owned())),
            ("OrderShipped", 1, |fields| fields.rename("tracking", "trackingNumber")),
            ("OrderCancelled", 1, |fields| fields.remove("paid").map(drop)),
        ])
    };
    let expected = |broken: Vec<(String, i16, String)>| {
        broken.into_iter().map(|(event_type, version, _)| format!("{event_type} {version}")).collect::<Vec<_>>()
    };
    let all = ["OrderCancelled 1", "OrderPlaced 1", "OrderPlaced 2", "PaymentReceived 1"];
    // A step that forgets what it should add must not be rescued by the schema's defaults.
    assert_eq!(expected(broken_under(steps(|_| Ok(())))), all);
    assert_eq!(expected(broken_under(steps(|fields| fields.rename("customerId", "customer")))), all);
}

/// Our published schemas, with one definition changed.
fn with_changed(event_type: &str, version: i16, change: impl Fn(&str) -> String) -> Vec<SchemaProblem> {
    let published: Vec<(&str, i16, String)> = schemas::PUBLISHED
        .iter()
        .map(|one| {
            let is_it = (one.event_type, one.version) == (event_type, version);
            let text = if is_it { change(one.definition) } else { one.definition.to_owned() };
            (one.event_type, one.version, text)
        })
        .collect();
    let published: Vec<Published<'_>> = published
        .iter()
        .map(|(event_type, version, definition)| Published { event_type, version: *version, definition })
        .collect();
    let catalogue = Catalogue::new(schemas::EVENTS_TOPIC, schemas::NAMESPACE, &published).unwrap();
    lock::check(&catalogue, &schemas::upcasters(), schemas::LOCK)
}

#[test]
fn an_edited_and_an_incompatible_schema_of_ours_are_found() {
    let problems = with_changed("OrderPlaced", 2, |text| text.replace("\"default\": \"USD\"", "\"default\": \"EUR\""));
    assert!(matches!(&problems[..], [SchemaProblem::Edited { version: 2, .. }]), "{problems:?}");
    let problems = with_changed("OrderPlaced", 3, |text| text.replace(",\n      \"default\": \"USD\"", ""));
    let incompatible = |one: &SchemaProblem| matches!(one, SchemaProblem::Incompatible { version: 3, older: 1, .. });
    assert!(problems.iter().any(incompatible), "{problems:?}");
}

#[test]
fn a_missing_upcaster_refuses_to_start_and_says_which() {
    let ids = SchemaIds::in_order(&catalogue());
    let only = Upcasters::new(&[("OrderPlaced", 2, (|_| Ok(())) as Upcaster), ("OrderPlaced", 3, |_| Ok(()))]);
    let error = OrdersCodec::with(catalogue(), only, &ids).err().unwrap();
    let OrdersCodecError::Codec(CodecError::NoPath(lost)) = error else { panic!("{error}") };
    let lost: Vec<_> = lost.iter().map(|(event_type, version)| format!("{event_type} {version}")).collect();
    assert_eq!(lost, ["OrderCancelled 1", "OrderPlaced 1", "OrderShipped 1", "PaymentReceived 1"]);
}

#[test]
fn unknown_ids_versions_and_frames_are_refused_and_named() {
    let known = SchemaIds::in_order(&catalogue());
    let rows = known.iter().map(|(id, event_type, version)| (event_type.to_owned(), version, id));
    let ids = SchemaIds::new(rows.chain([("OrderPlaced".to_owned(), 5, 90), ("OrderSplit".to_owned(), 1, 91)]));
    let codec = OrdersCodec::new(&ids).unwrap();
    let refusal = |bytes: &[u8]| codec.decode(bytes).unwrap_err().to_string();
    assert!(refusal(&[0, 0, 0, 0, 90, 1, 2]).contains("OrderPlaced version 5, which this program does not know"));
    assert!(refusal(&[0, 0, 0, 0, 91]).contains("OrderSplit version 1"));
    assert!(refusal(&[0, 0, 0, 1, 0]).contains("schema id 256 is not registered"));
    assert!(refusal(&[1, 0, 0, 0, 1]).contains("not the Confluent wire format"));
    assert!(refusal(&[0, 0, 0]).contains("too few"));
    assert!(refusal(&[]).contains("too few"));
    assert!(refusal(&vec![0; 2_000_000]).contains("bytes long"));
    for one in catalogue().schemas() {
        let mut bytes = framed(&one.event_type, one.version, &ids);
        bytes.push(0);
        assert!(refusal(&bytes).contains("left over"), "{} {}", one.event_type, one.version);
    }
}

#[test]
fn an_event_can_be_shown_as_it_was_written() {
    let ids = SchemaIds::in_order(&catalogue());
    let codec = OrdersCodec::new(&ids).unwrap();
    let written = codec.written(&framed("OrderCancelled", 1, &ids)).unwrap();
    assert_eq!((written.event_type.as_str(), written.version), ("OrderCancelled", 1));
    assert_eq!(written.value["paid"], 3500);
    assert_eq!(written.value["orderId"], "0198c0de-7a3e-7000-8000-00000000a001");
}
