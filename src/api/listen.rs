//! The two ports: bound before anything else starts, served once what is behind them is there.
//!
//! A port that is taken, or open to others without authentication, ends the start before a loop has joined
//! a group or claimed a partition. Knows no routes.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use tokio_util::sync::CancellationToken;

use super::connections::{Acceptor, Doorkeeper, Gate};
use super::error::ApiError;
use super::{browser, descriptors};
use crate::settings::HttpSettings;

/// Open requests of the admin port get this long to finish.
const ADMIN_STOP_WAIT: Duration = Duration::from_millis(200);
/// Largest request head, bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Requests of one HTTP/2 connection at once, at most.
const STREAMS_MAX: u32 = 128;
/// An HTTP/2 peer is asked whether it is there this often, and has this long to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WAIT: Duration = Duration::from_secs(10);

/// A bound port.
pub struct Listener {
    address: SocketAddr,
    socket: TcpListener,
    tls: Option<RustlsConfig>,
    gate: Arc<Gate>,
    /// The hosts that a request may be addressed to, beside loopback's; none = any.
    pub(super) hosts: Option<Arc<[String]>>,
    stop_wait: Duration,
    head_timeout: Duration,
}

impl Listener {
    /// Binds the API's port.
    pub async fn api(http: &HttpSettings) -> Result<Self, ApiError> {
        let open = is_open(http);
        if !http.listen.ip().is_loopback() && open {
            let setting = "http.listen (HTTP_LISTEN)";
            return Err(ApiError::OpenWithoutAuthentication { listen: http.listen, setting });
        }
        let shares = descriptors::of_process(http);
        if shares.api < http.connections_max {
            tracing::warn!(
                open_files = shares.limit,
                connections = shares.api,
                "the limit of open files allows fewer connections than http.connections_max; raise it (ulimit -n)"
            );
        }
        Ok(Self {
            tls: tls(http).await?,
            hosts: open.then(|| http.allowed_hosts.clone().into()),
            stop_wait: Duration::from_millis(http.shutdown_wait_ms),
            ..Self::bind(http.listen, Gate::new("api", shares.api, None, http), http)?
        })
    }

    /// Binds the admin port. Several processes of one machine share the default address by giving way: the
    /// first has it, the others take a free port and say which. Where files run out, `beside` gives some.
    pub fn admin(http: &HttpSettings, beside: Option<&Self>) -> Result<Self, ApiError> {
        let mut listen = http.admin_listen;
        if !listen.ip().is_loopback() && is_open(http) {
            // Probes cannot authenticate; whoever opens them has shown that they thought of callers.
            return Err(ApiError::OpenWithoutAuthentication { listen, setting: "http.admin_listen (ADMIN_LISTEN)" });
        }
        let most = descriptors::of_process(http).admin;
        let gate = Gate::new("admin", most, beside.map(|other| other.gate.clone()), http);
        let bound = match Self::bind(listen, gate.clone(), http) {
            Err(_) if listen == HttpSettings::default().admin_listen => {
                listen.set_port(0);
                Self::bind(listen, gate, http)
            }
            bound => bound,
        }?;
        // Nobody is asked who they are here, whatever the API asks. From elsewhere it goes by any name.
        let hosts = listen.ip().is_loopback().then(|| http.allowed_hosts.clone().into());
        Ok(Self { hosts, ..bound })
    }

    fn bind(listen: SocketAddr, gate: Arc<Gate>, http: &HttpSettings) -> Result<Self, ApiError> {
        let error = |source| ApiError::Listen { listen, source };
        let socket = TcpListener::bind(listen).map_err(error)?;
        let address = socket.local_addr().map_err(error)?;
        let head_timeout = Duration::from_millis(http.head_timeout_ms);
        Ok(Self { address, socket, tls: None, gate, hosts: None, stop_wait: ADMIN_STOP_WAIT, head_timeout })
    }

    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` until cancelled, then lets open requests finish for a while.
    pub(super) async fn serve(self, router: Router, shutdown: CancellationToken) -> Result<(), ApiError> {
        let listen = self.address;
        let error = |source| ApiError::Listen { listen, source };
        tracing::info!(address = %listen, tls = self.tls.is_some(), "{} listens", self.gate.port);
        let handle = Handle::new();
        let stopper = handle.clone();
        let stop = tokio::spawn(async move {
            shutdown.cancelled().await;
            stopper.graceful_shutdown(Some(self.stop_wait));
        });
        let server = bounded(axum_server::from_tcp(self.socket).map_err(error)?.handle(handle), &self.gate);
        let door = Doorkeeper::new(self.gate, browser::with_headers(router));
        let served = match self.tls {
            Some(tls) => {
                let tls = RustlsAcceptor::new(tls).handshake_timeout(self.head_timeout).acceptor(Acceptor);
                server.acceptor(tls).serve(door).await
            }
            None => server.acceptor(Acceptor).serve(door).await,
        };
        stop.abort();
        served.map_err(error)
    }
}

/// The bounds of what one connection may ask for; that of its time are the gate's.
fn bounded(mut server: Server<SocketAddr>, gate: &Arc<Gate>) -> Server<SocketAddr> {
    server.http_builder().http1().max_buf_size(HEAD_BYTES_MAX);
    server
        .http_builder()
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT);
    let gate = gate.clone();
    server.accept_error_handler(move |peer, error| match peer {
        // One peer's: it was refused, or its handshake failed.
        Some(peer) => tracing::debug!(%peer, %error, "a connection did not come about"),
        None => gate.not_accepted(error),
    })
}

/// Whether nobody is asked who they are.
pub(super) fn is_open(http: &HttpSettings) -> bool {
    http.auth.api_keys_file.is_none() && http.auth.jwks_file.is_none()
}

async fn tls(http: &HttpSettings) -> Result<Option<RustlsConfig>, ApiError> {
    let (certificate, key) = match (&http.tls_certificate_file, &http.tls_key_file) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        _ => return Err(ApiError::Tls("certificate and key go together".into())),
    };
    // Another provider may be installed already; ours is then not needed.
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = RustlsConfig::from_pem_file(certificate, key).await;
    config.map(Some).map_err(|error| ApiError::Tls(error.to_string()))
}
