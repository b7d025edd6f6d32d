//! The read tables of orders: one file each, and one line each in the roster below.
//!
//! Each is fed by its own consumer group, in its own database role, and keeps whatever it needs in
//! tables of its own: none reads another's. What is decided is the domain's affair, not ours.

mod customer_summary;
mod daily_sales;
mod order_changes;
mod order_details;
mod order_history;
mod order_list;

use std::sync::Arc;

use super::domain::OrderEvent;
use throughline::engine::Projection;

/// Every projection of this context.
pub fn all() -> Vec<Arc<dyn Projection<Event = OrderEvent>>> {
    vec![
        Arc::new(order_list::OrderList),
        Arc::new(order_details::OrderDetails),
        Arc::new(customer_summary::CustomerSummary),
        Arc::new(daily_sales::DailySales),
        Arc::new(order_history::OrderHistory),
    ]
}
