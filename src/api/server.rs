//! The server: the context's routes with the layers that every request passes, on one listener.
//!
//! From outside in: correlation id, host, panics, time, concurrency, authentication, routes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;

use super::admission::{Admission, Sampler, drain};
use super::auth::{self, Authenticator};
use super::consistency::Checkpoints;
use super::error::ApiError;
use super::handover::Handover;
use super::listen::Listener;
use super::outcomes::Outcomes;
use super::problem::{INTERNAL_ERROR, METHOD_NOT_ALLOWED, NOT_FOUND, OVERLOADED, Problem, REQUEST_TIMEOUT};
use super::rate_limit::RateLimiter;
use super::stands::Stands;
use super::{Api, Kind, browser, command_status, correlation, openapi, request};
use crate::health::{Health, Heartbeat, Told};
use crate::kafka::topics::TopicNames;
use crate::settings::{HttpSettings, Settings};
use crate::store::{Database, DatabaseRole};

/// What a bounded context plugs into the server.
pub struct ContextApi {
    /// Its name.
    pub name: &'static str,
    /// What its JSON calls the id of a stream.
    pub stream_id_field: &'static str,
    /// Its topics.
    pub names: TopicNames,
    /// Its projections.
    pub projections: Vec<&'static str>,
    /// With the number of partitions that the store has for the context.
    pub settings: Arc<Settings>,
    /// Its routes, documented.
    pub routes: OpenApiRouter<Arc<Api>>,
    /// Its refusal codes, for the pages of problem types.
    pub refusals: &'static [Kind],
}

/// All that one server serves.
pub struct Served {
    /// Of the document.
    pub title: &'static str,
    pub contexts: Vec<ContextApi>,
    /// Routes with a document of their own, such as the schema registry's.
    pub others: Router,
}

/// The overflow drainer is started again after this when it gave up.
const DRAINER_RESTART_WAIT: Duration = Duration::from_secs(1);

/// What callers meet first: the bound port, and who may come in. Opened before any loop starts.
pub struct Entrance {
    listener: Listener,
    authenticator: Arc<Authenticator>,
}

impl Entrance {
    /// Binds the port and reads the keys; a mistake in either is an error now.
    pub async fn open(http: &HttpSettings) -> Result<Self, ApiError> {
        let authenticator = Arc::new(Authenticator::new(&http.auth)?);
        Ok(Self { listener: Listener::api(http).await?, authenticator })
    }

    /// The bound port.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }
}

/// Serves the API of all contexts until cancelled; then finishes open requests within the configured time. It is on the list
/// of loops from now on, and not ready before the queue was measured once.
pub fn run(
    served: Served,
    entrance: Entrance,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> impl Future<Output = Result<(), ApiError>> + Send {
    let heartbeats = served.contexts.iter().map(|context| health.register(format!("api {}", context.name)));
    let heartbeats = heartbeats.collect();
    serve(served, entrance, health, heartbeats, shutdown)
}

async fn serve(
    Served { title, contexts, others }: Served,
    Entrance { listener, authenticator }: Entrance,
    health: Arc<Health>,
    heartbeats: Vec<Heartbeat>,
    shutdown: CancellationToken,
) -> Result<(), ApiError> {
    let helpers = CancellationToken::new();
    // Also when this future is dropped: the drainer's thread hears of nothing else.
    let _end_of_helpers = helpers.clone().drop_guard();
    let mut tasks = Vec::new();
    let (mut routes, mut refusals, mut apis) = (OpenApiRouter::new(), Vec::new(), Vec::new());
    let Some(http) = contexts.first().map(|context| context.settings.http.clone()) else { return Ok(()) };
    let shared = Shared {
        contexts: contexts.iter().map(|context| context.name).collect(),
        rates: Arc::new(RateLimiter::new(http.admission.caller_commands_per_second_max, http.admission.callers_max)),
        streams: Arc::new(Semaphore::new(http.event_streams_max)),
    };
    for (context, heartbeat) in contexts.into_iter().zip(heartbeats) {
        let api = Arc::new(api(&context, &shared, shutdown.clone())?);
        tasks.extend(help(context.name, &api, &health, heartbeat, &helpers)?);
        routes = routes.merge(context.routes.with_state(api.clone()));
        refusals.extend(context.refusals);
        apis.push(api);
    }
    routes = routes.merge(command_status::routes(&apis));
    let routes = openapi::with_documents(title, routes, refusals, authenticator.is_configured());
    let router = router(routes, others, &http, authenticator, listener.hosts.clone());
    let served = listener.serve(router, shutdown).await;
    helpers.cancel();
    for task in tasks {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task of the API ended badly");
        }
    }
    served
}

/// What works for a context's routes in the background.
fn help(
    name: &str,
    api: &Arc<Api>,
    health: &Arc<Health>,
    heartbeat: Heartbeat,
    helpers: &CancellationToken,
) -> Result<[JoinHandle<()>; 5], ApiError> {
    // The pollers never wait behind reads for a connection.
    let background = Database::new(&api.settings.database, &DatabaseRole::Reader)?;
    let told = health.partitions("api");
    let sampler = Sampler::new(&api.settings, &api.names, api.admission.clone(), background.clone(), told)?;
    let beat = |what: &str| health.register(format!("api {what} {name}"));
    let outcomes = api.outcomes.clone().run(background.clone(), api.names.events(), beat("outcomes"), helpers.clone());
    let checkpoints = api.checkpoints.clone().run(background.clone(), beat("checkpoints"), helpers.clone());
    let stands = api.stands.clone().run(background, beat("read tables"), helpers.clone());
    Ok([
        tokio::spawn(sampler.run(heartbeat, helpers.clone())),
        tokio::spawn(outcomes),
        tokio::spawn(checkpoints),
        tokio::spawn(stands),
        tokio::spawn(keep_draining(api.clone(), beat("overflow"), helpers.clone())),
    ])
}

/// What all contexts of a server have together: a caller's rate and the open streams are bounded once.
struct Shared {
    contexts: Arc<[&'static str]>,
    rates: Arc<RateLimiter>,
    streams: Arc<Semaphore>,
}

fn api(context: &ContextApi, shared: &Shared, shutdown: CancellationToken) -> Result<Api, ApiError> {
    let (settings, names) = (&context.settings, context.names.clone());
    Ok(Api {
        handover: Handover::new(settings, &names)?,
        database: Database::new(&settings.database, &DatabaseRole::Reader)?,
        admission: Admission::new(settings),
        outcomes: Outcomes::new(settings),
        checkpoints: Checkpoints::new(settings),
        stands: Stands::new(names.events(), context.projections.clone()),
        rates: shared.rates.clone(),
        streams: shared.streams.clone(),
        contexts: shared.contexts.clone(),
        settings: settings.clone(),
        names,
        stream_id_field: context.stream_id_field,
        shutdown,
    })
}

/// The contexts' routes with the documents, whatever else there is, and the layers that every request passes.
fn router(
    (routes, documents): (Router, Router),
    others: Router,
    http: &HttpSettings,
    authenticator: Arc<Authenticator>,
    hosts: Option<Arc<[String]>>,
) -> Router {
    let open = Arc::new(Semaphore::new(http.concurrent_requests_max.min(Semaphore::MAX_PERMITS)));
    let timeout = Duration::from_millis(http.request_timeout_ms);
    let router = routes
        .merge(documents)
        .merge(others)
        .fallback(async || Problem::new(NOT_FOUND, "no route has this path; GET /openapi.json lists them"))
        .method_not_allowed_fallback(async || {
            Problem::new(METHOD_NOT_ALLOWED, "the path takes other methods; see the header Allow")
        })
        .layer(from_fn_with_state(authenticator, auth::layer))
        .layer(DefaultBodyLimit::max(http.body_bytes_max))
        .layer(from_fn_with_state(open, bound_concurrency))
        .layer(from_fn_with_state(timeout, bound_time))
        .layer(CatchPanicLayer::custom(|_panic: Box<dyn std::any::Any + Send>| {
            tracing::error!(correlation_id = correlation::current(), "a request panicked");
            Problem::new(INTERNAL_ERROR, "the request failed; the log tells why").into_response()
        }));
    browser::with_hosts(router, hosts).layer(from_fn(request::layer))
}

async fn bound_concurrency(State(open): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    match open.try_acquire() {
        Ok(_held) => next.run(request).await,
        Err(_) => Problem::new(OVERLOADED, "as many requests are open as may").retry_after(1).into_response(),
    }
}

async fn bound_time(State(timeout): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("no answer within {} ms", timeout.as_millis());
            Problem::new(REQUEST_TIMEOUT, detail).retry_after(1).into_response()
        }
    }
}

/// Runs the drainer for as long as the server runs, again after each failure.
async fn keep_draining(api: Arc<Api>, heartbeat: Heartbeat, shutdown: CancellationToken) {
    let told = Told::new("overflow is not drained");
    while !shutdown.is_cancelled() {
        let started = Instant::now();
        let (api, stop, beat) = (api.clone(), shutdown.clone(), heartbeat.clone());
        let drained =
            tokio::task::spawn_blocking(move || drain(&api.settings, &api.names, api.admission.clone(), beat, stop))
                .await;
        match drained {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                told.ended_after(started.elapsed(), &error.to_string());
                heartbeat.not_ready(error.to_string());
            }
            Err(error) => {
                tracing::error!(%error, "the overflow drainer ended badly");
                heartbeat.not_ready(error.to_string());
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(DRAINER_RESTART_WAIT) => {}
        }
    }
}
