//! What a command request says around its body: lane, idempotency, expected version, wait, trace.

use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;
use uuid::Uuid;

use super::Api;
use super::auth::Caller;
use super::extract::{QueryOf, header};
use super::problem::{INVALID_REQUEST, Problem};
use crate::engine::CommandMeta;
use crate::engine::ids::id_of_idempotency_key;
use crate::kafka::Lane;
use crate::kafka::headers::{TEXT_HEADER_BYTES_MAX, is_traceparent};

/// The longest `Idempotency-Key`, bytes.
const KEY_BYTES_MAX: usize = 255;

/// Query parameters of every command.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CommandQuery {
    /// The lane that the command travels on.
    #[serde(default)]
    #[param(inline, nullable = false)]
    pub lane: Option<Lane>,
}

/// Headers of every command, for the document.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct CommandHeaders {
    /// Fixes the command's id, and on placing the id of what is placed: a retry with the same key and the same command,
    /// however it is written, has one effect and one answer. A key counts for its caller and in one stream.
    #[param(
        rename = "Idempotency-Key",
        required = false,
        nullable = false,
        min_length = 1,
        max_length = 255,
        pattern = r"^[!#-\[\]-~]+$",
        example = "payment-4711"
    )]
    pub idempotency_key: Option<String>,
    /// The version that must stand, as an ETag.
    #[param(
        rename = "If-Match",
        required = false,
        nullable = false,
        pattern = r#"^"[0-9]{1,18}"$"#,
        example = "\"1\""
    )]
    pub if_match: Option<String>,
    /// `wait=N` waits up to N seconds for the outcome.
    #[param(rename = "Prefer", required = false, nullable = false, example = "wait=5")]
    pub prefer: Option<String>,
    /// Follows the request through every topic and log line; made when absent.
    #[param(
        rename = "X-Correlation-ID",
        required = false,
        nullable = false,
        min_length = 1,
        max_length = 256,
        pattern = r"^[!-~]+$"
    )]
    pub correlation_id: Option<String>,
}

/// The envelope of a command request.
#[derive(Debug)]
pub struct RequestEnvelope {
    /// Who sends it.
    pub caller: Caller,
    /// The lane.
    pub lane: Lane,
    /// The idempotency key, bare.
    pub key: Option<String>,
    /// `If-Match`.
    pub expected_version: Option<i64>,
    /// `Prefer: wait=N`.
    pub wait: Option<Duration>,
    /// W3C trace context, if well formed.
    pub traceparent: Option<String>,
    /// What caused the command, in the caller's terms.
    pub causation_id: Option<String>,
}

impl RequestEnvelope {
    /// The command id that the key fixes for `stream_id`, else a new one. A key's scope is its
    /// caller and the stream that it addresses.
    fn command_id(&self, stream_id: Uuid) -> Uuid {
        match &self.key {
            Some(key) => id_of_idempotency_key(&self.caller.id, &format!("command/{stream_id}"), key),
            None => Uuid::now_v7(),
        }
    }

    /// Puts what the request says around its body into the command that its body is. `id_is_given` tells that the body
    /// names the command's id; else the key fixes it, or it is new.
    ///
    /// # Errors
    /// Both say the same thing, or two things.
    pub fn complete(&self, meta: &mut CommandMeta, id_is_given: bool) -> Result<(), Problem> {
        if id_is_given && self.key.is_some() {
            let detail = "commandId and Idempotency-Key say the same: send one of them";
            return Err(Problem::new(INVALID_REQUEST, detail));
        }
        if !id_is_given {
            meta.command_id = self.command_id(meta.stream_id);
        }
        if let (Some(header), Some(field)) = (self.expected_version, meta.expected_version)
            && header != field
        {
            return Err(Problem::new(INVALID_REQUEST, "If-Match and expectedVersion name two versions"));
        }
        meta.expected_version = self.expected_version.or(meta.expected_version);
        Ok(())
    }

    /// The id of a new stream: fixed by the key, else a new one.
    pub fn new_stream_id(&self) -> Uuid {
        match &self.key {
            Some(key) => id_of_idempotency_key(&self.caller.id, "stream", key),
            None => Uuid::now_v7(),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestEnvelope
where
    Arc<Api>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let api = Arc::<Api>::from_ref(state);
        let QueryOf(query) = QueryOf::<CommandQuery>::from_request_parts(parts, state).await?;
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Problem::new(super::problem::UNAUTHENTICATED, "nobody was asked"))?;
        let headers = &parts.headers;
        Ok(Self {
            caller,
            lane: query.lane.unwrap_or_default(),
            key: idempotency_key(headers)?,
            expected_version: if_match(headers)?,
            wait: preferred_wait(headers).map(|wait| wait.min(api.wait_max())),
            traceparent: headers
                .get("traceparent")
                .and_then(|value| value.to_str().ok())
                .filter(|text| is_traceparent(text))
                .map(str::to_owned),
            causation_id: causation_id(headers)?,
        })
    }
}

/// A quoted string (draft-ietf-httpapi-idempotency-key-header) or a bare one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(text) = header(headers, "idempotency-key")? else { return Ok(None) };
    let bare = match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|bare| !bare.is_empty()),
        None => Some(text),
    };
    let fits = |key: &&str| {
        !key.is_empty()
            && key.len() <= KEY_BYTES_MAX
            && key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
    };
    let detail = || format!("Idempotency-Key must be 1 to {KEY_BYTES_MAX} visible ASCII characters, bare or quoted");
    bare.filter(fits).map(|key| Some(key.to_owned())).ok_or_else(|| Problem::new(INVALID_REQUEST, detail()))
}

/// One strong entity tag, whose text is the version.
fn if_match(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(text) = header(headers, "if-match")? else { return Ok(None) };
    let version = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let digits = version.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let version = digits.and_then(|text| text.parse().ok());
    version.map(Some).ok_or_else(|| {
        Problem::new(INVALID_REQUEST, "If-Match must be one ETag as a read of the stream answered it, such as \"3\"")
    })
}

/// `wait=N` of RFC 7240; preferences that are not understood are ignored, as it demands.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    preferences
        .flat_map(|value| value.split(','))
        .filter_map(|preference| preference.split(';').next()?.trim().split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse::<u32>().ok())
        .map(|seconds| Duration::from_secs(u64::from(seconds)))
}

fn causation_id(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(text) = header(headers, "x-causation-id")? else { return Ok(None) };
    let fits = !text.is_empty() && text.len() <= TEXT_HEADER_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        Ok(Some(text.to_owned()))
    } else {
        Err(Problem::new(INVALID_REQUEST, "X-Causation-ID must be 1 to 256 visible ASCII characters"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_idempotency_key_is_quoted_or_bare() {
        let key = |values: &[&str]| idempotency_key(&headers("idempotency-key", values));
        assert_eq!(key(&[]).unwrap(), None);
        assert_eq!(key(&["abc"]).unwrap().as_deref(), Some("abc"));
        assert_eq!(key(&["\"abc\""]).unwrap().as_deref(), Some("abc"));
        let long = "x".repeat(256);
        for bad in [&["\"\""][..], &[""], &["\"abc"], &["a b"], &["a\\b"], &[long.as_str()], &["a", "b"]] {
            assert_eq!(key(bad).unwrap_err().status().as_u16(), 400, "{bad:?}");
        }
    }

    #[test]
    fn if_match_is_a_version() {
        let version = |value: &str| if_match(&headers("if-match", &[value]));
        assert_eq!(version("\"3\"").unwrap(), Some(3));
        for bad in ["3", "*", "W/\"3\"", "\"x\"", "\"-1\"", "\"1\", \"2\"", "\"99999999999999999999\""] {
            assert!(version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefer_wait_is_found_among_others_and_nonsense_is_ignored() {
        let wait = |values: &[&str]| preferred_wait(&headers("prefer", values)).map(|wait| wait.as_secs());
        assert_eq!(wait(&["wait=5"]), Some(5));
        assert_eq!(wait(&["return=minimal, Wait = 7; foo"]), Some(7));
        assert_eq!(wait(&["respond-async", "wait=1"]), Some(1));
        assert_eq!(wait(&["wait=soon"]), None);
        assert_eq!(wait(&["wait"]), None);
    }
}
