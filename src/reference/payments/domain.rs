//! A payment: requested, authorised or declined, then captured, voided or refunded. Pure; the gateway is somebody else.

use serde::{Deserialize, Serialize};
use throughline::engine::{Aggregate, Decision, Refusal};
use uuid::Uuid;

use crate::orders::domain::Money;

/// What may be asked of a payment. Shapes and sizes were checked before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentCommand {
    /// Somebody is to pay.
    Authorize(Authorize),
    /// The gateway holds the amount.
    RecordAuthorization { authorization_id: String },
    /// The gateway said no.
    RecordDecline { reason: String },
    /// Take what was authorised.
    Capture,
    /// Give it up before anything was taken.
    Void,
    /// Give back what was taken.
    Refund,
}

/// A request to pay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorize {
    pub payment_id: Uuid,
    pub order_id: Uuid,
    pub amount: Money,
    pub token: String,
}

/// What all events of a payment say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    pub payment_id: Uuid,
    pub order_id: Uuid,
    pub amount: Money,
}

/// What happened to a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentEvent {
    Requested { due: Due, token: String },
    Authorized { due: Due, authorization_id: String },
    Declined { due: Due, reason: String },
    Captured { due: Due },
    Voided { due: Due },
    Refunded { due: Due },
}

impl PaymentEvent {
    /// Type name without name space.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Requested { .. } => "PaymentRequested",
            Self::Authorized { .. } => "PaymentAuthorized",
            Self::Declined { .. } => "PaymentDeclined",
            Self::Captured { .. } => "PaymentCaptured",
            Self::Voided { .. } => "PaymentVoided",
            Self::Refunded { .. } => "PaymentRefunded",
        }
    }

    /// Whose, for what and how much.
    pub fn due(&self) -> &Due {
        match self {
            Self::Requested { due, .. }
            | Self::Authorized { due, .. }
            | Self::Declined { due, .. }
            | Self::Captured { due }
            | Self::Voided { due }
            | Self::Refunded { due } => due,
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

impl PaymentStatus {
    /// Lower case, as it is printed and kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Authorized => "authorized",
            Self::Declined => "declined",
            Self::Captured => "captured",
            Self::Voided => "voided",
            Self::Refunded => "refunded",
        }
    }
}

/// One payment. The default is the id that nobody has used yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payment {
    requested: Option<(Due, PaymentStatus)>,
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

impl Payment {
    /// What is due and where it stands, if it was ever asked for.
    pub fn requested(&self) -> Option<(Due, PaymentStatus)> {
        self.requested
    }
}

impl Aggregate for Payment {
    type Command = PaymentCommand;
    type Event = PaymentEvent;

    const SNAPSHOT_VERSION: i16 = 1;

    fn decide(&self, command: &PaymentCommand) -> Decision<PaymentEvent> {
        use PaymentStatus::{Authorized, Captured, Requested};
        if let PaymentCommand::Authorize(ask) = command {
            if self.requested.is_some() {
                return Err(Refusal::new(codes::PAYMENT_ALREADY_REQUESTED, "it was requested before"));
            }
            let due = Due { payment_id: ask.payment_id, order_id: ask.order_id, amount: ask.amount };
            return Ok(vec![PaymentEvent::Requested { due, token: ask.token.clone() }]);
        }
        let Some((due, status)) = self.requested else {
            return Err(Refusal::new(codes::PAYMENT_NOT_FOUND, "nobody has requested it"));
        };
        let refused = |code| Err(Refusal::new(code, format!("it is {}", status.as_str())));
        Ok(vec![match (command, status) {
            (PaymentCommand::RecordAuthorization { authorization_id }, Requested) => {
                PaymentEvent::Authorized { due, authorization_id: authorization_id.clone() }
            }
            (PaymentCommand::RecordDecline { reason }, Requested) => {
                PaymentEvent::Declined { due, reason: reason.clone() }
            }
            (PaymentCommand::Capture, Authorized) => PaymentEvent::Captured { due },
            (PaymentCommand::Void, Requested | Authorized) => PaymentEvent::Voided { due },
            (PaymentCommand::Refund, Captured) => PaymentEvent::Refunded { due },
            (PaymentCommand::RecordAuthorization { .. } | PaymentCommand::RecordDecline { .. }, _) => {
                return refused(codes::PAYMENT_NOT_PENDING);
            }
            (PaymentCommand::Capture, _) => return refused(codes::PAYMENT_NOT_AUTHORIZED),
            (PaymentCommand::Void, _) => return refused(codes::PAYMENT_NOT_VOIDABLE),
            (PaymentCommand::Refund | PaymentCommand::Authorize(_), _) => return refused(codes::PAYMENT_NOT_CAPTURED),
        }])
    }

    fn evolve(&mut self, event: &PaymentEvent) {
        let status = match event {
            PaymentEvent::Requested { .. } => PaymentStatus::Requested,
            PaymentEvent::Authorized { .. } => PaymentStatus::Authorized,
            PaymentEvent::Declined { .. } => PaymentStatus::Declined,
            PaymentEvent::Captured { .. } => PaymentStatus::Captured,
            PaymentEvent::Voided { .. } => PaymentStatus::Voided,
            PaymentEvent::Refunded { .. } => PaymentStatus::Refunded,
        };
        self.requested = Some((*event.due(), status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::domain::Currency;

    fn due() -> Due {
        let amount = Money::from_minor(1_999, Currency::USD).unwrap();
        Due { payment_id: Uuid::from_u128(1), order_id: Uuid::from_u128(2), amount }
    }

    fn authorize() -> PaymentCommand {
        let Due { payment_id, order_id, amount } = due();
        PaymentCommand::Authorize(Authorize { payment_id, order_id, amount, token: "tok_approve".into() })
    }

    /// What becomes of `last` after `before`: the type of its event, or the code of its refusal.
    fn after(before: &[PaymentCommand], last: &PaymentCommand) -> &'static str {
        let mut payment = Payment::default();
        for command in before {
            payment.decide(command).unwrap().iter().for_each(|event| payment.evolve(event));
        }
        payment.decide(last).map_or_else(|refusal| refusal.code, |events| events[0].type_name())
    }

    #[test]
    fn each_step_follows_from_one_before_and_no_other() {
        use PaymentCommand::{Capture, Refund, Void};
        let yes = PaymentCommand::RecordAuthorization { authorization_id: "a".into() };
        let no = PaymentCommand::RecordDecline { reason: "no".into() };
        let asked = [authorize()];
        let held = [authorize(), yes.clone()];
        let taken = [authorize(), yes.clone(), Capture];
        let given_up = [authorize(), Void];
        for (before, last, expected) in [
            (&[][..], &authorize(), "PaymentRequested"),
            (&[], &Capture, "PAYMENT_NOT_FOUND"),
            (&asked, &authorize(), "PAYMENT_ALREADY_REQUESTED"),
            (&asked, &yes, "PaymentAuthorized"),
            (&asked, &no, "PaymentDeclined"),
            (&asked, &Capture, "PAYMENT_NOT_AUTHORIZED"),
            (&asked, &Void, "PaymentVoided"),
            (&held, &yes, "PAYMENT_NOT_PENDING"),
            (&held, &Capture, "PaymentCaptured"),
            (&held, &Void, "PaymentVoided"),
            (&held, &Refund, "PAYMENT_NOT_CAPTURED"),
            (&taken, &Capture, "PAYMENT_NOT_AUTHORIZED"),
            (&taken, &Void, "PAYMENT_NOT_VOIDABLE"),
            (&taken, &Refund, "PaymentRefunded"),
            (&given_up, &yes, "PAYMENT_NOT_PENDING"),
            (&given_up, &Capture, "PAYMENT_NOT_AUTHORIZED"),
        ] {
            assert_eq!(after(before, last), expected, "{last:?} after {before:?}");
        }
    }
}
