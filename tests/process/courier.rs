//! A process manager for these tests: it pays an order, ships it once paid, and cancels it if that takes too long.

use std::time::Duration;

use reference::orders::OrdersContext;
use reference::orders::domain::OrderEvent;
use serde::{Deserialize, Serialize};
use serde_json::json;
use throughline::App;
use throughline::engine::{Action, Concern, Input, ProcessManager, Recorded};
use throughline::process::Process;
use uuid::Uuid;

/// Its customer never pays.
pub const SILENT: &str = "silent";
/// Its order is too much for the process, until that is mended.
pub const POISON: &str = "poison";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Told {
    Placed { customer: String, total: String, currency: String },
    Paid,
    Shipped,
    Cancelled,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub paid: bool,
    pub shipped: bool,
    pub cancelled: bool,
    pub accepted: u32,
    pub refused: u32,
}

pub struct Courier {
    patience: Duration,
    mended: bool,
}

impl ProcessManager for Courier {
    const NAME: &'static str = "courier";
    type Event = Told;
    type State = Order;

    fn handle(&self, order_id: Uuid, order: &mut Order, input: &Input<Told>) -> Vec<Action> {
        match input {
            Input::Event(Told::Placed { customer, total, currency }) => {
                assert!(self.mended || customer != POISON, "this is too much");
                let patience = if customer == SILENT { self.patience } else { Duration::from_mins(10) };
                let mut actions = vec![Action::set_deadline("paid", patience)];
                if customer != SILENT {
                    let payment =
                        json!({"type": "RecordPayment", "paymentId": order_id, "amount": total, "currency": currency});
                    actions.push(Action::send::<OrdersContext>(order_id, payment));
                }
                actions
            }
            Input::Event(Told::Paid) => {
                order.paid = true;
                let shipment = json!({"type": "ShipOrder", "carrier": "DHL", "trackingNumber": "1"});
                vec![Action::clear_deadline("paid"), Action::send::<OrdersContext>(order_id, shipment)]
            }
            Input::Event(Told::Shipped) => {
                order.shipped = true;
                vec![]
            }
            Input::Event(Told::Cancelled) => {
                order.cancelled = true;
                vec![]
            }
            Input::Outcome(outcome) if outcome.accepted => {
                order.accepted += 1;
                vec![]
            }
            Input::Outcome(_) => {
                order.refused += 1;
                vec![]
            }
            Input::Deadline(_) => {
                vec![Action::send::<OrdersContext>(order_id, json!({"type": "CancelOrder", "reason": "too late"}))]
            }
        }
    }
}

fn route(event: &Recorded<OrderEvent>) -> Option<Concern<Told>> {
    let order = event.stream_id;
    Some(match &event.event {
        OrderEvent::OrderPlaced(placed) => {
            let (total, currency) = (placed.total.amount_text(), placed.currency.code().to_owned());
            Concern::Begins(order, Told::Placed { customer: placed.customer_id.clone(), total, currency })
        }
        OrderEvent::PaymentReceived(_) => Concern::Continues(order, Told::Paid),
        OrderEvent::OrderShipped(_) => Concern::Continues(order, Told::Shipped),
        OrderEvent::OrderCancelled(_) => Concern::Continues(order, Told::Cancelled),
    })
}

/// The environment of a process that says how patient it is, milliseconds, and whether it is mended.
pub const PATIENCE: &str = "COURIER_PATIENCE_MS";
pub const MENDED: &str = "COURIER_MENDED";

/// The application of these tests.
pub fn app() -> App {
    let process = Process::new(|_| {
        let patience = std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok()).unwrap_or(600_000);
        Ok(Courier { patience: Duration::from_millis(patience), mended: std::env::var_os(MENDED).is_some() })
    });
    App::new("test")
        .context(reference::orders::context())
        .process(process.events::<OrdersContext>(route).outcomes::<OrdersContext>())
}

/// The same, mended.
pub fn mended() -> App {
    let process = Process::new(|_| Ok(Courier { patience: Duration::from_mins(10), mended: true }));
    App::new("test")
        .context(reference::orders::context())
        .process(process.events::<OrdersContext>(route).outcomes::<OrdersContext>())
}
