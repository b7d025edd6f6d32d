//! One id a request: taken from `X-Correlation-ID` or made, and read everywhere within by [`current`].
//!
//! A command whose caller chose its command id and named no correlation id gets one that follows from the command id
//! ([`adopt`]): a retry is answered the same, and the id is the one that the events carry. Knows no answer.

use std::cell::RefCell;

use tracing::{Instrument as _, Span};

/// The correlation of one request.
struct Correlation {
    id: RefCell<String>,
    /// The caller named the id: it stays.
    named: bool,
    span: Span,
}

tokio::task_local! {
    static CORRELATION: Correlation;
}

/// The id of the request at hand; empty outside of one.
pub fn current() -> String {
    CORRELATION.try_with(|correlation| correlation.id.borrow().clone()).unwrap_or_default()
}

/// Makes `id` the request's, unless its caller named another.
pub fn adopt(id: &str) {
    // Outside of a request there is nothing to change.
    let _ = CORRELATION.try_with(|correlation| {
        if !correlation.named && *correlation.id.borrow() != id {
            correlation.span.record("correlation_id", id);
            id.clone_into(&mut correlation.id.borrow_mut());
        }
    });
}

/// What `answer` comes to with `id` as its correlation id, and the id that it ended with.
pub(super) async fn within<T>(id: String, named: bool, span: Span, answer: impl Future<Output = T>) -> (T, String) {
    let correlation = Correlation { id: RefCell::new(id), named, span: span.clone() };
    let answer = async { (answer.await, current()) };
    CORRELATION.scope(correlation, answer).instrument(span).await
}
