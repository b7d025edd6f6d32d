//! The HTTP routes of orders: commands in, read tables out. Plugged into the server by `app`.
//!
//! Thin: a handler builds a command and hands it over, or reads one table. What an order allows is
//! the domain's business, and how a command travels is the API room's.

mod amount;
pub(super) mod answers;
pub(super) mod command_bodies;
mod commands;
mod customers;
mod daily_sales;
mod order_details;
mod order_history;
mod order_list;

use std::sync::Arc;

use axum::http::StatusCode;
use utoipa_axum::routes;

use throughline::api::{Api, Kind, OpenApiRouter};

/// Every route of the context, documented.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(commands::place_order, order_list::list_orders))
        .routes(routes!(commands::place_order_sync))
        .routes(routes!(commands::record_payment))
        .routes(routes!(commands::record_payment_sync))
        .routes(routes!(commands::ship_order))
        .routes(routes!(commands::ship_order_sync))
        .routes(routes!(commands::cancel_order))
        .routes(routes!(commands::cancel_order_sync))
        .routes(routes!(order_details::order_details))
        .routes(routes!(order_history::order_history))
        .routes(routes!(order_history::order_events))
        .routes(routes!(customers::customer_summary))
        .routes(routes!(daily_sales::daily_sales))
}

macro_rules! refusals {
    ($($code:ident: $title:literal, $remedy:literal;)*) => {
        &[$(Kind { code: stringify!($code), status: StatusCode::CONFLICT, title: $title, remedy: $remedy }),*]
    };
}

/// The pages of the domain's refusals.
pub const REFUSALS: &[Kind] = refusals! {
    ORDER_ALREADY_PLACED: "The order id was used before", "Place it under another id, or under none.";
    ORDER_NOT_FOUND: "No such order", "Place it first.";
    ORDER_NOT_PAID: "Only a paid order ships", "Record the outstanding payment first.";
    ORDER_ALREADY_SHIPPED: "The order was shipped", "A shipped order neither ships again nor cancels.";
    ORDER_CANCELLED: "The order was cancelled", "A cancelled order takes no further command.";
    PAYMENT_EXCEEDS_TOTAL: "The payment would bring the amount paid above the total", "Pay what is outstanding.";
    CURRENCY_MISMATCH: "The payment is in another currency than the order", "Pay in the order's currency.";
    PAYMENT_ALREADY_RECORDED: "The payment id is on the order's books", "Send another payment under another id.";
    TOO_MANY_PAYMENTS: "The order holds as many payments as an order may", "Pay in fewer parts.";
    TOTAL_OUT_OF_RANGE: "The total is zero or more than an order may come to", "Split the order.";
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_names_every_code_that_a_command_may_be_refused_with() {
        let readme = include_str!("../../../../README.md");
        for kind in REFUSALS {
            assert!(readme.contains(&format!("`{}`", kind.code)), "{} is missing from README.md", kind.code);
        }
    }
}
