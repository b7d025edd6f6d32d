//! Hostile event bytes: 20,000 mutations of every published version's golden bytes. None panics,
//! and none makes the decoder hold more memory than a small multiple of what an event may weigh.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use reference::orders::{OrdersCodec, schemas};
use serde_json::{Value, json};
use throughline::avro::limits::{MAX_DEPTH, MAX_ELEMENTS, MAX_EVENT_BYTES};
use throughline::avro::{Catalogue, Codec, Published, SchemaIds, Upcasters};
use throughline::engine::EventCodec;

/// Counts what the current thread holds, to bound a single decode.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Threads that end have no counters any more; they decode nothing.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is handed to the system allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps alloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps dealloc's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MUTATIONS: usize = 20_000;
const PEAK_MAX: isize = 8 * 1024 * 1024;

fn golden(event_type: &str, version: i16) -> Vec<u8> {
    let path = format!("{}/../../tests/golden/orders/{event_type}.v{version}.hex", env!("CARGO_MANIFEST_DIR"));
    let text: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Changes the bytes after the frame in one of the ways that break decoders.
fn mutate(bytes: &mut Vec<u8>, rng: &mut SmallRng) {
    const FRAME: usize = 5;
    let at = rng.random_range(FRAME..bytes.len());
    match rng.random_range(0..7) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => bytes.extend((0..rng.random_range(1..64)).map(|_| rng.random::<u8>())),
        // A varint of a huge length or block count, positive or negative.
        4 => {
            let bomb = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, rng.random_range(0..2)];
            let keep = rng.random_range(1..=bomb.len());
            bytes.splice(at..at + 1, bomb[bomb.len() - keep..].iter().copied());
        }
        5 => {
            let end = rng.random_range(at..bytes.len());
            let piece: Vec<u8> = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => drop(bytes.drain(FRAME..at)),
    }
}

#[test]
fn mutated_events_neither_panic_nor_hoard() {
    let catalogue = schemas::catalogue().unwrap();
    let ids = SchemaIds::in_order(&catalogue);
    let codec = OrdersCodec::new(&ids).unwrap();
    let mut rng = SmallRng::seed_from_u64(0x5eed);
    let originals: Vec<Vec<u8>> = catalogue
        .schemas()
        .iter()
        .map(|one| {
            let mut bytes = vec![0];
            bytes.extend(ids.id_of(&one.event_type, one.version).unwrap().to_be_bytes());
            bytes.extend(golden(&one.event_type, one.version));
            bytes
        })
        .collect();
    let (mut decoded, mut refused) = (0, 0);
    for n in 0..MUTATIONS {
        let mut bytes = originals[n % originals.len()].clone();
        for _ in 0..rng.random_range(1..4) {
            if bytes.len() > 6 {
                mutate(&mut bytes, &mut rng);
            }
        }
        let before = HELD.get();
        PEAK.set(before);
        match codec.decode(&bytes) {
            Ok(event) => {
                decoded += 1;
                codec.encode(&event).expect("what decodes, encodes");
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
        let _ = codec.written(&bytes);
        assert!(PEAK.get() - before < PEAK_MAX, "mutation {n} held {} bytes", PEAK.get() - before);
    }
    assert!(decoded > 0 && refused > MUTATIONS / 2, "{decoded} decoded, {refused} refused");
}

#[test]
fn the_worst_claims_are_refused_cheaply() {
    let catalogue = schemas::catalogue().unwrap();
    let ids = SchemaIds::in_order(&catalogue);
    let codec = OrdersCodec::new(&ids).unwrap();
    for one in catalogue.schemas() {
        let mut frame = vec![0];
        frame.extend(ids.id_of(&one.event_type, one.version).unwrap().to_be_bytes());
        for filler in [0x00, 0x01, 0x02, 0x7f, 0x80, 0xfe, 0xff] {
            let mut bytes = frame.clone();
            bytes.resize(MAX_EVENT_BYTES, filler);
            let before = HELD.get();
            PEAK.set(before);
            codec.decode(&bytes).unwrap_err();
            assert!(PEAK.get() - before < PEAK_MAX, "{} {filler:x}", one.event_type);
        }
    }
}

/// A codec of one type with one field, and the frame of its id.
fn codec_of(field: &str) -> (Codec, Vec<u8>) {
    let definition = format!(
        r#"{{"type": "record", "name": "Sent", "namespace": "a.b", "fields": [{{"name": "f", "type": {field}}}]}}"#
    );
    let published = Published { event_type: "Sent", version: 1, definition: &definition };
    let catalogue = Catalogue::new("t", "a.b", &[published]).unwrap();
    let ids = SchemaIds::in_order(&catalogue);
    let mut frame = vec![0];
    frame.extend(ids.id_of("Sent", 1).unwrap().to_be_bytes());
    (Codec::new(catalogue, Upcasters::default(), &ids).unwrap(), frame)
}

/// Elements without a byte of their own: no length of the message bounds them.
#[test]
fn elements_of_nothing_are_counted() {
    let (codec, frame) = codec_of(r#"{"type": "array", "items": "null"}"#);
    let claiming = |elements: usize| {
        let mut bytes = frame.clone();
        let mut zigzag = (elements as u64) << 1;
        while zigzag >= 0x80 {
            bytes.push(zigzag as u8 | 0x80);
            zigzag >>= 7;
        }
        bytes.extend([zigzag as u8, 0]);
        bytes
    };
    let read = |bytes: &[u8]| {
        let (handle, datum) = codec.newest_datum(bytes).unwrap();
        codec.read::<Value>(handle, &datum).map(|value| value["f"].as_array().map(Vec::len))
    };
    assert_eq!(read(&claiming(MAX_ELEMENTS)).unwrap(), Some(MAX_ELEMENTS));
    for elements in [MAX_ELEMENTS + 1, 1_000_000_000, usize::MAX >> 2] {
        let before = HELD.get();
        PEAK.set(before);
        read(&claiming(elements)).unwrap_err();
        codec.written(&claiming(elements)).unwrap_err();
        assert!(PEAK.get() - before < 2 * PEAK_MAX, "{elements} held {} bytes", PEAK.get() - before);
    }
}

/// What the catalogue admits the decoders read: no event is written that cannot be read again.
#[test]
fn the_deepest_schema_is_read_back() {
    let arrays = MAX_DEPTH - 1;
    let (codec, _) =
        codec_of(&format!("{}\"long\"{}", r#"{"type": "array", "items": "#.repeat(arrays), "}".repeat(arrays)));
    let value = json!({"f": (0..arrays).fold(json!(7), |inner, _| json!([inner]))});
    let bytes = codec.encode(codec.handle("Sent").unwrap(), &value, 64).unwrap();
    let (handle, datum) = codec.newest_datum(&bytes).unwrap();
    assert_eq!(codec.read::<Value>(handle, &datum).unwrap(), value);
    assert_eq!(codec.written(&bytes).unwrap().value, value);
}
