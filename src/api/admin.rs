//! The admin listener: `/livez`, `/readyz`, `/startupz`, `/metrics`. Runs in every process, with or
//! without the API. Asks no dependency anything: the loops tell [`Health`].

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::browser;
use super::error::ApiError;
use super::families;
use super::listen::Listener;
use super::problem::{METHOD_NOT_ALLOWED, NOT_FOUND, Problem};
use crate::health::{Check, Health, PartitionState};

/// Upper bounds of every histogram of seconds.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Histograms are drained this often, so that an unscraped process does not grow.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Admin {
    health: Arc<Health>,
    metrics: PrometheusHandle,
    stopping: CancellationToken,
}

static METRICS: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();

/// Installs the process's one recorder of metrics; later calls give the same handle. Call before the
/// loops start: what is counted earlier is lost.
///
/// # Errors
/// Another recorder is installed.
pub fn install_metrics() -> Result<PrometheusHandle, ApiError> {
    let install = || {
        PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
            .and_then(PrometheusBuilder::install_recorder)
            .inspect(|_| families::describe())
            .map_err(|error| error.to_string())
    };
    METRICS.get_or_init(install).clone().map_err(ApiError::Metrics)
}

/// Serves until `shutdown`. `/readyz` says no from `stopping` on, which comes earlier: whoever sends
/// requests here has time to look elsewhere before one is refused.
pub async fn run(
    listener: Listener,
    health: Arc<Health>,
    metrics: PrometheusHandle,
    stopping: CancellationToken,
    shutdown: CancellationToken,
) -> Result<(), ApiError> {
    let upkeep = metrics.clone();
    let upkeep_stop = shutdown.clone();
    let upkeep = tokio::spawn(async move {
        while tokio::time::timeout(UPKEEP_EVERY, upkeep_stop.cancelled()).await.is_err() {
            upkeep.run_upkeep();
        }
    });
    let admin = Admin { health, metrics, stopping };
    let router = browser::with_hosts(router(admin), listener.hosts.clone());
    let served = listener.serve(router, shutdown).await;
    upkeep.abort();
    served
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .route("/metrics", get(metrics_text))
        .fallback(async || Problem::new(NOT_FOUND, "the admin port serves /livez, /readyz, /startupz and /metrics"))
        .method_not_allowed_fallback(async || Problem::new(METHOD_NOT_ALLOWED, "only GET").allow("GET,HEAD"))
        .with_state(admin)
}

async fn livez(State(admin): State<Admin>, query: RawQuery) -> Response {
    answer(&admin.health.liveness(), &query)
}

/// Verbose tells the partitions, too. One that stands is degraded and no more: the others of its loop go on.
async fn readyz(State(admin): State<Admin>, query: RawQuery) -> Response {
    let mut checks = begun(admin.health.readiness());
    let stopping = admin.stopping.is_cancelled();
    checks.push(Check { name: "shutdown".into(), ok: !stopping, reason: stopping.then(|| "shutting down".into()) });
    let ok = checks.iter().all(|check| check.ok);
    if !is_verbose(&query) {
        return answer(&checks, &query);
    }
    let partitions = admin.health.partition_reports();
    let degraded = partitions.iter().any(|report| report.state == PartitionState::Standing);
    (status(ok), Json(json!({ "ok": ok, "degraded": degraded, "checks": checks, "partitions": partitions })))
        .into_response()
}

/// Started = every loop has told what it can do at least once, ready or not. Stays so.
async fn startupz(State(admin): State<Admin>, query: RawQuery) -> Response {
    answer(&begun(admin.health.startup()), &query)
}

/// No loop at all is a process that has not begun.
fn begun(mut checks: Vec<Check>) -> Vec<Check> {
    if checks.is_empty() {
        checks.push(Check { name: "start".into(), ok: false, reason: Some("nothing has started yet".into()) });
    }
    checks
}

async fn metrics_text(State(admin): State<Admin>) -> Response {
    admin.health.publish();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render()).into_response()
}

fn answer(checks: &[Check], query: &RawQuery) -> Response {
    let ok = checks.iter().all(|check| check.ok);
    if is_verbose(query) {
        return (status(ok), Json(json!({ "ok": ok, "checks": checks }))).into_response();
    }
    (status(ok), if ok { "ok\n" } else { "not ok\n" }).into_response()
}

fn status(ok: bool) -> StatusCode {
    if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn is_verbose(RawQuery(query): &RawQuery) -> bool {
    query.as_deref().is_some_and(|query| query.split('&').any(|name| name.starts_with("verbose")))
}
