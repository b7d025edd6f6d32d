//! The rules of orders, written a second time from the README alone.

use std::collections::HashSet;

use serde_json::Value;

/// An order, in cents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    pub placed: bool,
    pub shipped: bool,
    pub cancelled: bool,
    pub total: i64,
    pub paid: i64,
    pub version: i64,
    payments: HashSet<String>,
}

impl Order {
    pub fn status(&self) -> &'static str {
        match () {
            () if self.cancelled => "cancelled",
            () if self.shipped => "shipped",
            () if self.paid == self.total => "paid",
            () => "placed",
        }
    }

    /// The event that a command leads to, or the code of its refusal.
    pub fn decide(&mut self, command: &Value) -> Result<&'static str, &'static str> {
        let event = match command["type"].as_str().expect("a type") {
            "PlaceOrder" if self.placed => return Err("ORDER_ALREADY_PLACED"),
            "PlaceOrder" => {
                let items = command["items"].as_array().expect("items").iter();
                self.total = items.map(|item| item["quantity"].as_i64().unwrap() * cents(&item["unitPrice"])).sum();
                self.placed = true;
                "OrderPlaced"
            }
            _ if !self.placed => return Err("ORDER_NOT_FOUND"),
            "RecordPayment" => {
                let (payment, amount) =
                    (command["paymentId"].as_str().expect("an id").to_owned(), cents(&command["amount"]));
                if self.payments.contains(&payment) {
                    return Err("PAYMENT_ALREADY_RECORDED");
                }
                if self.cancelled {
                    return Err("ORDER_CANCELLED");
                }
                if self.paid + amount > self.total {
                    return Err("PAYMENT_EXCEEDS_TOTAL");
                }
                self.payments.insert(payment);
                self.paid += amount;
                "PaymentReceived"
            }
            "ShipOrder" => match self.status() {
                "paid" => {
                    self.shipped = true;
                    "OrderShipped"
                }
                "placed" => return Err("ORDER_NOT_PAID"),
                "shipped" => return Err("ORDER_ALREADY_SHIPPED"),
                _ => return Err("ORDER_CANCELLED"),
            },
            "CancelOrder" => match self.status() {
                "shipped" => return Err("ORDER_ALREADY_SHIPPED"),
                "cancelled" => return Err("ORDER_CANCELLED"),
                _ => {
                    self.cancelled = true;
                    "OrderCancelled"
                }
            },
            other => panic!("no command is called {other}"),
        };
        self.version += 1;
        Ok(event)
    }
}

fn cents(value: &Value) -> i64 {
    let text = value.as_str().expect("a decimal");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    whole.parse::<i64>().expect("a number") * 100 + format!("{part:0<2}").parse::<i64>().expect("cents")
}
