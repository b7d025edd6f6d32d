//! `GET /api/orders`: the order list, filtered, sorted, in pages.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::amount::amount_text;
use crate::orders::command::MAX_CUSTOMER_ID;
use throughline::api::problem::INVALID_REQUEST;
use throughline::api::{Api, Problem, QueryOf, ReadHeaders, cursor, is_of_our_era};

const PROJECTION: &str = "order-list";
const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 500;

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Placed,
    Paid,
    Shipped,
    Cancelled,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Paid => "paid",
            Self::Shipped => "shipped",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Order of the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub enum Sort {
    /// Newest first.
    #[default]
    #[serde(rename = "-placedAt")]
    NewestFirst,
    /// Oldest first.
    #[serde(rename = "placedAt")]
    OldestFirst,
}

/// Which orders, and how many.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only orders that stand there.
    #[param(inline, nullable = false)]
    status: Option<Status>,
    /// Only this customer's.
    #[param(min_length = 1, max_length = 128, pattern = r"^[^\x00]+$", nullable = false)]
    customer_id: Option<String>,
    /// `-placedAt` newest first, `placedAt` oldest first.
    #[serde(default)]
    #[param(inline, required = false)]
    sort: Sort,
    /// Orders of a page, at most.
    #[param(minimum = 1, maximum = 500, nullable = false)]
    limit: Option<u32>,
    /// The `nextCursor` of the page before, with the same filters and order.
    #[param(pattern = "^[0-9a-f]{10,1024}$", nullable = false)]
    cursor: Option<String>,
}

/// One order of the list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderSummary {
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
    pub item_count: i32,
    pub version: i64,
    #[schema(value_type = String, format = DateTime)]
    pub placed_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// A page of orders.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderPage {
    pub items: Vec<OrderSummary>,
    /// Null on the last page.
    pub next_cursor: Option<String>,
}

/// Lists orders.
#[utoipa::path(
    get, path = "/api/orders", tag = "orders", params(ListQuery, ReadHeaders),
    responses((status = 200, body = OrderPage, description = "A page; `As-Of` tells how fresh it is",
               headers(("As-Of" = String), ("As-Of-Positions" = String), ("Consistency" = String),
                 ("Projection-Standing" = String, description = "Partitions that stand, as `2,5`: the answer may lack what was decided since; absent where all go on")))),
)]
pub async fn list_orders(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::new(INVALID_REQUEST, format!("limit: must be 1 to {LIMIT_MAX}")));
    }
    if query.customer_id.as_ref().is_some_and(|id| !(1..=MAX_CUSTOMER_ID).contains(&id.chars().count())) {
        let reason = format!("customerId: must be 1 to {MAX_CUSTOMER_ID} characters");
        return Err(Problem::new(INVALID_REQUEST, reason));
    }
    let list = format!("{:?}/{:?}/{:?}", query.sort, query.status, query.customer_id);
    let after = query.cursor.as_deref().map(|text| read_cursor(&list, text)).transpose()?;
    let read = api.begin_read(&headers, PROJECTION).await?;
    let status = query.status.map(Status::name);
    // One more than asked for tells whether there is a next page.
    let rows_wanted = i64::from(limit) + 1;
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&rows_wanted];
    let mut filters = Vec::new();
    let mut filter = |sql: &str, values: &[&'_ (dyn ToSql + Sync)]| filters.push((sql.to_owned(), values.len()));
    if let Some(status) = &status {
        filter("status = $", &[status]);
        parameters.push(status);
    }
    if let Some(customer_id) = &query.customer_id {
        filter("customer_id = $", &[customer_id]);
        parameters.push(customer_id);
    }
    if let Some((placed_at, order_id)) = &after {
        filter("", &[placed_at, order_id]);
        parameters.push(placed_at);
        parameters.push(order_id);
    }
    let statement = read.client.prepare_cached(&statement(query.sort, &filters)).await?;
    let rows = async { read.client.query(&statement, &parameters).await.map_err(Problem::from) };
    let (as_of, rows) = futures_util::try_join!(read.as_of(None), rows)?;
    let more = rows.len() > limit as usize;
    let items: Vec<OrderSummary> = rows.iter().take(limit as usize).map(summary).collect();
    let next_cursor = items
        .last()
        .filter(|_| more)
        .map(|last| cursor::encode(&list, &[last.placed_at.as_microsecond().to_string(), last.order_id.to_string()]));
    let mut response = Json(OrderPage { items, next_cursor }).into_response();
    read.stamp(&as_of, &mut response);
    Ok(response)
}

/// The statement for a set of filters: few enough to be prepared once each.
fn statement(sort: Sort, filters: &[(String, usize)]) -> String {
    let (compare, direction) = match sort {
        Sort::NewestFirst => ("<", "desc"),
        Sort::OldestFirst => (">", "asc"),
    };
    let mut number = 1;
    let mut conditions = Vec::new();
    for (sql, values) in filters {
        conditions.push(match values {
            1 => format!("{sql}{}", number + 1),
            _ => format!("(placed_at, order_id) {compare} (${}, ${})", number + 1, number + 2),
        });
        number += values;
    }
    let conditions = if conditions.is_empty() { String::new() } else { format!("where {}", conditions.join(" and ")) };
    format!(
        "select order_id, customer_id, status, currency, total, paid, item_count, version, placed_at, updated_at
         from read.order_list {conditions} order by placed_at {direction}, order_id {direction} limit $1"
    )
}

fn read_cursor(list: &str, text: &str) -> Result<(Timestamp, Uuid), Problem> {
    let fields = cursor::decode(list, text)?;
    let place = match fields.as_slice() {
        [micros, id] => micros
            .parse()
            .ok()
            .and_then(|micros| Timestamp::from_microsecond(micros).ok())
            .filter(|at| is_of_our_era(*at))
            .zip(Uuid::try_parse(id).ok()),
        _ => None,
    };
    place.ok_or_else(|| Problem::new(INVALID_REQUEST, "cursor: is none of ours"))
}

fn summary(row: &Row) -> OrderSummary {
    let currency: String = row.get(3);
    OrderSummary {
        order_id: row.get(0),
        customer_id: row.get(1),
        status: row.get(2),
        total: amount_text(row.get::<_, Decimal>(4), &currency),
        paid: amount_text(row.get::<_, Decimal>(5), &currency),
        currency,
        item_count: row.get(6),
        version: row.get(7),
        placed_at: row.get(8),
        updated_at: row.get(9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_in_the_order_of_the_filters() {
        let filters = [("status = $".to_owned(), 1), ("customer_id = $".to_owned(), 1), (String::new(), 2)];
        let sql = statement(Sort::OldestFirst, &filters);
        assert!(sql.contains("status = $2 and customer_id = $3 and (placed_at, order_id) > ($4, $5)"), "{sql}");
        assert!(statement(Sort::NewestFirst, &filters[2..]).contains("where (placed_at, order_id) < ($2, $3)"));
        assert!(!statement(Sort::NewestFirst, &[]).contains("where"));
    }
}
