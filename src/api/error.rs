//! What ends the server, or keeps it from starting; each message names the setting to look at.

use std::net::SocketAddr;

use super::auth::AuthError;
use crate::kafka::KafkaError;
use crate::store::StoreError;

/// What ends the server.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Open to others, and nobody would be asked who they are.
    #[error(
        "{setting} is {listen}, which others can reach, and no authentication is configured. Set \
         http.auth.api_keys_file or http.auth.jwks_file, or listen on 127.0.0.1"
    )]
    OpenWithoutAuthentication { listen: SocketAddr, setting: &'static str },
    /// The address is taken, or not ours.
    #[error("cannot listen on {listen}: {source}. Choose another with HTTP_LISTEN or ADMIN_LISTEN")]
    Listen { listen: SocketAddr, source: std::io::Error },
    /// Certificate or key cannot be used.
    #[error("TLS: {0}. Check http.tls_certificate_file and http.tls_key_file")]
    Tls(String),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("metrics: {0}")]
    Metrics(String),
}
