//! What protects callers whose browser is made to call us: who may be addressed, and what may be kept.
//!
//! A page of anybody's can point its own name at a loopback address (DNS rebinding) and then call whatever
//! listens there. Where nobody is asked who they are, the name that the browser believes to call is what
//! gives such a page away: it is not ours. Knows no routes.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, HOST, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Uri, uri::Authority};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{IntoResponse, Response};

use super::problem::{HOST_NOT_ALLOWED, Problem};

/// Refuses what is addressed to another host. `hosts` = names that are ours beside loopback's; none = any is.
pub(super) fn with_hosts(router: Router, hosts: Option<Arc<[String]>>) -> Router {
    let Some(hosts) = hosts else { return router };
    router.layer(from_fn(move |request: Request, next: Next| {
        let ours = addresses_us(&request, &hosts);
        async move {
            if ours {
                return next.run(request).await;
            }
            Problem::new(HOST_NOT_ALLOWED, "the request names a host that this server does not go by").into_response()
        }
    }))
}

/// Puts what browsers are told on every answer.
pub(super) fn with_headers(router: Router) -> Router {
    router.layer(map_response(async |mut response: Response| {
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // What a caller was told is theirs, unless its route says otherwise.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }))
}

/// Every name in the request is ours. One that names nobody comes from no browser.
fn addresses_us(request: &Request, hosts: &[String]) -> bool {
    let named = request.headers().get_all(HOST).iter().map(|value| value.to_str().ok());
    let mut named = named.chain(Uri::authority(request.uri()).map(|authority| Some(authority.as_str())));
    named.all(|name| name.is_some_and(|name| is_ours(name, hosts)))
}

fn is_ours(name: &str, hosts: &[String]) -> bool {
    let Ok(authority) = name.parse::<Authority>() else { return false };
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback(),
        Ok(IpAddr::V6(address)) => address == Ipv6Addr::LOCALHOST,
        Err(_) => {
            let host = host.strip_suffix('.').unwrap_or(host);
            host.eq_ignore_ascii_case("localhost") || hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_by_name_or_address_is_us_whatever_the_port() {
        for ours in ["localhost", "LocalHost:8080", "localhost.:1", "127.0.0.1", "127.8.9.1:65535", "[::1]", "[::1]:80"]
        {
            assert!(is_ours(ours, &[]), "{ours}");
        }
        assert!(is_ours("proxy.internal:8080", &["Proxy.internal".into()]));
    }

    #[test]
    fn other_names_are_not_us_however_like_they_look() {
        for foreign in [
            "evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "127.0.0.1.nip.io:8080",
            "10.0.0.1",
            "128.0.0.1",
            "0.0.0.0",
            "[::]",
            "[::2]:80",
            "[::ffff:10.0.0.1]",
            "2130706433",
            "",
            " ",
            "local host",
            "localhost/x",
        ] {
            assert!(!is_ours(foreign, &[]), "{foreign}");
        }
    }

    #[test]
    fn each_name_in_a_request_counts() {
        let request = |uri: &str, hosts: &[&str]| {
            let builder = Request::builder().uri(uri);
            let builder = hosts.iter().fold(builder, |builder, host| builder.header(HOST, *host));
            builder.body(axum::body::Body::empty()).unwrap()
        };
        assert!(addresses_us(&request("/livez", &[]), &[]));
        assert!(addresses_us(&request("/livez", &["127.0.0.1:8081"]), &[]));
        assert!(!addresses_us(&request("/livez", &["127.0.0.1", "evil.example"]), &[]));
        assert!(!addresses_us(&request("http://evil.example/livez", &["localhost"]), &[]));
        assert!(!addresses_us(&request("http://localhost/livez", &["evil.example"]), &[]));
    }
}
