//! An independent fold of the events, and the comparison of the read tables with it.
//!
//! Shares no code with the projections: it takes the log one event at a time and keeps plain maps.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use reference::orders::domain::OrderEvent;
use rust_decimal::Decimal;
use throughline::engine::EventCodec as _;
use uuid::Uuid;

use super::bed::{Bed, Stored};

struct Order {
    partition: i32,
    customer: String,
    currency: String,
    status: &'static str,
    total: Decimal,
    paid: Decimal,
    lines: Vec<(Uuid, i64, Decimal, Decimal)>,
    version: i64,
    placed_micros: i64,
    updated_micros: i64,
    day: String,
    shipment: String,
    reason: String,
    refund: Option<Decimal>,
}

/// Rows of every read table, as text.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Tables(pub BTreeMap<&'static str, BTreeSet<String>>);

fn number(value: Decimal) -> String {
    value.normalize().to_string()
}

/// Folds `log` into the rows that the tables of `projection` should hold.
pub fn fold(bed: &Bed, projection: &str, log: &[Stored]) -> Tables {
    let mut orders: BTreeMap<Uuid, Order> = BTreeMap::new();
    let mut history = BTreeSet::new();
    for stored in log {
        let event = bed.codec.decode(&stored.payload).expect("decodes");
        let micros = stored.recorded_at.as_microsecond();
        history.insert(format!(
            "{}|{}|{}|{}|{}|{micros}",
            stored.stream_id, stored.version, stored.seq, stored.event_id, stored.event_type
        ));
        if let OrderEvent::OrderPlaced(placed) = &event {
            orders.insert(
                stored.stream_id,
                Order {
                    partition: stored.partition,
                    customer: placed.customer_id.clone(),
                    currency: placed.currency.code().to_owned(),
                    status: "placed",
                    total: placed.total.decimal(),
                    paid: Decimal::ZERO,
                    lines: placed
                        .items
                        .iter()
                        .map(|i| (i.product_id, i.quantity.get(), i.unit_price.decimal(), i.line_total.decimal()))
                        .collect(),
                    version: 0,
                    placed_micros: micros,
                    updated_micros: 0,
                    day: stored.recorded_at.to_zoned(TimeZone::UTC).date().to_string(),
                    shipment: String::new(),
                    reason: String::new(),
                    refund: None,
                },
            );
        }
        // An order whose placing was skipped has no row.
        let Some(order) = orders.get_mut(&stored.stream_id) else { continue };
        order.version = stored.version;
        order.updated_micros = micros;
        match event {
            OrderEvent::OrderPlaced(_) => {}
            OrderEvent::PaymentReceived(payment) => {
                order.paid += payment.amount.decimal();
                if order.paid == order.total {
                    order.status = "paid";
                }
            }
            OrderEvent::OrderShipped(shipped) => {
                order.status = "shipped";
                order.shipment = format!("{}/{}", shipped.carrier, shipped.tracking_number);
            }
            OrderEvent::OrderCancelled(cancelled) => {
                order.status = "cancelled";
                order.reason = cancelled.reason;
                order.refund = Some(cancelled.refund_due.decimal());
            }
        }
    }
    let mut tables = Tables::default();
    match projection {
        "order-list" => {
            tables.0.insert("order_list", orders.iter().map(|(id, o)| list_row(id, o)).collect());
        }
        "order-details" => {
            let details = |(id, o): (&Uuid, &Order)| {
                let refund = o.refund.map(number).unwrap_or_default();
                format!("{}|{}|{}|{refund}", list_row(id, o), o.shipment, o.reason)
            };
            tables.0.insert("order_details", orders.iter().map(details).collect());
            let lines = orders.iter().flat_map(|(id, o)| {
                (1..).zip(&o.lines).map(move |(line, (product, quantity, price, total))| {
                    format!("{id}|{line}|{product}|{quantity}|{}|{}", number(*price), number(*total))
                })
            });
            tables.0.insert("order_lines", lines.collect());
        }
        "daily-sales" => {
            tables.0.insert("daily_sales", daily_sales(&orders));
        }
        "customer-summary" => {
            tables.0.insert("customer_summary", customers(&orders));
        }
        "order-history" => {
            tables.0.insert("order_history", history);
        }
        other => panic!("no fold for {other}"),
    }
    tables
}

fn list_row(id: &Uuid, o: &Order) -> String {
    format!(
        "{id}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}",
        o.partition,
        o.customer,
        o.status,
        o.currency,
        number(o.total),
        number(o.paid),
        o.lines.len(),
        o.version,
        o.placed_micros,
        o.updated_micros
    )
}

fn daily_sales(orders: &BTreeMap<Uuid, Order>) -> BTreeSet<String> {
    let mut sums: BTreeMap<(String, Uuid, String), (BTreeSet<Uuid>, i64, Decimal)> = BTreeMap::new();
    for (id, order) in orders.iter().filter(|(_, order)| order.status != "cancelled") {
        for (product, quantity, _, total) in &order.lines {
            let sum = sums.entry((order.day.clone(), *product, order.currency.clone())).or_default();
            sum.0.insert(*id);
            sum.1 += quantity;
            sum.2 += total;
        }
    }
    sums.into_iter()
        .map(|((day, product, currency), (ids, quantity, revenue))| {
            format!("{day}|{product}|{currency}|{}|{quantity}|{}", ids.len(), number(revenue))
        })
        .collect()
}

fn customers(orders: &BTreeMap<Uuid, Order>) -> BTreeSet<String> {
    #[derive(Default)]
    struct Sum {
        orders: i64,
        shipped: i64,
        cancelled: i64,
        ordered: Decimal,
        called_off: Decimal,
        paid: Decimal,
        refund: Decimal,
        times: BTreeSet<i64>,
    }
    let mut sums: BTreeMap<(String, String), Sum> = BTreeMap::new();
    for order in orders.values() {
        let sum = sums.entry((order.customer.clone(), order.currency.clone())).or_default();
        sum.orders += 1;
        sum.ordered += order.total;
        sum.paid += order.paid;
        sum.times.insert(order.placed_micros);
        match order.status {
            "shipped" => sum.shipped += 1,
            "cancelled" => {
                sum.cancelled += 1;
                sum.called_off += order.total;
                sum.refund += order.refund.unwrap_or_default();
            }
            _ => {}
        }
    }
    sums.into_iter()
        .map(|((customer, currency), s)| {
            format!(
                "{customer}|{currency}|{}|{}|{}|{}|{}|{}|{}|{}|{}",
                s.orders,
                s.shipped,
                s.cancelled,
                number(s.ordered),
                number(s.called_off),
                number(s.paid),
                number(s.refund),
                s.times.first().unwrap(),
                s.times.last().unwrap()
            )
        })
        .collect()
}

const MICROS: &str = "(extract(epoch from %) * 1000000)::bigint";

fn micros(column: &str) -> String {
    MICROS.replace('%', column)
}

/// The rows that the tables of `projection` hold, in schema `schema`.
pub async fn rows(bed: &Bed, projection: &str, schema: &str) -> Tables {
    let list = format!(
        "order_id, partition, customer_id, status, currency, trim_scale(total), trim_scale(paid), %, version, {}, {}",
        micros("placed_at"),
        micros("updated_at")
    );
    let queries: Vec<(&'static str, String)> = match projection {
        "order-list" => vec![("order_list", list.replace('%', "item_count"))],
        "order-details" => vec![
            (
                "order_details",
                format!(
                    "{}, coalesce(carrier || '/' || tracking_number, ''), coalesce(cancellation_reason, ''),
                     coalesce(trim_scale(refund_due)::text, '')",
                    list.replace(
                        '%',
                        &format!("(select count(*) from {schema}.order_lines l where l.order_id = t.order_id)")
                    )
                ),
            ),
            (
                "order_lines",
                "order_id, line, product_id, quantity, trim_scale(unit_price), trim_scale(line_total)".into(),
            ),
        ],
        "daily-sales" => {
            vec![("daily_sales", "day, product_id, currency, orders, quantity, trim_scale(revenue)".into())]
        }
        "customer-summary" => vec![(
            "customer_summary",
            format!(
                "customer_id, currency, orders, orders_shipped, orders_cancelled, trim_scale(ordered),
                 trim_scale(cancelled), trim_scale(paid), trim_scale(refund_due), {}, {}",
                micros("first_order_at"),
                micros("last_order_at")
            ),
        )],
        "order-history" => {
            vec![("order_history", format!("order_id, version, seq, event_id, type, {}", micros("recorded_at")))]
        }
        other => panic!("no tables for {other}"),
    };
    let mut tables = Tables::default();
    for (table, columns) in queries {
        let sql = format!("select concat_ws('|', {columns}) from {schema}.{table} t");
        let rows = bed
            .owner
            .query(&sql, &[])
            .await
            .unwrap_or_else(|error| panic!("{sql}: {}", throughline::store::describe(&error)));
        tables.0.insert(table, rows.iter().map(|row| row.get(0)).collect());
        let count = bed.number(&format!("select count(*) from {schema}.{table}")).await;
        assert_eq!(count as usize, tables.0[table].len(), "rows of {table} are distinct");
    }
    tables
}

/// Asserts that the live tables equal the fold of `log`.
#[track_caller]
pub fn assert_same(actual: &Tables, expected: &Tables) {
    for (table, rows) in &expected.0 {
        let found = &actual.0[table];
        let missing: Vec<_> = rows.difference(found).take(3).collect();
        let extra: Vec<_> = found.difference(rows).take(3).collect();
        assert!(
            missing.is_empty() && extra.is_empty(),
            "{table}: {} rows, expected {}; missing {missing:#?}, unexpected {extra:#?}",
            found.len(),
            rows.len()
        );
    }
}

/// Asserts that the live tables of `projection` equal the fold of everything appended.
pub async fn assert_folded(bed: &Bed, projection: &str) {
    assert_same(&rows(bed, projection, "read").await, &fold(bed, projection, &bed.log));
}
