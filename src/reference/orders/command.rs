//! Commands as JSON: the shape of the public contract, checked in one pass over borrowed fields.
//!
//! Shape, bounds and sizes only; what an order allows is the domain's business. What is wrong is
//! told with a JSON pointer; working out a good message is left to `command_fault`.

use std::borrow::Cow;

use serde::Deserialize;
use uuid::Uuid;

use super::command_fault::{self, Fault};
use super::domain::{
    CancelOrder, Currency, MAX_ITEMS, MAX_QUANTITY, Money, OrderCommand, OrderedItem, PlaceOrder, Quantity,
    RecordPayment, ShipOrder, UnitPrice,
};
use throughline::engine::ids::{IdFault, parse_id, parse_uuid};
use throughline::engine::{Command, CommandMeta, InvalidCommand};

/// The largest command, in bytes: what Kafka takes in one record by default, less its overhead.
pub const MAX_COMMAND_BYTES: usize = 1_000_000;

/// The longest `customerId`, in characters.
pub const MAX_CUSTOMER_ID: usize = 128;

/// The longest `carrier` and `trackingNumber`, in characters.
pub const MAX_SHIPMENT_TEXT: usize = 128;

/// The longest token of a payment, in characters.
pub const MAX_TOKEN: usize = 255;

/// The longest `reason`, in characters.
pub const MAX_REASON: usize = 1_000;

/// The four types of command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// Place an order.
    PlaceOrder,
    /// Record a payment.
    RecordPayment,
    /// Ship an order.
    ShipOrder,
    /// Cancel an order.
    CancelOrder,
}

impl CommandKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::PlaceOrder, Self::RecordPayment, Self::ShipOrder, Self::CancelOrder];

    /// The value of `type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PlaceOrder => "PlaceOrder",
            Self::RecordPayment => "RecordPayment",
            Self::ShipOrder => "ShipOrder",
            Self::CancelOrder => "CancelOrder",
        }
    }

    /// The fields that belong to this kind only.
    pub(super) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::PlaceOrder => &["customerId", "currency", "items", "payment"],
            Self::RecordPayment => &["paymentId", "amount", "currency"],
            Self::ShipOrder => &["carrier", "trackingNumber"],
            Self::CancelOrder => &["reason"],
        }
    }
}

/// What a request says outside of its body: the route, and ids that apply where the body gives none.
#[derive(Debug, Clone, Copy)]
pub struct RequestContext {
    /// The command that the route stands for. `type` in the body may repeat it.
    pub kind: CommandKind,
    /// The order: from the path, or made for this request.
    pub order_id: Uuid,
    /// Whether the path names the order, so that another one in the body is an error.
    pub order_id_is_fixed: bool,
    /// The command id unless the body gives one.
    pub command_id: Uuid,
}

/// Parses the value of a commands record. `fallback_id` is the command id where it carries none.
pub fn parse_command(value: &[u8], fallback_id: Uuid) -> Result<Command<OrderCommand>, InvalidCommand> {
    parse(value, |fields| {
        let kind = kind(fields)?;
        build(fields, kind, None, fallback_id)
    })
}

/// Parses the body of an HTTP request: a command that may leave out what its route tells.
pub fn parse_request(body: &[u8], context: RequestContext) -> Result<Command<OrderCommand>, InvalidCommand> {
    parse(body, |fields| {
        if fields.kind.is_some() && kind(fields)? != context.kind {
            return Err(Fault::new("/type", format!("must be {} here", context.kind.name())));
        }
        let command = build(fields, context.kind, Some(context.order_id), context.command_id)?;
        if context.order_id_is_fixed && command.meta.stream_id != context.order_id {
            return Err(Fault::new("/orderId", format!("must be the order of the path, {}", context.order_id)));
        }
        Ok(command)
    })
}

fn parse(
    value: &[u8],
    build: impl FnOnce(&FieldsIn<'_>) -> Result<Command<OrderCommand>, Fault>,
) -> Result<Command<OrderCommand>, InvalidCommand> {
    if value.len() > MAX_COMMAND_BYTES {
        // Too large to look into it a second time.
        let reason = format!("the command is {} bytes long, the most is {MAX_COMMAND_BYTES}", value.len());
        return Err(InvalidCommand { reason, command_id: None, stream_id: None });
    }
    let built = match serde_json::from_slice::<FieldsIn<'_>>(value) {
        Ok(fields) => build(&fields),
        Err(error) => Err(command_fault::diagnose(value, &error)),
    };
    built.map_err(|fault| command_fault::invalid(value, &fault))
}

/// Every field that any command has. One flat struct, because serde buffers tagged enums.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FieldsIn<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    command_id: Option<Text<'a>>,
    #[serde(borrow)]
    order_id: Option<Text<'a>>,
    expected_version: Option<i64>,
    #[serde(borrow)]
    customer_id: Option<Text<'a>>,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    #[serde(borrow)]
    items: Option<Vec<ItemIn<'a>>>,
    #[serde(borrow)]
    payment: Option<PaymentIn<'a>>,
    #[serde(borrow)]
    payment_id: Option<Text<'a>>,
    #[serde(borrow)]
    amount: Option<Text<'a>>,
    #[serde(borrow)]
    carrier: Option<Text<'a>>,
    #[serde(borrow)]
    tracking_number: Option<Text<'a>>,
    #[serde(borrow)]
    reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PaymentIn<'a> {
    #[serde(borrow)]
    token: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ItemIn<'a> {
    #[serde(borrow)]
    product_id: Text<'a>,
    quantity: i64,
    #[serde(borrow)]
    unit_price: Text<'a>,
}

/// A string, borrowed from the input unless it holds escapes (serde borrows no `Option<Cow>`).
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

fn kind(fields: &FieldsIn<'_>) -> Result<CommandKind, Fault> {
    let name = required("/type", &fields.kind)?;
    CommandKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
        let known = CommandKind::ALL.map(CommandKind::name).join(", ");
        Fault::new("/type", format!("must be one of {known}; it is {}", command_fault::quoted(name)))
    })
}

fn build(
    fields: &FieldsIn<'_>,
    kind: CommandKind,
    order_id: Option<Uuid>,
    fallback_id: Uuid,
) -> Result<Command<OrderCommand>, Fault> {
    refuse_foreign(fields, kind)?;
    let command_id = fields.command_id.as_ref().map_or(Ok(fallback_id), |text| id("/commandId", &text.0))?;
    let order_id = match (&fields.order_id, order_id) {
        (None, Some(order_id)) => order_id,
        (given, _) => id("/orderId", required("/orderId", given)?)?,
    };
    if fields.expected_version.is_some_and(|version| version < 0) {
        return Err(Fault::new("/expectedVersion", "must be 0 or more"));
    }
    let payload = match kind {
        CommandKind::PlaceOrder => OrderCommand::PlaceOrder(place_order(fields, order_id)?),
        CommandKind::RecordPayment => OrderCommand::RecordPayment(record_payment(fields, order_id)?),
        CommandKind::ShipOrder => OrderCommand::ShipOrder(ShipOrder {
            order_id,
            carrier: text("/carrier", &fields.carrier, MAX_SHIPMENT_TEXT)?,
            tracking_number: text("/trackingNumber", &fields.tracking_number, MAX_SHIPMENT_TEXT)?,
        }),
        CommandKind::CancelOrder => {
            OrderCommand::CancelOrder(CancelOrder { order_id, reason: text("/reason", &fields.reason, MAX_REASON)? })
        }
    };
    let meta = CommandMeta { command_id, stream_id: order_id, expected_version: fields.expected_version };
    Ok(Command { meta, payload })
}

/// A field of another command is as unknown as any other.
fn refuse_foreign(fields: &FieldsIn<'_>, kind: CommandKind) -> Result<(), Fault> {
    let given = [
        ("customerId", fields.customer_id.is_some()),
        ("currency", fields.currency.is_some()),
        ("items", fields.items.is_some()),
        ("payment", fields.payment.is_some()),
        ("paymentId", fields.payment_id.is_some()),
        ("amount", fields.amount.is_some()),
        ("carrier", fields.carrier.is_some()),
        ("trackingNumber", fields.tracking_number.is_some()),
        ("reason", fields.reason.is_some()),
    ];
    match given.into_iter().find(|(name, is_given)| *is_given && !kind.fields().contains(name)) {
        Some((name, _)) => Err(Fault::new(format!("/{name}"), format!("is no field of {}", kind.name()))),
        None => Ok(()),
    }
}

fn place_order(fields: &FieldsIn<'_>, order_id: Uuid) -> Result<PlaceOrder, Fault> {
    let customer_id = text("/customerId", &fields.customer_id, MAX_CUSTOMER_ID)?;
    let currency = currency(fields)?;
    let given = fields.items.as_ref().ok_or_else(|| missing("/items"))?;
    if given.is_empty() || given.len() > MAX_ITEMS {
        return Err(Fault::new("/items", format!("must be 1 to {MAX_ITEMS} items, they are {}", given.len())));
    }
    let items = given.iter().enumerate().map(|(n, item)| ordered_item(n, item)).collect::<Result<_, _>>()?;
    let token = |payment: &PaymentIn<'_>| text("/payment/token", &payment.token, MAX_TOKEN);
    let payment_token = fields.payment.as_ref().map(token).transpose()?;
    Ok(PlaceOrder { order_id, customer_id, currency, items, payment_token })
}

fn ordered_item(n: usize, item: &ItemIn<'_>) -> Result<OrderedItem, Fault> {
    let at = |field: &str| format!("/items/{n}/{field}");
    Ok(OrderedItem {
        product_id: uuid("", &item.product_id.0).map_err(|fault| fault.at(at("productId")))?,
        quantity: Quantity::new(item.quantity).ok_or_else(|| {
            Fault::new(at("quantity"), format!("must be 1 to {MAX_QUANTITY}, it is {}", item.quantity))
        })?,
        unit_price: UnitPrice::parse(&item.unit_price.0).map_err(|error| Fault::new(at("unitPrice"), error))?,
    })
}

fn record_payment(fields: &FieldsIn<'_>, order_id: Uuid) -> Result<RecordPayment, Fault> {
    let payment_id = uuid("/paymentId", required("/paymentId", &fields.payment_id)?)?;
    let currency = currency(fields)?;
    let amount =
        Money::parse(required("/amount", &fields.amount)?, currency).map_err(|error| Fault::new("/amount", error))?;
    if amount.is_zero() {
        return Err(Fault::new("/amount", "must be above zero"));
    }
    Ok(RecordPayment { order_id, payment_id, amount })
}

fn currency(fields: &FieldsIn<'_>) -> Result<Currency, Fault> {
    let code = required("/currency", &fields.currency)?;
    Currency::from_code(code).ok_or_else(|| {
        let given = command_fault::quoted(code);
        Fault::new("/currency", format!("must be a currency code of ISO 4217 such as \"EUR\"; it is {given}"))
    })
}

fn required<'f>(pointer: &str, field: &'f Option<Text<'_>>) -> Result<&'f str, Fault> {
    field.as_ref().map(|text| text.0.as_ref()).ok_or_else(|| missing(pointer))
}

fn missing(pointer: &str) -> Fault {
    Fault::new(pointer, "is missing")
}

/// An id that the command is filed under.
fn id(pointer: &str, text: &str) -> Result<Uuid, Fault> {
    parse_id(text).map_err(|fault| not_an_id(pointer, text, fault))
}

/// An id of other people's books.
fn uuid(pointer: &str, text: &str) -> Result<Uuid, Fault> {
    parse_uuid(text).ok_or_else(|| not_an_id(pointer, text, IdFault::Malformed))
}

fn not_an_id(pointer: &str, text: &str, fault: IdFault) -> Fault {
    Fault::new(pointer, format!("{fault}; it is {}", command_fault::quoted(text)))
}

fn text(pointer: &str, field: &Option<Text<'_>>, most: usize) -> Result<String, Fault> {
    let text = required(pointer, field)?;
    // Bytes first: they bound the characters, and nearly every text passes on them.
    let length = if text.len() <= most { text.len() } else { text.chars().count() };
    if length == 0 || length > most {
        return Err(Fault::new(pointer, format!("must be 1 to {most} characters long, it is {length}")));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new(pointer, "must not hold control characters"));
    }
    Ok(text.to_owned())
}
