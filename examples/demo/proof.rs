//! Holds the read tables against totals computed from the generator alone.

use std::collections::BTreeMap;

use anyhow::Context as _;
use tokio_postgres::Client;

use super::orderbook::{Expected, OrderBook, StatusTotal, decimal};

/// What the read tables say of one book.
pub async fn read_totals(client: &Client, book: &OrderBook) -> anyhow::Result<BTreeMap<String, StatusTotal>> {
    let rows = client
        .query(
            "select status, count(*), (sum(total) * 100)::bigint from read.order_list
             where starts_with(customer_id, $1) group by status",
            &[&book.customer_prefix()],
        )
        .await
        .context("cannot read read.order_list")?;
    Ok(rows.iter().map(|row| (row.get(0), StatusTotal { orders: row.get(1), cents: row.get(2) })).collect())
}

/// Revenue of every product and day, summed: what `read.daily_sales` comes to, in cents.
pub async fn read_sales(client: &Client) -> anyhow::Result<i64> {
    let row = client
        .query_one("select coalesce(sum(revenue) * 100, 0)::bigint from read.daily_sales", &[])
        .await
        .context("cannot read read.daily_sales")?;
    Ok(row.get(0))
}

/// Prints the proof line by line; whether everything is equal.
pub async fn prove(client: &Client, book: &OrderBook, expected: &Expected) -> anyhow::Result<bool> {
    let found = read_totals(client, book).await?;
    let mut holds = found.len() == expected.by_status.len();
    println!("  {:<9} {:>9} {:>22}   {:>9} {:>22}", "status", "expected", "revenue", "read", "revenue");
    for (status, wanted) in &expected.by_status {
        let read = found.get(*status).copied().unwrap_or_default();
        let equal = read == *wanted;
        holds &= equal;
        println!(
            "  {status:<9} {:>9} {:>22}   {:>9} {:>22}   {}",
            wanted.orders,
            decimal(wanted.cents),
            read.orders,
            decimal(read.cents),
            if equal { "equal" } else { "DIFFERENT" }
        );
    }
    let booked: i64 = client
        .query_one("select coalesce(sum(total) * 100, 0)::bigint from read.order_list where status <> 'cancelled'", &[])
        .await
        .context("cannot read read.order_list")?
        .get(0);
    let sales = read_sales(client).await?;
    let equal = sales == booked;
    println!(
        "  daily sales by product: {}; orders not cancelled: {}   {}",
        decimal(sales),
        decimal(booked),
        if equal { "equal" } else { "DIFFERENT" }
    );
    Ok(holds && equal)
}
