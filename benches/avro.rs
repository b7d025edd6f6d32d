//! Which Avro implementation reads and writes our events: apache-avro with cached writers and
//! readers against serde_avro_fast, on `OrderPlaced` version 4 with four items, byte-compared.
//! Also what the whole codec costs, and what an old version costs on its way to the newest.
//!
//! `cargo bench --bench avro`; prints nanoseconds an event (median of rounds) and ratios.

use std::hint::black_box;
use std::time::Instant;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use garde::Validate;
use reference::orders::domain::{
    Currency, Order, OrderCommand, OrderEvent, OrderedItem, PlaceOrder, Quantity, UnitPrice,
};
use reference::orders::{OrdersCodec, command_to_json, parse_command, schemas};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_avro_fast::ser::SerializerConfig;
use throughline::avro::{Catalogue, Published, SchemaIds, Schemas, Upcasters};
use throughline::engine::{Aggregate, BoundedContext as _, Decision, EventCodec};
use throughline::plain::{Plain, PlainContext};
use uuid::Uuid;

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(rename = "OrderPlaced", rename_all = "camelCase")]
struct Placed {
    order_id: String,
    customer: Customer,
    currency: String,
    items: Vec<Item>,
    total: i64,
    payment: Option<PaymentChoice>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
struct PaymentChoice {
    token: String,
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
struct Customer {
    id: String,
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
#[serde(rename = "OrderItem", rename_all = "camelCase")]
struct Item {
    product_id: String,
    quantity: i32,
    unit_price: i64,
    line_total: i64,
}

/// Orders as a context of plain types would have them: one enum of events, one of commands, and serde between.
#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
#[serde(rename_all_fields = "camelCase")]
enum PlainEvent {
    OrderPlaced {
        order_id: String,
        customer: Customer,
        currency: String,
        items: Vec<Item>,
        total: i64,
        payment: Option<PaymentChoice>,
    },
}

#[derive(Serialize, Deserialize, Validate, JsonSchema, Debug, Clone)]
#[serde(deny_unknown_fields, rename_all_fields = "camelCase")]
enum PlainCommand {
    PlaceOrder {
        #[garde(length(min = 1, max = 128))]
        customer_id: String,
        #[garde(length(min = 3, max = 3))]
        currency: String,
        #[garde(length(min = 1, max = 1_000), dive)]
        items: Vec<PlainItem>,
    },
}

#[derive(Serialize, Deserialize, Validate, JsonSchema, Debug, Clone)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PlainItem {
    #[garde(skip)]
    product_id: Uuid,
    #[garde(range(min = 1, max = 1_000_000))]
    quantity: i64,
    #[garde(length(min = 1, max = 20))]
    unit_price: String,
}

#[derive(Serialize, Deserialize, Debug, Clone, Default)]
struct PlainOrder;

impl Aggregate for PlainOrder {
    type Command = PlainCommand;
    type Event = PlainEvent;
    const SNAPSHOT_VERSION: i16 = 1;

    fn decide(&self, _: &PlainCommand) -> Decision<PlainEvent> {
        Ok(Vec::new())
    }

    fn evolve(&mut self, _: &PlainEvent) {}
}

struct PlainOrders;

impl PlainContext for PlainOrders {
    type Aggregate = PlainOrder;
    const NAME: &'static str = "orders";
    const NAMESPACE: &'static str = "throughline.orders";
    const STREAM_ID_FIELD: &'static str = "orderId";
    const SCHEMAS: Schemas = Schemas {
        published: &[Published {
            event_type: "OrderPlaced",
            version: 1,
            definition: include_str!("../schemas/orders/OrderPlaced.v4.avsc"),
        }],
        upcasters: || Upcasters::new(&[]),
        lock: "",
    };
}

const ROUNDS: usize = 15;
const PER_ROUND: usize = 4_000;

/// Median nanoseconds of one call.
fn nanoseconds(mut call: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..PER_ROUND).for_each(|_| call());
            start.elapsed().as_nanos() as f64 / PER_ROUND as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn show(what: &str, time: f64, reference: f64) {
    println!("{what:<58} {time:>9.0} ns   {:>6.2}x", reference / time);
}

fn place_order() -> OrderCommand {
    let item = |n: u128| OrderedItem {
        product_id: Uuid::from_u128(0x5f0b_9d43_6a1f_4e27_83b9_8d5c_7b1e_0000 + n),
        quantity: Quantity::new(17 + n as i64).expect("in bounds"),
        unit_price: UnitPrice::from_ten_thousandths(12_345_600 + n as i64).expect("in bounds"),
    };
    OrderCommand::PlaceOrder(PlaceOrder {
        order_id: Uuid::from_u128(0x0198_c0de_7a3e_7000_8000_0000_0000_0001),
        customer_id: "customer-000000042".to_owned(),
        currency: Currency::USD,
        items: (0..4).map(item).collect(),
        payment_token: None,
    })
}

fn owned(event: &OrderEvent) -> Placed {
    let OrderEvent::OrderPlaced(placed) = event else { panic!("PlaceOrder places") };
    Placed {
        order_id: placed.order_id.to_string(),
        customer: Customer { id: placed.customer_id.clone() },
        currency: placed.currency.code().to_owned(),
        items: placed
            .items
            .iter()
            .map(|item| Item {
                product_id: item.product_id.to_string(),
                quantity: item.quantity.get() as i32,
                unit_price: item.unit_price.ten_thousandths(),
                line_total: item.line_total.minor_units(),
            })
            .collect(),
        total: placed.total.minor_units(),
        payment: None,
    }
}

fn main() {
    let command = place_order();
    let event = Order::default().decide(&command).expect("a new order is placed").remove(0);
    let catalogue = schemas::catalogue().expect("the schemas are sound");
    let ids = SchemaIds::in_order(&catalogue);
    let newest = catalogue.newest("OrderPlaced").expect("it has a schema");
    let fast: serde_avro_fast::Schema = newest.definition.parse().expect("parses");
    let placed = owned(&event);

    let writer = GenericDatumWriter::builder(&newest.schema).build().expect("writer");
    let reader = GenericDatumReader::builder(&newest.schema).build().expect("reader");
    let mut config = SerializerConfig::new(&fast);
    let datum = writer.write_ser_to_vec(&placed).expect("encodes");
    assert_eq!(datum, serde_avro_fast::to_datum_vec(&placed, &mut config).expect("encodes"), "byte for byte");

    let codec = OrdersCodec::new(&ids).expect("codec");
    let encoded = codec.encode(&event).expect("encodes");
    assert_eq!(encoded.bytes[5..], datum, "the codec writes the same bytes");
    assert_eq!(codec.decode(&encoded.bytes).expect("decodes"), event);
    assert_eq!(reader.read_deser::<Placed>(&mut &datum[..]).expect("decodes"), placed);

    println!("OrderPlaced v{}, 4 items, {} bytes framed; equal bytes from both", newest.version, encoded.bytes.len());
    let reference = nanoseconds(|| drop(black_box(writer.write_ser_to_vec(black_box(&placed)))));
    show("encode  apache-avro, cached writer", reference, reference);
    let time = nanoseconds(|| drop(black_box(serde_avro_fast::to_datum_vec(black_box(&placed), &mut config))));
    show("encode  serde_avro_fast, same struct", time, reference);
    show(
        "encode  our codec, from the domain",
        nanoseconds(|| drop(black_box(codec.encode(black_box(&event))))),
        reference,
    );

    let reference = nanoseconds(|| drop(black_box(reader.read_deser::<Placed>(&mut black_box(&datum[..])))));
    show("decode  apache-avro, cached reader", reference, reference);
    let time = nanoseconds(|| drop(black_box(serde_avro_fast::from_datum_slice::<Placed>(black_box(&datum), &fast))));
    show("decode  serde_avro_fast, same struct", time, reference);
    let time = nanoseconds(|| drop(black_box(codec.decode(black_box(&encoded.bytes)))));
    show("decode  our codec, to the domain", time, reference);
    let old = version_1(&placed, &catalogue, &ids);
    show(
        "decode  our codec, version 1 upcast to the newest",
        nanoseconds(|| drop(black_box(codec.decode(black_box(&old))))),
        reference,
    );

    let plain = plain_event(&placed);
    let schemas =
        Catalogue::new("orders-events", PlainOrders::NAMESPACE, PlainOrders::SCHEMAS.published).expect("schemas");
    let plain_codec = Plain::<PlainOrders>::codec(&SchemaIds::in_order(&schemas)).expect("a codec");
    let plain_bytes = plain_codec.encode(&plain).expect("encodes").bytes;
    assert_eq!(plain_bytes[5..], datum, "plain types write the same bytes");
    let reference = nanoseconds(|| drop(black_box(codec.encode(black_box(&event)))));
    show("encode  our codec, from the domain", reference, reference);
    let time = nanoseconds(|| drop(black_box(plain_codec.encode(black_box(&plain)))));
    show("encode  a context of plain types", time, reference);
    let reference = nanoseconds(|| drop(black_box(codec.decode(black_box(&encoded.bytes)))));
    show("decode  our codec, to the domain", reference, reference);
    let time = nanoseconds(|| drop(black_box(plain_codec.decode(black_box(&plain_bytes)))));
    show("decode  a context of plain types", time, reference);

    let meta = throughline::engine::CommandMeta {
        command_id: Uuid::from_u128(1),
        stream_id: event.order_id(),
        expected_version: None,
    };
    let json = command_to_json(&throughline::engine::Command { meta, payload: command.clone() });
    println!("PlaceOrder, 4 items, {} bytes of JSON", json.len());
    let reference = nanoseconds(|| drop(black_box(serde_json::from_slice::<serde_json::Value>(black_box(&json)))));
    show("parse   serde_json::Value, nothing checked", reference, reference);
    let time = nanoseconds(|| drop(black_box(parse_command(black_box(&json), Uuid::nil()))));
    show("parse   our parser, everything checked", time, reference);
    Plain::<PlainOrders>::parse_command(&json, Uuid::nil()).expect("plain types read the same command");
    let time = nanoseconds(|| drop(black_box(Plain::<PlainOrders>::parse_command(black_box(&json), Uuid::nil()))));
    show("parse   a context of plain types, everything checked", time, reference);
    let order = Order::default();
    show("decide  PlaceOrder", nanoseconds(|| drop(black_box(order.decide(black_box(&command))))), reference);
}

fn plain_event(placed: &Placed) -> PlainEvent {
    let Placed { order_id, customer, currency, items, total, .. } = placed;
    PlainEvent::OrderPlaced {
        order_id: order_id.clone(),
        customer: customer.clone(),
        currency: currency.clone(),
        items: items.clone(),
        total: *total,
        payment: None,
    }
}

fn version_1(placed: &Placed, catalogue: &throughline::avro::Catalogue, ids: &SchemaIds) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename = "OrderPlaced", rename_all = "camelCase")]
    struct Placed1<'a> {
        order_id: &'a str,
        customer_id: &'a str,
        items: Vec<Item1<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename = "OrderItem", rename_all = "camelCase")]
    struct Item1<'a> {
        product_id: &'a str,
        quantity: i32,
        unit_price: i64,
    }
    let old = catalogue.schema("OrderPlaced", 1).expect("it is published");
    let items = placed.items.iter().map(|item| Item1 {
        product_id: &item.product_id,
        quantity: item.quantity,
        unit_price: item.unit_price,
    });
    let value = Placed1 { order_id: &placed.order_id, customer_id: &placed.customer.id, items: items.collect() };
    let writer = GenericDatumWriter::builder(&old.schema).build().expect("writer");
    let mut bytes = vec![0];
    bytes.extend(ids.id_of("OrderPlaced", 1).expect("it has an id").to_be_bytes());
    bytes.extend(writer.write_ser_to_vec(&value).expect("encodes"));
    bytes
}
