//! HTTP: commands in, queries out. The server, what every route shares, and the way of a command.
//!
//! Knows no bounded context: a context's routes plug in from `app` as an [`OpenApiRouter`] over
//! [`Api`], and call [`Api::answer`] to hand a command over and [`Api::begin_read`] to read.
//! Kafka's acknowledgement is the authority on accepted, PostgreSQL on decided and on what is read.

pub mod admin;
pub mod admission;
mod answers;
pub mod auth;
mod browser;
mod command_status;
mod connections;
mod consistency;
pub mod correlation;
pub mod cursor;
mod descriptors;
mod envelope;
mod error;
mod extract;
mod families;
mod handover;
mod history;
mod history_events;
mod listen;
mod openapi;
mod outcomes;
pub mod problem;
mod rate_limit;
mod read;
mod request;
mod server;
mod stands;
mod submission;

use std::sync::Arc;
use std::time::Duration;

pub use admin::install_metrics;
pub use admission::{Admission, Depths};
pub use answers::{put, status_shape};
pub use auth::{AuthError, Authenticator, Caller, Scope};
pub use envelope::{CommandHeaders, CommandQuery, RequestEnvelope};
pub use error::ApiError;
pub use extract::{Id, JsonBody, PathOf, QueryOf};
pub use history::{HistoryEvent, HistoryOf, HistoryQuery, as_fields, is_of_our_era};
pub use history_events::{ChangeEvent, FollowHeaders};
pub use listen::Listener;
pub use problem::{Kind, Problem, ProblemBody};
pub use read::{AS_OF, AS_OF_POSITIONS, AsOf, CONSISTENCY, CONSISTENCY_TOKEN, Read, ReadHeaders};
pub use server::{ContextApi, Entrance, Served, run};
pub use submission::{Submission, Submitted};
pub use utoipa_axum::router::OpenApiRouter;

use crate::kafka::topics::TopicNames;
use crate::settings::Settings;
use crate::store::Database;

/// What a context's routes work with: the state of the router.
pub struct Api {
    /// All settings.
    pub settings: Arc<Settings>,
    /// The context's topics.
    pub names: TopicNames,
    /// What the context's JSON calls the id of a stream.
    pub stream_id_field: &'static str,
    /// The names of all contexts that the server has.
    contexts: Arc<[&'static str]>,
    /// Read tables, outcomes and checkpoints, in the reader's role.
    pub database: Database,
    pub(crate) admission: Arc<Admission>,
    handover: handover::Handover,
    outcomes: Arc<outcomes::Outcomes>,
    checkpoints: Arc<consistency::Checkpoints>,
    stands: Arc<stands::Stands>,
    rates: Arc<rate_limit::RateLimiter>,
    streams: Arc<tokio::sync::Semaphore>,
    shutdown: tokio_util::sync::CancellationToken,
}

/// Kept back of a request's time for its answer, when it waits for an outcome.
const ANSWER_TIME: Duration = Duration::from_millis(500);

impl Api {
    /// Wait of a synchronous call that names none.
    pub fn sync_wait(&self) -> Duration {
        Duration::from_millis(self.settings.http.sync_wait_ms).min(self.wait_max())
    }

    /// The longest wait that still lets the request be answered in time.
    pub fn wait_max(&self) -> Duration {
        Duration::from_millis(self.settings.http.request_timeout_ms).saturating_sub(ANSWER_TIME)
    }

    fn consistency_wait(&self) -> Duration {
        Duration::from_millis(self.settings.http.consistency_wait_ms).min(self.wait_max())
    }

    /// A place among the open event streams; held for as long as the stream is.
    pub fn open_stream(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Problem> {
        let full = |_| Problem::new(problem::OVERLOADED, "as many event streams are open as may").retry_after(5);
        self.streams.clone().try_acquire_owned().map_err(full)
    }

    /// Cancelled when the server shuts down: long answers end then.
    pub fn shutdown(&self) -> &tokio_util::sync::CancellationToken {
        &self.shutdown
    }
}
