//! `GET /api/customers/{id}`: what a customer ordered and paid, by currency.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::amount::amount_text;
use throughline::api::{Api, PathOf, Problem, ProblemBody, ReadHeaders};

const PROJECTION: &str = "customer-summary";

/// A customer's orders in sum.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomerSummary {
    pub customer_id: String,
    /// Orders placed, in all currencies.
    pub orders: i64,
    #[schema(value_type = String, format = DateTime)]
    pub first_order_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last_order_at: Timestamp,
    /// Sums never mix currencies.
    pub currencies: Vec<CurrencySummary>,
}

/// A customer's orders in one currency. Cancelled orders count in `orders` and `ordered`, too.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CurrencySummary {
    /// ISO 4217.
    pub currency: String,
    pub orders: i64,
    pub orders_shipped: i64,
    pub orders_cancelled: i64,
    /// Decimal text, like every amount here.
    pub ordered: String,
    pub cancelled: String,
    pub paid: String,
    pub refund_due: String,
}

/// Reads a customer's summary.
#[utoipa::path(
    get, path = "/api/customers/{customerId}", tag = "customers",
    params(("customerId" = String, Path, min_length = 1, max_length = 128, pattern = r"^[^\x00]+$"), ReadHeaders),
    responses(
        (status = 200, body = CustomerSummary, description = "The sums; `As-Of` tells how fresh they are",
         headers(("As-Of" = String), ("As-Of-Positions" = String), ("Consistency" = String),
                 ("Projection-Standing" = String, description = "Partitions that stand, as `2,5`: the answer may lack what was decided since; absent where all go on"))),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "No order of that customer is visible (yet)"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "Not now: see `code` and `Retry-After`. `PROJECTION_STANDING`: nothing was found, and the part of the read table that would show it stands; the detail tells the reason, since when, and the next step"),
    ),
)]
pub async fn customer_summary(
    State(api): State<Arc<Api>>,
    PathOf(customer_id): PathOf<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let read = api.begin_read(&headers, PROJECTION).await?;
    let statement = read
        .client
        .prepare_cached(
            "select currency, orders, orders_shipped, orders_cancelled, ordered, cancelled, paid, refund_due,
                    first_order_at, last_order_at
             from read.customer_summary where customer_id = $1 order by currency",
        )
        .await?;
    let rows = async { read.client.query(&statement, &[&customer_id]).await.map_err(Problem::from) };
    let (as_of, rows) = futures_util::try_join!(read.as_of(None), rows)?;
    let mut response = match summary(customer_id, &rows) {
        None => read.missing(None, "no order of this customer is visible").into_response(),
        Some(summary) => Json(summary).into_response(),
    };
    read.stamp(&as_of, &mut response);
    Ok(response)
}

fn summary(customer_id: String, rows: &[Row]) -> Option<CustomerSummary> {
    let amount = |row: &Row, at: usize| amount_text(row.get::<_, Decimal>(at), row.get(0));
    let currencies = rows.iter().map(|row| CurrencySummary {
        currency: row.get(0),
        orders: row.get(1),
        orders_shipped: row.get(2),
        orders_cancelled: row.get(3),
        ordered: amount(row, 4),
        cancelled: amount(row, 5),
        paid: amount(row, 6),
        refund_due: amount(row, 7),
    });
    Some(CustomerSummary {
        customer_id,
        orders: rows.iter().map(|row| row.get::<_, i64>(1)).sum(),
        first_order_at: rows.iter().map(|row| row.get(8)).min()?,
        last_order_at: rows.iter().map(|row| row.get(9)).max()?,
        currencies: currencies.collect(),
    })
}
