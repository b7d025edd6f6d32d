//! `GET /api/sales/daily`: sales by day, product and currency.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use jiff::civil::Date;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::amount::amount_text;
use crate::orders::domain::Currency;
use throughline::api::problem::INVALID_REQUEST;
use throughline::api::{Api, Problem, QueryOf, ReadHeaders, cursor};
use throughline::engine::ids::{IdFault, parse_uuid};

const PROJECTION: &str = "daily-sales";
const LIMIT_DEFAULT: u32 = 1_000;
const LIMIT_MAX: u32 = 5_000;

/// Which days and products.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SalesQuery {
    /// First day, UTC.
    #[param(value_type = Option<String>, format = Date, nullable = false, example = "2026-01-01")]
    from: Option<String>,
    /// Last day, UTC.
    #[param(value_type = Option<String>, format = Date, nullable = false, example = "2026-12-31")]
    to: Option<String>,
    /// Only this product.
    #[param(value_type = Option<Uuid>, nullable = false)]
    product_id: Option<String>,
    /// Rows of a page, at most.
    #[param(minimum = 1, maximum = 5000, nullable = false)]
    limit: Option<u32>,
    /// The `nextCursor` of the page before, with the same filters.
    #[param(pattern = "^[0-9a-f]{10,1024}$", nullable = false)]
    cursor: Option<String>,
}

/// Sales of one product on one day in one currency; cancelled orders are taken back.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaySales {
    /// The day of placing, UTC.
    #[schema(value_type = String, format = Date)]
    pub day: Date,
    pub product_id: Uuid,
    /// ISO 4217.
    pub currency: String,
    pub orders: i64,
    pub quantity: i64,
    /// Decimal text with the currency's minor digits.
    pub revenue: String,
}

/// A page of sales.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SalesPage {
    pub items: Vec<DaySales>,
    /// Null on the last page.
    pub next_cursor: Option<String>,
}

/// Reads daily sales, oldest day first.
#[utoipa::path(
    get, path = "/api/sales/daily", tag = "sales", params(SalesQuery, ReadHeaders),
    responses((status = 200, body = SalesPage, description = "A page; `As-Of` tells how fresh it is",
               headers(("As-Of" = String), ("As-Of-Positions" = String), ("Consistency" = String),
                 ("Projection-Standing" = String, description = "Partitions that stand, as `2,5`: the answer may lack what was decided since; absent where all go on")))),
)]
pub async fn daily_sales(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    QueryOf(query): QueryOf<SalesQuery>,
) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::new(INVALID_REQUEST, format!("limit: must be 1 to {LIMIT_MAX}")));
    }
    let (from, to) = (day("from", query.from.as_deref())?, day("to", query.to.as_deref())?);
    let product_id = query.product_id.as_deref().map(product).transpose()?;
    let list = format!("{from:?}/{to:?}/{product_id:?}");
    let after = query.cursor.as_deref().map(|text| read_cursor(&list, text)).transpose()?;
    let (after_day, after_product, after_currency) = match after {
        Some((day, product, currency)) => (Some(day), Some(product), Some(currency)),
        None => (None, None, None),
    };
    let read = api.begin_read(&headers, PROJECTION).await?;
    let statement = read
        .client
        .prepare_cached(
            "select day, product_id, currency, orders, quantity, revenue from read.daily_sales
             where ($1::date is null or day >= $1) and ($2::date is null or day <= $2)
               and ($3::uuid is null or product_id = $3)
               and ($4::date is null or (day, product_id, currency) > ($4, $5::uuid, $6::text))
             order by day, product_id, currency limit $7",
        )
        .await?;
    let rows_wanted = i64::from(limit) + 1;
    let rows = async {
        read.client
            .query(&statement, &[&from, &to, &product_id, &after_day, &after_product, &after_currency, &rows_wanted])
            .await
            .map_err(Problem::from)
    };
    let (as_of, rows) = futures_util::try_join!(read.as_of(None), rows)?;
    let more = rows.len() > limit as usize;
    let items: Vec<DaySales> = rows.iter().take(limit as usize).map(sales).collect();
    let next_cursor = items
        .last()
        .filter(|_| more)
        .map(|last| cursor::encode(&list, &[last.day.to_string(), last.product_id.to_string(), last.currency.clone()]));
    let mut response = Json(SalesPage { items, next_cursor }).into_response();
    read.stamp(&as_of, &mut response);
    Ok(response)
}

/// A date of the years that PostgreSQL and people know alike.
fn day(name: &str, text: Option<&str>) -> Result<Option<Date>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let strict = text.len() == 10;
    let day = text.parse::<Date>().ok().filter(|day| strict && day.year() >= 1);
    day.map(Some).ok_or_else(|| Problem::new(INVALID_REQUEST, format!("{name}: must be a date such as 2026-01-31")))
}

fn product(text: &str) -> Result<Uuid, Problem> {
    parse_uuid(text).ok_or_else(|| Problem::new(INVALID_REQUEST, format!("productId: {}", IdFault::Malformed)))
}

fn read_cursor(list: &str, text: &str) -> Result<(Date, Uuid, String), Problem> {
    let fields = cursor::decode(list, text)?;
    let place = match fields.as_slice() {
        [at, product, currency] if Currency::from_code(currency).is_some() => {
            let at = day("cursor", Some(at))?;
            at.zip(Uuid::try_parse(product).ok()).map(|(at, product)| (at, product, currency.clone()))
        }
        _ => None,
    };
    place.ok_or_else(|| Problem::new(INVALID_REQUEST, "cursor: is none of ours"))
}

fn sales(row: &Row) -> DaySales {
    let currency: String = row.get(2);
    DaySales {
        day: row.get(0),
        product_id: row.get(1),
        orders: row.get(3),
        quantity: row.get(4),
        revenue: amount_text(row.get::<_, Decimal>(5), &currency),
        currency,
    }
}
