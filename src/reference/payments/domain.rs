//! A payment: requested, authorised or declined, then captured, voided or refunded. Pure; the gateway is somebody else.

use std::fmt;

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline::engine::{Aggregate, Decision, Refusal};
use uuid::Uuid;

use crate::orders::domain::{Currency, Money, MoneyError};

/// Longest token, reason and name of an authorisation, characters.
const TEXT_MAX: usize = 1_000;

/// Decimal text above zero that any currency can hold; how many decimals is for the currency to say.
const AMOUNT: &str = r"^([1-9][0-9]{0,8}(\.[0-9]{1,4})?|0\.([1-9][0-9]{0,3}|0[1-9][0-9]{0,2}|00[1-9][0-9]?|000[1-9]))$";

/// What may be asked of a payment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, rename_all_fields = "camelCase")]
pub enum PaymentCommand {
    /// Asks the gateway to hold an amount for an order.
    AuthorizePayment(#[garde(dive)] Authorize),
    /// The gateway holds the amount, under this name of its own.
    RecordAuthorization {
        #[garde(length(chars, min = 1, max = TEXT_MAX))]
        authorization_id: String,
    },
    /// The gateway, or who speaks for it, says no.
    RecordDecline {
        #[garde(length(chars, min = 1, max = TEXT_MAX))]
        reason: String,
    },
    /// Takes what was authorised.
    CapturePayment {},
    /// Gives the payment up before anything was taken.
    VoidPayment {},
    /// Gives back what was taken.
    RefundPayment {},
}

/// A request to pay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Validate, JsonSchema)]
#[serde(try_from = "AuthorizeFields", into = "AuthorizeFields")]
pub struct Authorize {
    #[garde(skip)]
    pub due: Due,
    #[garde(length(chars, min = 1, max = TEXT_MAX))]
    pub token: String,
}

/// The same, as its JSON says it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AuthorizeFields {
    order_id: Uuid,
    /// Decimal text with at most the minor digits of the currency; above zero.
    #[schemars(regex(pattern = AMOUNT))]
    amount: String,
    currency: Currency,
    #[schemars(length(min = 1, max = TEXT_MAX))]
    token: String,
}

impl TryFrom<AuthorizeFields> for Authorize {
    type Error = String;

    fn try_from(fields: AuthorizeFields) -> Result<Self, String> {
        let AuthorizeFields { order_id, amount, currency, token } = fields;
        let due = Due::try_from(DueFields { order_id, amount, currency })?;
        if due.amount.is_zero() {
            return Err("/amount must be above zero".into());
        }
        Ok(Self { due, token })
    }
}

impl From<Authorize> for AuthorizeFields {
    fn from(Authorize { due, token }: Authorize) -> Self {
        let DueFields { order_id, amount, currency } = due.into();
        Self { order_id, amount, currency, token }
    }
}

/// What all events of a payment say: for which order, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "DueFields", into = "DueFields")]
pub struct Due {
    pub order_id: Uuid,
    pub amount: Money,
}

/// The same, as it is published and kept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DueFields {
    order_id: Uuid,
    amount: String,
    currency: Currency,
}

impl TryFrom<DueFields> for Due {
    type Error = String;

    fn try_from(DueFields { order_id, amount, currency }: DueFields) -> Result<Self, String> {
        let amount = Money::parse(&amount, currency).map_err(|error: MoneyError| format!("/amount {error}"))?;
        Ok(Self { order_id, amount })
    }
}

impl From<Due> for DueFields {
    fn from(Due { order_id, amount }: Due) -> Self {
        Self { order_id, amount: amount.amount_text(), currency: amount.currency() }
    }
}

/// What happened to a payment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all_fields = "camelCase")]
pub enum PaymentEvent {
    PaymentRequested { due: Due, token: String },
    PaymentAuthorized { due: Due, authorization_id: String },
    PaymentDeclined { due: Due, reason: String },
    PaymentCaptured { due: Due },
    PaymentVoided { due: Due },
    PaymentRefunded { due: Due },
}

impl PaymentEvent {
    /// For which order, and how much.
    pub fn due(&self) -> Due {
        match self {
            Self::PaymentRequested { due, .. }
            | Self::PaymentAuthorized { due, .. }
            | Self::PaymentDeclined { due, .. }
            | Self::PaymentCaptured { due }
            | Self::PaymentVoided { due }
            | Self::PaymentRefunded { due } => *due,
        }
    }

    fn status(&self) -> PaymentStatus {
        match self {
            Self::PaymentRequested { .. } => PaymentStatus::Requested,
            Self::PaymentAuthorized { .. } => PaymentStatus::Authorized,
            Self::PaymentDeclined { .. } => PaymentStatus::Declined,
            Self::PaymentCaptured { .. } => PaymentStatus::Captured,
            Self::PaymentVoided { .. } => PaymentStatus::Voided,
            Self::PaymentRefunded { .. } => PaymentStatus::Refunded,
        }
    }
}

/// Where a payment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaymentStatus {
    /// The gateway has not answered.
    Requested,
    Authorized,
    Declined,
    Captured,
    Voided,
    Refunded,
}

impl fmt::Display for PaymentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One payment. The default is the id that nobody has used yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payment {
    /// What is due and where it stands, once it was asked for.
    requested: Option<Requested>,
}

/// A payment that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requested {
    pub due: Due,
    pub status: PaymentStatus,
}

/// The codes that refusals carry.
pub mod codes {
    pub const PAYMENT_ALREADY_REQUESTED: &str = "PAYMENT_ALREADY_REQUESTED";
    pub const PAYMENT_NOT_FOUND: &str = "PAYMENT_NOT_FOUND";
    pub const PAYMENT_NOT_PENDING: &str = "PAYMENT_NOT_PENDING";
    pub const PAYMENT_NOT_AUTHORIZED: &str = "PAYMENT_NOT_AUTHORIZED";
    pub const PAYMENT_NOT_VOIDABLE: &str = "PAYMENT_NOT_VOIDABLE";
    pub const PAYMENT_NOT_CAPTURED: &str = "PAYMENT_NOT_CAPTURED";
}

impl Aggregate for Payment {
    type Command = PaymentCommand;
    type Event = PaymentEvent;

    const SNAPSHOT_VERSION: i16 = 1;

    fn decide(&self, command: &PaymentCommand) -> Decision<PaymentEvent> {
        use PaymentStatus::{Authorized, Captured, Requested as Pending};
        let Some(Requested { due, status }) = self.requested else {
            return match command {
                PaymentCommand::AuthorizePayment(ask) => {
                    Ok(vec![PaymentEvent::PaymentRequested { due: ask.due, token: ask.token.clone() }])
                }
                _ => Err(Refusal::new(codes::PAYMENT_NOT_FOUND, "nobody has requested it")),
            };
        };
        let refused = |code| Err(Refusal::new(code, format!("it is {status}")));
        Ok(vec![match (command, status) {
            (PaymentCommand::AuthorizePayment(_), _) => return refused(codes::PAYMENT_ALREADY_REQUESTED),
            (PaymentCommand::RecordAuthorization { authorization_id }, Pending) => {
                PaymentEvent::PaymentAuthorized { due, authorization_id: authorization_id.clone() }
            }
            (PaymentCommand::RecordDecline { reason }, Pending) => {
                PaymentEvent::PaymentDeclined { due, reason: reason.clone() }
            }
            (PaymentCommand::RecordAuthorization { .. } | PaymentCommand::RecordDecline { .. }, _) => {
                return refused(codes::PAYMENT_NOT_PENDING);
            }
            (PaymentCommand::CapturePayment {}, Authorized) => PaymentEvent::PaymentCaptured { due },
            (PaymentCommand::CapturePayment {}, _) => return refused(codes::PAYMENT_NOT_AUTHORIZED),
            (PaymentCommand::VoidPayment {}, Pending | Authorized) => PaymentEvent::PaymentVoided { due },
            (PaymentCommand::VoidPayment {}, _) => return refused(codes::PAYMENT_NOT_VOIDABLE),
            (PaymentCommand::RefundPayment {}, Captured) => PaymentEvent::PaymentRefunded { due },
            (PaymentCommand::RefundPayment {}, _) => return refused(codes::PAYMENT_NOT_CAPTURED),
        }])
    }

    fn evolve(&mut self, event: &PaymentEvent) {
        self.requested = Some(Requested { due: event.due(), status: event.status() });
    }
}

#[cfg(test)]
mod tests {
    use throughline::engine::BoundedContext as _;

    use super::*;
    use crate::payments::PaymentsContext;

    fn authorize() -> PaymentCommand {
        let amount = Money::from_minor(1_999, Currency::USD).unwrap();
        let due = Due { order_id: Uuid::from_u128(2), amount };
        PaymentCommand::AuthorizePayment(Authorize { due, token: "tok_approve".into() })
    }

    /// What becomes of `last` after `before`: the type of its event, or the code of its refusal.
    fn after(before: &[PaymentCommand], last: &PaymentCommand) -> String {
        let mut payment = Payment::default();
        for command in before {
            payment.decide(command).unwrap().iter().for_each(|event| payment.evolve(event));
        }
        match payment.decide(last) {
            Ok(events) => PaymentsContext::describe_event(&events[0])["type"].as_str().expect("a type").to_owned(),
            Err(refusal) => refusal.code.to_owned(),
        }
    }

    #[test]
    fn each_step_follows_from_one_before_and_no_other() {
        let [capture, void, refund] =
            [PaymentCommand::CapturePayment {}, PaymentCommand::VoidPayment {}, PaymentCommand::RefundPayment {}];
        let yes = PaymentCommand::RecordAuthorization { authorization_id: "a".into() };
        let no = PaymentCommand::RecordDecline { reason: "no".into() };
        let asked = [authorize()];
        let held = [authorize(), yes.clone()];
        let taken = [authorize(), yes.clone(), capture.clone()];
        let given_up = [authorize(), void.clone()];
        for (before, last, expected) in [
            (&[][..], &authorize(), "PaymentRequested"),
            (&[], &capture, "PAYMENT_NOT_FOUND"),
            (&asked, &authorize(), "PAYMENT_ALREADY_REQUESTED"),
            (&asked, &yes, "PaymentAuthorized"),
            (&asked, &no, "PaymentDeclined"),
            (&asked, &capture, "PAYMENT_NOT_AUTHORIZED"),
            (&asked, &void, "PaymentVoided"),
            (&held, &yes, "PAYMENT_NOT_PENDING"),
            (&held, &capture, "PaymentCaptured"),
            (&held, &void, "PaymentVoided"),
            (&held, &refund, "PAYMENT_NOT_CAPTURED"),
            (&taken, &capture, "PAYMENT_NOT_AUTHORIZED"),
            (&taken, &void, "PAYMENT_NOT_VOIDABLE"),
            (&taken, &refund, "PaymentRefunded"),
            (&given_up, &yes, "PAYMENT_NOT_PENDING"),
            (&given_up, &capture, "PAYMENT_NOT_AUTHORIZED"),
        ] {
            assert_eq!(after(before, last), expected, "{last:?} after {before:?}");
        }
    }
}
