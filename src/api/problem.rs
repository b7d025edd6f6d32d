//! RFC 9457 problems: the one shape of every answer that says no.
//!
//! Knows no context: codes of a domain come from outside, with the status that its routes choose.
//! `type` is a relative reference to a page that this server serves itself, stable like the code.

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::correlation;

/// Media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A kind of problem: what a caller may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Upper snake case, stable.
    pub code: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// One line, the same for every occurrence.
    pub title: &'static str,
    /// What the caller can do about it; printed on the page of the type.
    pub remedy: &'static str,
}

macro_rules! kinds {
    ($($name:ident, $status:ident, $title:literal, $remedy:literal;)*) => {
        $(#[doc = $title] pub const $name: Kind = Kind {
            code: stringify!($name), status: StatusCode::$status, title: $title, remedy: $remedy,
        };)*
        /// Every kind that the server itself answers with.
        pub const KINDS: &[Kind] = &[$($name),*];
    };
}

kinds! {
    INVALID_REQUEST, BAD_REQUEST, "The request is malformed", "Correct the header, path or query parameter that the detail names.";
    INVALID_JSON, BAD_REQUEST, "The body is not JSON", "Send one JSON object, UTF-8.";
    INVALID_COMMAND, UNPROCESSABLE_ENTITY, "The command is invalid", "Correct the field that the detail names; nothing was recorded.";
    INVALID_CONSISTENCY_TOKEN, BAD_REQUEST, "The consistency token is not one of ours", "Send the header exactly as a write answered it.";
    COMMAND_FAILED, UNPROCESSABLE_ENTITY, "The command could not be carried out", "It is kept whole as a dead letter, and a repetition gets the same answer: tell the operator the command id.";
    COMMAND_ID_AMBIGUOUS, CONFLICT, "The command id was used for several streams", "An id counts in one stream: follow one of `choices`, or name the stream as they do.";
    COMMAND_ID_REUSED, UNPROCESSABLE_ENTITY, "The command id or idempotency key was used with another payload", "Use a new key for a new command to the same stream; repeat a command with its meaning unchanged, however it is written.";
    VERSION_MISMATCH, PRECONDITION_FAILED, "The stream stands at another version", "Read it again and decide anew with the version that its ETag tells.";
    UNAUTHENTICATED, UNAUTHORIZED, "Who calls is not known", "Send an API key or a bearer token that this server accepts.";
    FORBIDDEN, FORBIDDEN, "The caller lacks the scope", "Ask for a key with the scope that the detail names.";
    NOT_FOUND, NOT_FOUND, "Nothing is here", "Check the path and the id. A write may not be visible yet: send its Consistency-Token.";
    HOST_NOT_ALLOWED, MISDIRECTED_REQUEST, "The request is addressed to another host", "While nobody is asked who they are, address localhost or a loopback address, or name the host in http.allowed_hosts; or configure authentication.";
    METHOD_NOT_ALLOWED, METHOD_NOT_ALLOWED, "The method does not apply here", "Use a method that the Allow header names.";
    NOT_ACCEPTABLE, NOT_ACCEPTABLE, "No such representation", "Accept application/json.";
    PAYLOAD_TOO_LARGE, PAYLOAD_TOO_LARGE, "The body is too large", "Split the command; the limit is http.body_bytes_max.";
    BODY_TIMEOUT, REQUEST_TIMEOUT, "The body did not come in time", "Send the body without pausing; nothing was done with it.";
    UNSUPPORTED_MEDIA_TYPE, UNSUPPORTED_MEDIA_TYPE, "The body is not application/json", "Send Content-Type: application/json.";
    RATE_LIMITED, TOO_MANY_REQUESTS, "The caller sends more than its share", "Wait for as long as Retry-After says.";
    QUEUE_FULL, SERVICE_UNAVAILABLE, "More commands wait than may", "Wait for as long as Retry-After says, then send the same command with the same Idempotency-Key.";
    STARTING, SERVICE_UNAVAILABLE, "The server is starting", "Wait for as long as Retry-After says; nothing was accepted.";
    OVERLOADED, SERVICE_UNAVAILABLE, "More requests are open than may", "Wait for as long as Retry-After says.";
    REQUEST_TIMEOUT, SERVICE_UNAVAILABLE, "No answer in time", "A write may or may not have been accepted: repeat it with the same Idempotency-Key.";
    KAFKA_UNAVAILABLE, SERVICE_UNAVAILABLE, "The command could not be handed over", "It may or may not have been accepted: repeat it with the same Idempotency-Key.";
    DATABASE_UNAVAILABLE, SERVICE_UNAVAILABLE, "The database does not answer", "Wait for as long as Retry-After says.";
    READ_TABLES_MISSING, SERVICE_UNAVAILABLE, "The read tables are not there yet", "Start the projections, or wait until they have made their tables.";
    PROJECTION_STANDING, SERVICE_UNAVAILABLE, "The read table does not go on", "What is asked for may be decided and not shown: nothing is known of it here. The detail tells the operator's next step; wait for as long as Retry-After says and read again.";
    NOT_SHOWN_YET, SERVICE_UNAVAILABLE, "The write that the token names is not shown yet", "What is asked for may be decided and not shown: nothing is known of it here. Wait for as long as Retry-After says and read again with the token.";
    SHUTTING_DOWN, SERVICE_UNAVAILABLE, "The server is shutting down", "Repeat the request: another server takes it.";
    INTERNAL_ERROR, INTERNAL_SERVER_ERROR, "Something went wrong here", "Tell the operator the correlation id.";
}

/// One occurrence of a problem, ready to be answered.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: Kind,
    detail: String,
    code: Option<String>,
    command_id: Option<Uuid>,
    choices: Vec<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The JSON of a problem.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// Stable reference to the page of this kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "/problems/INVALID_COMMAND")]
    pub type_: String,
    /// One line, the same for every occurrence.
    pub title: String,
    /// HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// Upper snake case, stable: match on this.
    #[schema(example = "INVALID_COMMAND")]
    pub code: String,
    /// What is wrong in this occurrence, for people.
    pub detail: String,
    /// The request's correlation id: the same as in every log line.
    pub correlation_id: String,
    /// The command that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_id: Option<Uuid>,
    /// References to what may be meant, 100 at most, where the request means several things.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub choices: Vec<String>,
}

impl Problem {
    /// A problem of `kind`; `detail` is for people and names what is wrong here.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), code: None, command_id: None, choices: Vec::new(), headers: Vec::new() }
    }

    /// A domain's refusal under its own stable code, as 409.
    pub fn refusal(code: &str, reason: impl Into<String>) -> Self {
        let kind = Kind {
            code: "REFUSED",
            status: StatusCode::CONFLICT,
            title: "The command was refused",
            remedy: "The state does not allow it; the detail tells why.",
        };
        Self { code: Some(code.to_owned()), ..Self::new(kind, reason) }
    }

    /// Names the command it is about.
    #[must_use]
    pub fn with_command(mut self, command_id: Uuid) -> Self {
        self.command_id = Some(command_id);
        self
    }

    /// Lists what may be meant.
    #[must_use]
    pub fn with_choices(mut self, choices: Vec<String>) -> Self {
        self.choices = choices;
        self
    }

    /// Adds `Retry-After`, seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.headers.push((RETRY_AFTER, HeaderValue::from(seconds)));
        self
    }

    /// Adds the challenge that a 401 carries, `basic` where that is taken, too.
    #[must_use]
    pub fn challenge(mut self, basic: bool) -> Self {
        let challenge = if basic { "Basic realm=\"throughline\", charset=\"UTF-8\", Bearer" } else { "Bearer" };
        self.headers.push((WWW_AUTHENTICATE, HeaderValue::from_static(challenge)));
        self
    }

    /// Adds a header; a value that is no header text is left out.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    /// The methods that do apply.
    #[must_use]
    pub fn allow(self, methods: &str) -> Self {
        self.with_header(ALLOW, methods)
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.kind.status
    }

    /// Upper snake case, stable.
    pub fn code(&self) -> &str {
        self.code.as_deref().unwrap_or(self.kind.code)
    }

    /// What is wrong here, for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        metrics::counter!("throughline_http_problems_total", "code" => self.code().to_owned()).increment(1);
        let body = ProblemBody {
            type_: format!("/problems/{}", self.code()),
            title: self.kind.title.to_owned(),
            status: self.kind.status.as_u16(),
            code: self.code().to_owned(),
            detail: self.detail,
            correlation_id: correlation::current(),
            command_id: self.command_id,
            choices: self.choices,
        };
        let body = serde_json::to_vec(&body).expect("a problem of strings and numbers always serializes");
        let mut response = (self.kind.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

/// A failure of the store as its caller sees it: no statement, no stack, a code and a next step.
impl From<crate::store::StoreError> for Problem {
    fn from(error: crate::store::StoreError) -> Self {
        if let crate::store::StoreError::Statement { source, .. } = &error {
            return from_statement(source, &error.to_string());
        }
        // One line a request would be a storm: the API's own loops tell it once.
        tracing::debug!(%error, correlation_id = correlation::current(), "the database does not answer a request");
        Self::new(DATABASE_UNAVAILABLE, "the database does not answer; the log tells why").retry_after(1)
    }
}

impl From<tokio_postgres::Error> for Problem {
    fn from(error: tokio_postgres::Error) -> Self {
        from_statement(&error, &crate::store::describe(&error))
    }
}

fn from_statement(source: &tokio_postgres::Error, described: &str) -> Problem {
    // 42P01: no such table. 3F000: no such schema. 42501: tables made, rights not granted yet.
    let missing = source.code().is_some_and(|code| ["42P01", "3F000", "42501"].contains(&code.code()));
    let transient = crate::store::blame(source) != crate::store::Blame::Data;
    match transient {
        true => {
            tracing::debug!(error = described, correlation_id = correlation::current(), "a request's statement failed")
        }
        false => {
            tracing::warn!(error = described, correlation_id = correlation::current(), "a request's statement failed")
        }
    }
    if missing {
        return Problem::new(READ_TABLES_MISSING, "no projection has made these read tables yet").retry_after(2);
    }
    // 22: a value that no column takes. Reads have none but those of the request.
    if source.code().is_some_and(|code| code.code().starts_with("22")) {
        return Problem::new(INVALID_REQUEST, "a value of the request is out of range");
    }
    if transient {
        return Problem::new(DATABASE_UNAVAILABLE, "the database does not answer; the log tells why").retry_after(1);
    }
    Problem::new(INTERNAL_ERROR, "a statement failed; the log tells why")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn json(problem: Problem) -> (Response<()>, serde_json::Value) {
        let (parts, body) = problem.into_response().into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 16).await.unwrap();
        (Response::from_parts(parts, ()), serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_problem_has_its_media_type_its_code_and_its_headers() {
        let (response, body) = json(Problem::new(QUEUE_FULL, "1000 wait").retry_after(7)).await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
        assert_eq!(response.headers()[RETRY_AFTER], "7");
        assert_eq!(body["type"], "/problems/QUEUE_FULL");
        assert_eq!(body["code"], "QUEUE_FULL");
        assert_eq!(body["status"], 503);
        assert_eq!(body["detail"], "1000 wait");
    }

    #[tokio::test]
    async fn a_refusal_keeps_the_domains_code() {
        let id = Uuid::from_u128(7);
        let (response, body) = json(Problem::refusal("NOT_OPEN", "pay first").with_command(id)).await;
        assert_eq!(response.status(), 409);
        assert_eq!(body["code"], "NOT_OPEN");
        assert_eq!(body["type"], "/problems/NOT_OPEN");
        assert_eq!(body["commandId"], id.to_string());
    }

    #[test]
    fn codes_are_unique_and_upper_snake_case() {
        let mut codes: Vec<_> = KINDS.iter().map(|kind| kind.code).collect();
        assert!(codes.iter().all(|code| code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')));
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), KINDS.len());
    }
}
