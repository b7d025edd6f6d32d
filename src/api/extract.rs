//! What handlers take out of a request, with every mistake answered as a problem.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::Api;
use super::problem::{BODY_TIMEOUT, INVALID_REQUEST, PAYLOAD_TOO_LARGE, Problem, UNSUPPORTED_MEDIA_TYPE};
use crate::engine::ids::parse_id;

/// Path parameters.
pub struct PathOf<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        storable("path", parts.uri.path())?;
        let Path(value) = Path::<T>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Problem::new(INVALID_REQUEST, format!("path: {}", rejection.body_text())))?;
        Ok(Self(value))
    }
}

/// An id of a command or a stream in a path or a query, read as at every door.
#[derive(Debug, Clone, Copy)]
pub struct Id(pub Uuid);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        parse_id(&text).map(Self).map_err(D::Error::custom)
    }
}

/// Query parameters. The types refuse unknown ones.
pub struct QueryOf<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        storable("query", parts.uri.query().unwrap_or_default())?;
        let Query(value) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Problem::new(INVALID_REQUEST, format!("query: {}", rejection.body_text())))?;
        Ok(Self(value))
    }
}

/// No text of PostgreSQL holds U+0000, and no text of ours has it: whatever names it is malformed.
fn storable(part: &str, encoded: &str) -> Result<(), Problem> {
    if encoded.contains("%00") {
        return Err(Problem::new(INVALID_REQUEST, format!("{part}: U+0000 is in no text here")));
    }
    Ok(())
}

/// A JSON body as it came, bounded by the server's limits of size and time.
pub struct JsonBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBody
where
    Arc<Api>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"));
        }
        let wait = Duration::from_millis(Arc::<Api>::from_ref(state).settings.http.body_timeout_ms);
        match tokio::time::timeout(wait, Bytes::from_request(request, state)).await {
            Ok(bytes) => bytes.map(Self).map_err(body_problem),
            Err(_) => {
                let detail = format!("the body did not come whole within {} ms", wait.as_millis());
                Err(Problem::new(BODY_TIMEOUT, detail).with_header(CONNECTION, "close"))
            }
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn body_problem(rejection: BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::new(PAYLOAD_TOO_LARGE, "the body is larger than this server takes");
    }
    Problem::new(INVALID_REQUEST, "the body could not be read to its end")
}

/// The one value of a header as text; a repeated or non-ASCII one is refused.
pub fn header<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::new(INVALID_REQUEST, format!("header {name} is there more than once")));
    }
    let text = value.to_str().map_err(|_| Problem::new(INVALID_REQUEST, format!("header {name} is not ASCII text")))?;
    Ok(Some(text.trim()))
}
