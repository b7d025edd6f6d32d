//! The outermost layer of the server: one correlation id, one span and one measurement a request, whatever answers it.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::correlation;
use super::problem::{INVALID_REQUEST, Problem};
use crate::kafka::headers::TEXT_HEADER_BYTES_MAX;

/// Request and answer header.
pub const CORRELATION_HEADER: HeaderName = HeaderName::from_static("x-correlation-id");

/// Layer: fixes the id, measures the request, and echoes the id on whatever is answered.
pub async fn layer(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let taken = request.headers().get(CORRELATION_HEADER).map(accept);
    let (named, refused) = (matches!(taken, Some(Some(_))), matches!(taken, Some(None)));
    let id = taken.flatten().unwrap_or_else(|| Uuid::now_v7().to_string());
    let span = tracing::info_span!("http", %method, route, correlation_id = id);
    let answer = async {
        if refused {
            let detail = format!("X-Correlation-ID must be 1 to {TEXT_HEADER_BYTES_MAX} visible ASCII characters");
            return Problem::new(INVALID_REQUEST, detail).into_response();
        }
        next.run(request).await
    };
    let (mut response, id) = correlation::within(id, named, span, answer).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(CORRELATION_HEADER, value);
    }
    let labels =
        [("method", label(&method).to_owned()), ("route", route), ("status", response.status().as_u16().to_string())];
    metrics::counter!("throughline_http_requests_total", &labels).increment(1);
    metrics::histogram!("throughline_http_request_seconds", &labels[..2]).record(started.elapsed());
    response
}

/// The method as metrics name it: a caller may make up others without end.
fn label(method: &Method) -> &'static str {
    const KNOWN: [Method; 8] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::TRACE,
    ];
    match KNOWN.iter().position(|known| known == method) {
        Some(at) => ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"][at],
        None => "other",
    }
}

/// The value, if it may travel with every event for ever: short, visible, ASCII.
fn accept(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let fits = !text.is_empty() && text.len() <= TEXT_HEADER_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_nobody_knows_share_one_label() {
        for made_up in ["FOO123", "get", "GETS", "CONNECT", "PROPFIND", &"X".repeat(1_000)] {
            assert_eq!(label(&Method::from_bytes(made_up.as_bytes()).unwrap()), "other");
        }
        assert_eq!((label(&Method::GET), label(&Method::TRACE)), ("GET", "TRACE"));
    }

    #[test]
    fn only_short_visible_text_is_taken_over() {
        assert_eq!(accept(&HeaderValue::from_static("abc-1")), Some("abc-1".into()));
        for refused in ["", "a b", "a\tb"] {
            assert_eq!(accept(&HeaderValue::from_str(refused).unwrap()), None, "{refused:?}");
        }
        assert_eq!(accept(&HeaderValue::from_str(&"x".repeat(257)).unwrap()), None);
        assert_eq!(accept(&HeaderValue::from_bytes(b"\xff").unwrap()), None);
    }
}
