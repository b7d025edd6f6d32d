//! Log lines: on stderr, filtered by `RUST_LOG` (default `info`), as text or JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::panics;
use crate::settings::{LogFormat, LogSettings};

/// What a serving process logs when `RUST_LOG` is not set. What Kafka's clients say goes through
/// [`crate::kafka::voice`], which says it once.
pub const SERVING: &str = "info,tokio_postgres=warn,rdkafka=off,librdkafka=off";
/// What a command that a person waits for logs when `RUST_LOG` is not set.
pub const QUIET: &str = "warn,rdkafka=off,librdkafka=off";

/// Installs the subscriber of this process, and has panics told through it. A second call leaves the first one in place.
pub fn start(settings: &LogSettings, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let installed = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = installed {
        tracing::debug!(%error, "a log subscriber is there already");
    }
    panics::tell();
}
