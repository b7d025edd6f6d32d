//! Who calls, and what they may do: API keys and JWT, each from a file that is re-read when it changes.
//!
//! Without either file nobody is asked, and the server listens on loopback only. What a caller may
//! do is decided here by method; the principal goes into the metadata of every command they send.

mod api_keys;
mod file;
mod jwt;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, header::AUTHORIZATION};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::{FORBIDDEN, Problem, UNAUTHENTICATED};
use crate::settings::AuthSettings;
use api_keys::ApiKeys;
use jwt::Tokens;

/// The longest credential that is looked at, bytes.
const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Send commands.
    CommandsWrite,
    /// Read read tables, outcomes and schemas.
    Read,
    /// Everything.
    Admin,
}

impl Scope {
    /// As keys and tokens spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CommandsWrite => "commands:write",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::CommandsWrite, Self::Read, Self::Admin].into_iter().find(|scope| scope.name() == name)
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Scope of idempotency keys and of the rate limit: the principal, or the address of nobody.
    pub id: String,
    /// Who it is, where they were asked: `key:ID` or `jwt:SUBJECT`.
    pub principal: Option<String>,
    scopes: Vec<Scope>,
}

impl Caller {
    /// A caller whom nobody asked: no principal, and everything allowed on loopback.
    fn anonymous(address: Option<SocketAddr>) -> Self {
        let host = address.map_or_else(|| "unknown".to_owned(), |address| address.ip().to_string());
        Self { id: format!("anonymous@{host}"), principal: None, scopes: vec![Scope::Admin] }
    }

    fn known(principal: String, scopes: Vec<Scope>) -> Self {
        Self { id: principal.clone(), principal: Some(principal), scopes }
    }

    /// Whether they may.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|held| *held == scope || *held == Scope::Admin)
    }
}

/// A file of keys that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{setting} {path}: {reason}")]
pub struct AuthError {
    pub setting: &'static str,
    pub path: String,
    pub reason: String,
}

/// Checks credentials.
#[derive(Debug, Default)]
pub struct Authenticator {
    api_keys: Option<ApiKeys>,
    tokens: Option<Tokens>,
}

impl Authenticator {
    /// Reads the configured files; a mistake in one is an error now, at start.
    pub fn new(settings: &AuthSettings) -> Result<Self, AuthError> {
        Ok(Self {
            api_keys: settings.api_keys_file.as_deref().map(ApiKeys::open).transpose()?,
            tokens: settings.jwks_file.as_deref().map(|path| Tokens::open(path, settings)).transpose()?,
        })
    }

    /// Whether anybody is asked at all.
    pub fn is_configured(&self) -> bool {
        self.api_keys.is_some() || self.tokens.is_some()
    }

    /// Who sent these headers, to `path`.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        path: &str,
        address: Option<SocketAddr>,
    ) -> Result<Caller, Problem> {
        if !self.is_configured() {
            return Ok(Caller::anonymous(address));
        }
        let basic = is_registry(path);
        let unauthenticated = |detail| unauthenticated(detail, basic);
        let credential = credential(headers, basic).ok_or_else(|| unauthenticated("no credentials were sent"))?;
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return Err(unauthenticated("the credentials are too long"));
        }
        let credential = &*credential;
        let caller = match (&self.api_keys, &self.tokens) {
            (Some(keys), _) if credential.starts_with(api_keys::PREFIX) => keys.check(credential),
            (_, Some(tokens)) => tokens.check(credential),
            _ => None,
        };
        // One sentence for every reason: a guesser learns nothing. The log tells which.
        caller.ok_or_else(|| unauthenticated("the credentials are not accepted"))
    }
}

/// `Authorization: Bearer …` or `X-API-Key: …`, and where `basic` is taken `Authorization: Basic …`.
fn credential(headers: &HeaderMap, basic: bool) -> Option<Cow<'_, str>> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return headers.get("x-api-key")?.to_str().ok().map(|key| key.trim().into());
    };
    let (scheme, credential) = value.to_str().ok()?.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(credential.trim().into()),
        "basic" if basic && credential.len() <= CREDENTIAL_BYTES_MAX => {
            api_keys::of_basic(credential.trim()).map(Into::into)
        }
        _ => None,
    }
}

fn unauthenticated(detail: &str, basic: bool) -> Problem {
    metrics::counter!("throughline_http_unauthenticated_total").increment(1);
    Problem::new(UNAUTHENTICATED, detail).challenge(basic)
}

/// Layer: puts the [`Caller`] into the request, or answers 401 or 403.
pub async fn layer(State(authenticator): State<Arc<Authenticator>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if is_public(path) {
        return next.run(request).await;
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let caller = match authenticator.authenticate(request.headers(), path, address) {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    let needed = if reads(request.method(), path) { Scope::Read } else { Scope::CommandsWrite };
    if !caller.may(needed) {
        return Problem::new(FORBIDDEN, format!("this needs the scope {}", needed.name())).into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// A registry's look-up by definition is a POST that changes nothing.
fn reads(method: &Method, path: &str) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) || path.starts_with("/subjects/")
}

/// The registry's stock clients know Basic authentication alone. Elsewhere it is not taken: browsers send it
/// along by themselves, for whichever page asks.
fn is_registry(path: &str) -> bool {
    ["subjects", "schemas", "config", "mode", "compatibility"].contains(&path.split('/').nth(1).unwrap_or_default())
}

/// Documents about the API are for everybody.
fn is_public(path: &str) -> bool {
    path == "/openapi.json" || path == "/docs" || path.starts_with("/docs/") || path.starts_with("/problems/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_in_two_headers() {
        let header =
            |name: &'static str, value: &str| HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
        for basic in [false, true] {
            let credential = |headers: HeaderMap| credential(&headers, basic).map(Cow::into_owned);
            assert_eq!(credential(header("authorization", "Bearer abc")).as_deref(), Some("abc"));
            assert_eq!(credential(header("authorization", "bearer  abc ")).as_deref(), Some("abc"));
            assert_eq!(credential(header("authorization", "Basic abc")), None);
            assert_eq!(credential(header("x-api-key", "abc")).as_deref(), Some("abc"));
            assert_eq!(credential(HeaderMap::new()), None);
            // shop:s_1
            let key = credential(header("authorization", "Basic c2hvcDpzXzE="));
            assert_eq!(key.as_deref(), basic.then_some("tk_shop_s_1"));
        }
    }

    #[test]
    fn nobody_is_asked_without_configuration_and_addresses_keep_callers_apart() {
        let open = Authenticator::new(&AuthSettings::default()).unwrap();
        let caller = open.authenticate(&HeaderMap::new(), "/", Some("127.0.0.1:5".parse().unwrap())).unwrap();
        assert_eq!((caller.id.as_str(), &caller.principal), ("anonymous@127.0.0.1", &None));
        assert!(caller.may(Scope::CommandsWrite));
    }

    #[test]
    fn admin_may_everything_and_others_what_they_hold() {
        let reader = Caller::known("key:r".into(), vec![Scope::Read]);
        assert!(reader.may(Scope::Read) && !reader.may(Scope::CommandsWrite) && !reader.may(Scope::Admin));
        assert!(Caller::known("key:a".into(), vec![Scope::Admin]).may(Scope::CommandsWrite));
    }

    #[test]
    fn the_registry_alone_takes_basic() {
        assert!(["/subjects", "/schemas/ids/1", "/config", "/mode/x", "/compatibility/y"].into_iter().all(is_registry));
        assert!(!["/api/accounts", "/subjectsx", "/api/subjects", "/", "", "//subjects"].into_iter().any(is_registry));
    }

    #[test]
    fn only_documents_are_public() {
        assert!(["/docs", "/docs/swagger-ui.css", "/openapi.json", "/problems/NOT_FOUND"].into_iter().all(is_public));
        assert!(!["/api/accounts", "/docsx", "/openapi.jsonx", "/subjects", "/"].into_iter().any(is_public));
    }
}
