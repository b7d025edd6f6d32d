//! `checkout`: between orders and payments, for orders that are placed with a payment.
//!
//! Placed: authorise. Authorised: record it on the order. Shipped: capture. Declined, or no answer by the deadline: cancel
//! the order. Cancelled, however: void what is not captured, refund what is. It remembers what is so and what it asked
//! for; what it does follows from these, in whatever order the two contexts are heard.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use throughline::engine::{Action, CommandOutcome, Concern, Input, ProcessManager, Recorded};
use throughline::process::Process;
use uuid::Uuid;

use crate::orders::OrdersContext;
use crate::orders::domain::OrderEvent;
use crate::payments::PaymentsContext;
use crate::payments::domain::PaymentEvent;

/// The deadline for the gateway's answer.
const AUTHORIZE: &str = "authorize";
const DECLINED: &str = "PAYMENT_DECLINED";
const TIMED_OUT: &str = "PAYMENT_TIMED_OUT";

/// What concerns it of orders and payments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Heard {
    /// An order with a payment: the amount as decimal text.
    Placed {
        amount: String,
        currency: String,
        token: String,
    },
    Shipped,
    Cancelled,
    Authorized {
        amount: String,
        currency: String,
    },
    Declined,
    Captured,
    Voided,
    Refunded,
}

/// One order's checkout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkout {
    pub authorized: bool,
    pub captured: bool,
    pub shipped: bool,
    /// The order is, or is asked to be.
    pub cancelled: bool,
    /// Each is asked for once.
    pub asked: Asked,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    pub cancel: bool,
    pub capture: bool,
    /// Once it is given up, nothing is captured.
    pub void: bool,
    pub refund: bool,
}

/// Its settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CheckoutSettings {
    /// The gateway's answer is waited for so long, milliseconds.
    authorize_timeout_ms: u64,
}

impl Default for CheckoutSettings {
    fn default() -> Self {
        Self { authorize_timeout_ms: 60_000 }
    }
}

/// The process manager.
pub struct CheckoutProcess {
    /// For the gateway's answer.
    pub authorize_timeout: Duration,
}

/// The payment of an order.
pub fn payment_of(order_id: Uuid) -> Uuid {
    Uuid::new_v5(&order_id, b"checkout/payment")
}

impl ProcessManager for CheckoutProcess {
    const NAME: &'static str = "checkout";
    type Event = Heard;
    type State = Checkout;

    fn handle(&self, order: Uuid, checkout: &mut Checkout, input: &Input<Heard>) -> Vec<Action> {
        match input {
            Input::Event(Heard::Placed { amount, currency, token }) => {
                let ask = json!({"type": "AuthorizePayment", "orderId": order, "amount": amount, "currency": currency,
                                 "token": token});
                vec![
                    Action::set_deadline(AUTHORIZE, self.authorize_timeout),
                    Action::send::<PaymentsContext>(payment_of(order), ask),
                ]
            }
            Input::Event(Heard::Authorized { amount, currency }) => {
                checkout.authorized = true;
                let mut actions = vec![Action::clear_deadline(AUTHORIZE)];
                // A late answer to an order that is given up, or asked to be, is given up as well.
                if checkout.cancelled || checkout.asked.void {
                    actions.extend(checkout.give_up(order));
                } else {
                    let payment = json!({"type": "RecordPayment", "paymentId": payment_of(order), "amount": amount,
                                         "currency": currency});
                    actions.push(Action::send::<OrdersContext>(order, payment));
                }
                actions
            }
            Input::Event(Heard::Declined) => {
                let cancel = checkout.cancel(order, DECLINED);
                [Action::clear_deadline(AUTHORIZE)].into_iter().chain(cancel).collect()
            }
            Input::Deadline(_) if checkout.authorized => vec![],
            Input::Deadline(_) => checkout.cancel(order, TIMED_OUT),
            Input::Event(Heard::Shipped) => {
                checkout.shipped = true;
                checkout.capture(order)
            }
            Input::Event(Heard::Cancelled) => {
                checkout.cancelled = true;
                checkout.give_up(order)
            }
            Input::Event(Heard::Captured) => {
                checkout.captured = true;
                if checkout.cancelled { checkout.give_up(order) } else { vec![] }
            }
            Input::Event(Heard::Voided | Heard::Refunded) => vec![],
            Input::Outcome(outcome) if outcome.accepted => vec![],
            Input::Outcome(refused) => checkout.refused(order, refused),
        }
    }
}

impl Checkout {
    fn cancel(&mut self, order: Uuid, reason: &str) -> Vec<Action> {
        if self.cancelled || self.asked.cancel {
            return vec![];
        }
        (self.asked.cancel, self.cancelled) = (true, true);
        vec![Action::send::<OrdersContext>(order, json!({"type": "CancelOrder", "reason": reason}))]
    }

    fn capture(&mut self, order: Uuid) -> Vec<Action> {
        if !self.authorized || self.asked.capture || self.asked.void {
            return vec![];
        }
        self.asked.capture = true;
        vec![Action::send::<PaymentsContext>(payment_of(order), json!({"type": "CapturePayment"}))]
    }

    /// Gives the payment up: back where it was taken, else void, whether the gateway has answered or not.
    fn give_up(&mut self, order: Uuid) -> Vec<Action> {
        let (asked, command) = match self.captured {
            true => (&mut self.asked.refund, "RefundPayment"),
            false => (&mut self.asked.void, "VoidPayment"),
        };
        if std::mem::replace(asked, true) {
            return vec![];
        }
        vec![
            Action::clear_deadline(AUTHORIZE),
            Action::send::<PaymentsContext>(payment_of(order), json!({"type": command})),
        ]
    }

    fn refused(&mut self, order: Uuid, refused: &CommandOutcome) -> Vec<Action> {
        match refused.command.as_str() {
            // Nothing will be authorised.
            "AuthorizePayment" => self.cancel(order, DECLINED),
            // Cancelled meanwhile, or paid in another way: this payment is not needed.
            "RecordPayment" => self.give_up(order),
            // It was shipped, or cancelled by another; paid it was not by this payment, which is given up.
            "CancelOrder" => self.give_up(order),
            _ => vec![],
        }
    }
}

/// Checkout, as an application registers it. How long the gateway may take is the setting
/// `checkout.authorize_timeout_ms`.
pub fn process() -> Process<CheckoutProcess> {
    Process::new(|settings| {
        let own: CheckoutSettings = settings.section("checkout")?;
        Ok(CheckoutProcess { authorize_timeout: Duration::from_millis(own.authorize_timeout_ms) })
    })
    .events::<OrdersContext>(of_orders)
    .events::<PaymentsContext>(of_payments)
    .outcomes::<OrdersContext>()
    .outcomes::<PaymentsContext>()
}

/// Whose an event of orders is: it begins with one that is placed with a payment.
pub fn of_orders(event: &Recorded<OrderEvent>) -> Option<Concern<Heard>> {
    let order = event.stream_id;
    Some(match &event.event {
        OrderEvent::OrderPlaced(placed) => {
            let (amount, currency) = (placed.total.amount_text(), placed.currency.code().to_owned());
            Concern::Begins(order, Heard::Placed { amount, currency, token: placed.payment_token.clone()? })
        }
        OrderEvent::OrderShipped(_) => Concern::Continues(order, Heard::Shipped),
        OrderEvent::OrderCancelled(_) => Concern::Continues(order, Heard::Cancelled),
        OrderEvent::PaymentReceived(_) => return None,
    })
}

/// Whose an event of payments is.
pub fn of_payments(event: &Recorded<PaymentEvent>) -> Option<Concern<Heard>> {
    let due = event.event.due();
    // A payment that somebody else asked for is none of ours.
    if event.stream_id != payment_of(due.order_id) {
        return None;
    }
    let (amount, currency) = (due.amount.amount_text(), due.amount.currency().code().to_owned());
    let heard = match &event.event {
        PaymentEvent::PaymentRequested { .. } => return None,
        PaymentEvent::PaymentAuthorized { .. } => Heard::Authorized { amount, currency },
        PaymentEvent::PaymentDeclined { .. } => Heard::Declined,
        PaymentEvent::PaymentCaptured { .. } => Heard::Captured,
        PaymentEvent::PaymentVoided { .. } => Heard::Voided,
        PaymentEvent::PaymentRefunded { .. } => Heard::Refunded,
    };
    Some(Concern::Continues(due.order_id, heard))
}

#[cfg(test)]
mod tests {
    use throughline::testing::given_inputs;

    use super::*;

    const ORDER: Uuid = Uuid::from_u128(1);

    fn placed() -> Input<Heard> {
        Input::Event(Heard::Placed { amount: "19.99".into(), currency: "USD".into(), token: "tok_approve".into() })
    }

    fn authorized() -> Input<Heard> {
        Input::Event(Heard::Authorized { amount: "19.99".into(), currency: "USD".into() })
    }

    fn refused(command: &str) -> Input<Heard> {
        Input::Outcome(CommandOutcome {
            context: "orders".into(),
            command: command.into(),
            stream_id: ORDER,
            accepted: false,
            code: Some("ORDER_CANCELLED".into()),
            reason: None,
        })
    }

    fn timed_out() -> Input<Heard> {
        Input::Deadline(AUTHORIZE.into())
    }

    /// The commands that follow from the last of `inputs`, with the reasons of cancellations.
    fn sent(inputs: &[Input<Heard>]) -> Vec<String> {
        let process = CheckoutProcess { authorize_timeout: Duration::from_secs(60) };
        let (last, past) = inputs.split_last().expect("an input");
        let last = given_inputs(&process, past.iter().cloned()).when(last.clone()).actions;
        let said = |action: &Action| match action {
            Action::Send(sending) => {
                let reason = sending.body["reason"].as_str().map(|reason| format!(" {reason}")).unwrap_or_default();
                Some(format!("{}{reason}", sending.command()))
            }
            _ => None,
        };
        last.iter().filter_map(said).collect()
    }

    #[test]
    fn an_order_is_authorised_paid_shipped_and_captured() {
        let (shipped, captured) = (Input::Event(Heard::Shipped), Input::Event(Heard::Captured));
        assert_eq!(sent(&[placed()]), ["AuthorizePayment"]);
        assert_eq!(sent(&[placed(), authorized()]), ["RecordPayment"]);
        assert_eq!(sent(&[placed(), authorized(), shipped.clone()]), ["CapturePayment"]);
        assert!(sent(&[placed(), authorized(), shipped.clone(), captured]).is_empty());
        assert!(sent(&[placed(), authorized(), shipped.clone(), timed_out()]).is_empty());
    }

    #[test]
    fn declined_or_unanswered_it_is_cancelled_once_and_a_late_answer_is_given_up() {
        let (declined, cancelled) = (Input::Event(Heard::Declined), Input::Event(Heard::Cancelled));
        assert_eq!(sent(&[placed(), declined.clone()]), ["CancelOrder PAYMENT_DECLINED"]);
        assert_eq!(sent(&[placed(), timed_out()]), ["CancelOrder PAYMENT_TIMED_OUT"]);
        assert!(sent(&[placed(), timed_out(), declined]).is_empty());
        assert_eq!(sent(&[placed(), timed_out(), cancelled.clone()]), ["VoidPayment"]);
        assert_eq!(sent(&[placed(), timed_out(), authorized()]), ["VoidPayment"]);
        assert!(sent(&[placed(), timed_out(), authorized(), cancelled]).is_empty());
        assert_eq!(sent(&[placed(), refused("AuthorizePayment")]), ["CancelOrder PAYMENT_DECLINED"]);
    }

    #[test]
    fn cancelled_after_the_authorisation_it_is_given_up_once_and_never_captured() {
        let (cancelled, shipped) = (Input::Event(Heard::Cancelled), Input::Event(Heard::Shipped));
        let captured = Input::Event(Heard::Captured);
        assert_eq!(sent(&[placed(), authorized(), cancelled.clone()]), ["VoidPayment"]);
        assert!(sent(&[placed(), authorized(), cancelled.clone(), refused("RecordPayment")]).is_empty());
        assert_eq!(sent(&[placed(), authorized(), refused("RecordPayment")]), ["VoidPayment"]);
        assert!(sent(&[placed(), authorized(), refused("RecordPayment"), shipped]).is_empty());
        assert_eq!(sent(&[placed(), authorized(), captured, cancelled.clone()]), ["RefundPayment"]);
        assert_eq!(sent(&[placed(), cancelled.clone()]), ["VoidPayment"]);
        assert!(sent(&[placed(), cancelled, authorized()]).is_empty());
    }
}
