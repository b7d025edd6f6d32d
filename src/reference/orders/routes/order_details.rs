//! `GET /api/orders/{id}`: one order with its lines, cacheable by its version.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::amount::{amount_text, price_text};
use throughline::api::{Api, Id, PathOf, Problem, ProblemBody, ReadHeaders, put};
use throughline::engine::destination_partition;

const PROJECTION: &str = "order-details";

/// An order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderDetails {
    pub order_id: Uuid,
    pub customer_id: String,
    /// placed, paid, shipped or cancelled.
    pub status: String,
    /// ISO 4217.
    pub currency: String,
    /// Decimal text with the currency's minor digits.
    pub total: String,
    /// Decimal text with the currency's minor digits.
    pub paid: String,
    pub items: Vec<OrderLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracking_number: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancellation_reason: Option<String>,
    /// What a cancelled order has to be given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund_due: Option<String>,
    pub version: i64,
    #[schema(value_type = String, format = DateTime)]
    pub placed_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// A line of an order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderLine {
    pub product_id: Uuid,
    pub quantity: i64,
    /// Decimal text; at least the currency's minor digits, four at most.
    pub unit_price: String,
    /// Decimal text with the currency's minor digits.
    pub line_total: String,
}

/// Reads an order.
#[utoipa::path(
    get, path = "/api/orders/{orderId}", tag = "orders",
    params(
        ("orderId" = Uuid, Path),
        ("If-None-Match" = Option<String>, Header, nullable = false, example = "\"1\"",
         description = "The ETag of an earlier answer: 304 while the order stands at that version"),
        ReadHeaders,
    ),
    responses(
        (status = 200, body = OrderDetails, description = "The order; `ETag` is its version",
         headers(("ETag" = String), ("As-Of" = String), ("As-Of-Positions" = String), ("Consistency" = String),
                 ("Projection-Standing" = String, description = "Partitions that stand, as `2,5`: the answer may lack what was decided since; absent where all go on"))),
        (status = 304, description = "It stands at the version of `If-None-Match`"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "No such order is visible (yet)"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "Not now: see `code` and `Retry-After`. `PROJECTION_STANDING`: nothing was found, and the part of the read table that would show it stands; the detail tells the reason, since when, and the next step"),
    ),
)]
pub async fn order_details(
    State(api): State<Arc<Api>>,
    PathOf(Id(order_id)): PathOf<Id>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let read = api.begin_read(&headers, PROJECTION).await?;
    let prepared = (
        read.client.prepare_cached(
            "select customer_id, status, currency, total, paid, carrier, tracking_number, cancellation_reason,
                    refund_due, version, placed_at, updated_at
             from read.order_details where order_id = $1",
        ),
        read.client.prepare_cached(
            "select product_id, quantity, unit_price, line_total from read.order_lines where order_id = $1 order by line",
        ),
    );
    let (order, lines) = futures_util::try_join!(prepared.0, prepared.1)?;
    let partition = destination_partition(order_id, api.settings.topics.event_partitions);
    let order = async { read.client.query_opt(&order, &[&order_id]).await.map_err(Problem::from) };
    let lines = async { read.client.query(&lines, &[&order_id]).await.map_err(Problem::from) };
    let (as_of, order, lines) = futures_util::try_join!(read.as_of(Some(partition)), order, lines)?;
    let mut response = match order {
        None => read.missing(Some(partition), format!("no order {order_id} is visible")).into_response(),
        Some(order) => answer(details(order_id, &order, &lines), &headers),
    };
    read.stamp(&as_of, &mut response);
    Ok(response)
}

fn answer(order: OrderDetails, headers: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", order.version);
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == tag)
    });
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { Json(order).into_response() };
    put(&mut response, ETAG, &tag);
    // Kept by who asked, and asked again with the tag.
    put(&mut response, CACHE_CONTROL, "private, no-cache");
    response
}

fn details(order_id: Uuid, row: &Row, lines: &[Row]) -> OrderDetails {
    let currency: String = row.get(2);
    let line = |row: &Row| OrderLine {
        product_id: row.get(0),
        quantity: row.get(1),
        unit_price: price_text(row.get::<_, Decimal>(2), &currency),
        line_total: amount_text(row.get::<_, Decimal>(3), &currency),
    };
    OrderDetails {
        order_id,
        customer_id: row.get(0),
        status: row.get(1),
        total: amount_text(row.get::<_, Decimal>(3), &currency),
        paid: amount_text(row.get::<_, Decimal>(4), &currency),
        items: lines.iter().map(line).collect(),
        carrier: row.get(5),
        tracking_number: row.get(6),
        cancellation_reason: row.get(7),
        refund_due: row.get::<_, Option<Decimal>>(8).map(|amount| amount_text(amount, &currency)),
        version: row.get(9),
        placed_at: row.get(10),
        updated_at: row.get(11),
        currency,
    }
}
