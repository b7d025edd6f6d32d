//! The TPC-H order book as commands, and the totals that the read tables have to equal.
//!
//! Totals are computed here from the generator's own numbers, in cents, without any code of the
//! pipeline: they are the independent side of the demo's proof.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tpchgen::generators::{LineItem, LineItemGenerator, OrderGenerator, OrderStatus};
use uuid::Uuid;

/// One command for one order: key and value of a record.
pub struct BookCommand {
    pub order_id: Uuid,
    pub value: String,
}

/// Orders and revenue (cents) of one status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatusTotal {
    pub orders: i64,
    pub cents: i64,
}

/// What a scale of the order book comes to.
#[derive(Debug, Default)]
pub struct Expected {
    pub orders: u64,
    pub lines: u64,
    pub commands: u64,
    pub by_status: BTreeMap<&'static str, StatusTotal>,
}

/// The order book at one TPC-H scale factor (1.0 = 1.5 million orders).
pub struct OrderBook {
    scale: f64,
}

impl OrderBook {
    pub fn new(scale: f64) -> Self {
        Self { scale }
    }

    /// Customers of this scale carry this prefix, so that books of several scales live side by side.
    pub fn customer_prefix(&self) -> String {
        format!("tpch-{}-", self.scale)
    }

    /// Deterministic: the same book twice is the same commands twice, and takes effect once.
    fn id(&self, kind: &str, key: impl std::fmt::Display) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("tpch/{}/{kind}/{key}", self.scale).as_bytes())
    }

    /// Calls `each` for every command, in the order of the book. An order that TPC-H calls finished
    /// (F) is placed, paid and shipped; one in process (P) placed and paid; an open one (O) placed.
    pub fn for_each(&self, mut each: impl FnMut(BookCommand)) -> Expected {
        let mut expected = Expected::default();
        let mut lines = LineItemGenerator::new(self.scale, 1, 1).iter().peekable();
        for order in OrderGenerator::new(self.scale, 1, 1).iter() {
            let order_id = self.id("order", order.o_orderkey);
            let mut items = Vec::new();
            let mut cents = 0;
            while let Some(line) = lines.next_if(|line| line.l_orderkey == order.o_orderkey) {
                cents += line.l_extendedprice.into_inner();
                items.push(self.item(&line));
            }
            expected.orders += 1;
            expected.lines += items.len() as u64;
            let customer = format!("{}{}", self.customer_prefix(), order.o_custkey);
            let (status, steps) = match order.o_orderstatus {
                OrderStatus::Fulfilled => ("shipped", 3),
                OrderStatus::Pending => ("paid", 2),
                OrderStatus::Open => ("placed", 1),
            };
            let total = expected.by_status.entry(status).or_default();
            total.orders += 1;
            total.cents += cents;
            let commands = [
                json!({"type": "PlaceOrder", "customerId": customer, "currency": "USD", "items": items}),
                json!({"type": "RecordPayment", "paymentId": self.id("payment", order.o_orderkey),
                       "amount": decimal(cents), "currency": "USD"}),
                json!({"type": "ShipOrder", "carrier": "TPC", "trackingNumber": format!("TPCH{}", order.o_orderkey)}),
            ];
            for (step, mut command) in commands.into_iter().take(steps).enumerate() {
                command["orderId"] = json!(order_id);
                command["commandId"] = json!(self.id("command", format_args!("{}/{step}", order.o_orderkey)));
                expected.commands += 1;
                each(BookCommand { order_id, value: command.to_string() });
            }
        }
        expected
    }

    fn item(&self, line: &LineItem<'_>) -> Value {
        let cents = line.l_extendedprice.into_inner();
        assert_eq!(cents % line.l_quantity, 0, "TPC-H prices a line at quantity times a price in cents");
        json!({
            "productId": self.id("part", line.l_partkey),
            "quantity": line.l_quantity,
            "unitPrice": decimal(cents / line.l_quantity),
        })
    }
}

/// Cents as a decimal string.
pub fn decimal(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}
