//! Commands of payments as JSON: an envelope of ids, and one plain type that serde reads.

use serde::Deserialize;
use serde_json::Value;
use throughline::engine::ids::parse_id;
use throughline::engine::{Command, CommandMeta, InvalidCommand};
use uuid::Uuid;

use super::domain::{Authorize, PaymentCommand};
use crate::orders::domain::{Currency, Money};

/// Longest token, reason and name of an authorisation, characters.
const TEXT_MAX: usize = 1_000;
const BYTES_MAX: usize = 16 * 1024;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
enum CommandIn {
    AuthorizePayment { order_id: String, amount: String, currency: String, token: String },
    RecordAuthorization { authorization_id: String },
    RecordDecline { reason: String },
    CapturePayment {},
    VoidPayment {},
    RefundPayment {},
}

/// Parses the value of a commands record. `fallback_id` is the command id where it carries none.
pub(super) fn parse(value: &[u8], fallback_id: Uuid) -> Result<Command<PaymentCommand>, InvalidCommand> {
    let mut ids = (None, None);
    parse_value(value, fallback_id, &mut ids).map_err(|reason| InvalidCommand {
        reason,
        command_id: ids.0,
        stream_id: ids.1,
    })
}

fn parse_value(
    value: &[u8],
    fallback_id: Uuid,
    ids: &mut (Option<Uuid>, Option<Uuid>),
) -> Result<Command<PaymentCommand>, String> {
    if value.len() > BYTES_MAX {
        return Err(format!("the command is {} bytes long, the most is {BYTES_MAX}", value.len()));
    }
    let value: Value = serde_json::from_slice(value).map_err(|error| format!("the value is not JSON: {error}"))?;
    let Value::Object(mut fields) = value else { return Err("the value must be a JSON object".into()) };
    let mut id = |name: &str| match fields.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => parse_id(&text).map(Some).map_err(|fault| format!("/{name} {fault}")),
        Some(_) => Err(format!("/{name} must be a string")),
    };
    ids.0 = id("commandId")?;
    ids.1 = id("paymentId")?;
    let expected_version = match fields.remove("expectedVersion") {
        None => None,
        Some(version) => Some(version.as_i64().ok_or("/expectedVersion must be an integer")?),
    };
    let command: CommandIn = serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
    let payment_id = ids.1.ok_or("/paymentId is missing")?;
    let payload = payload(command, payment_id)?;
    let command_id = ids.0.unwrap_or(fallback_id);
    Ok(Command { meta: CommandMeta { command_id, stream_id: payment_id, expected_version }, payload })
}

fn payload(command: CommandIn, payment_id: Uuid) -> Result<PaymentCommand, String> {
    Ok(match command {
        CommandIn::AuthorizePayment { order_id, amount, currency, token } => {
            let order_id = parse_id(&order_id).map_err(|fault| format!("/orderId {fault}"))?;
            let currency = Currency::from_code(&currency).ok_or("/currency must be an ISO 4217 code such as USD")?;
            let amount = Money::parse(&amount, currency).map_err(|error| format!("/amount {error}"))?;
            if amount.is_zero() {
                return Err("/amount must be above zero".into());
            }
            PaymentCommand::Authorize(Authorize { payment_id, order_id, amount, token: text("token", token)? })
        }
        CommandIn::RecordAuthorization { authorization_id } => {
            PaymentCommand::RecordAuthorization { authorization_id: text("authorizationId", authorization_id)? }
        }
        CommandIn::RecordDecline { reason } => PaymentCommand::RecordDecline { reason: text("reason", reason)? },
        CommandIn::CapturePayment {} => PaymentCommand::Capture,
        CommandIn::VoidPayment {} => PaymentCommand::Void,
        CommandIn::RefundPayment {} => PaymentCommand::Refund,
    })
}

fn text(field: &str, text: String) -> Result<String, String> {
    match text.chars().count() {
        1..=TEXT_MAX if !text.contains('\0') => Ok(text),
        _ => Err(format!("/{field} must have 1 to {TEXT_MAX} characters, none of them NUL")),
    }
}

/// What a command means, for telling a repetition; kept like a schema.
pub(super) fn write_meaning(command: &PaymentCommand, into: &mut Vec<u8>) {
    let mut part = |text: &str| {
        into.extend_from_slice(&(text.len() as u32).to_be_bytes());
        into.extend_from_slice(text.as_bytes());
    };
    match command {
        PaymentCommand::Authorize(ask) => {
            part("authorize");
            part(&ask.order_id.to_string());
            part(&ask.amount.amount_text());
            part(ask.amount.currency().code());
            part(&ask.token);
        }
        PaymentCommand::RecordAuthorization { authorization_id } => {
            part("authorized");
            part(authorization_id);
        }
        PaymentCommand::RecordDecline { reason } => {
            part("declined");
            part(reason);
        }
        PaymentCommand::Capture => part("capture"),
        PaymentCommand::Void => part("void"),
        PaymentCommand::Refund => part("refund"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198c0de-7a3e-7000-8000-00000000000a";

    fn read(text: &str) -> Result<PaymentCommand, String> {
        parse(text.replace("ID", ID).as_bytes(), Uuid::from_u128(7))
            .map(|command| command.payload)
            .map_err(|e| e.reason)
    }

    #[test]
    fn a_fault_names_its_field() {
        for (text, said) in [
            (r#"{"type":"CapturePayment"}"#, "/paymentId is missing"),
            (r#"{"type":"CapturePayment","paymentId":"7"}"#, "/paymentId must be a UUID"),
            (r#"{"type":"CapturePayment","paymentId":"ID","more":1}"#, "unknown field `more`"),
            (r#"{"type":"Other","paymentId":"ID"}"#, "unknown variant `Other`"),
            (r#"{"type":"RecordDecline","paymentId":"ID","reason":""}"#, "/reason must have 1 to"),
            (
                r#"{"type":"AuthorizePayment","paymentId":"ID","orderId":"ID","amount":"1.999","currency":"USD","token":"t"}"#,
                "/amount",
            ),
            ("[]", "must be a JSON object"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert_eq!(read(r#"{"type":"CapturePayment","paymentId":"ID"}"#), Ok(PaymentCommand::Capture));
    }
}
