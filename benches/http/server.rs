//! The servers that are measured: the API as it is, and the same one that answers without Kafka.
//!
//! The reference is the product's own server (listener, layers, authentication, extractors) with
//! another context's routes plugged in, as any context plugs in: its one route parses and builds the
//! command as the real one does, and then answers instead of handing it over.

use std::hint::black_box;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use reference::orders::{
    self, CommandKind, OrdersCodec, OrdersContext, RequestContext, command_to_json, parse_request,
};
use serde::Serialize;
use throughline::api::problem::INVALID_COMMAND;
use throughline::api::{self, Api, ContextApi, JsonBody, OpenApiRouter, Problem, RequestEnvelope, Served, correlation};
use throughline::health::Health;
use throughline::processor;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Harness, eventually};

/// A server under load.
pub struct Server {
    pub base: String,
    pub harness: Harness,
    health: Arc<Health>,
}

/// The body of a 202.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Accepted {
    order_id: Uuid,
    command_id: Uuid,
    correlation_id: String,
}

async fn answer_at_once(
    State(_): State<Arc<Api>>,
    envelope: RequestEnvelope,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let context = RequestContext {
        kind: CommandKind::PlaceOrder,
        order_id: envelope.new_stream_id(),
        order_id_is_fixed: false,
        command_id: Uuid::now_v7(),
    };
    let mut command = parse_request(&body, context).map_err(|invalid| Problem::new(INVALID_COMMAND, invalid.reason))?;
    envelope.complete(&mut command.meta, false)?;
    black_box(command_to_json(&command));
    let (order_id, command_id) = (command.meta.stream_id, command.meta.command_id);
    let body = Accepted { order_id, command_id, correlation_id: correlation::current() };
    Ok((StatusCode::ACCEPTED, [(LOCATION, format!("/api/commands/{command_id}"))], Json(body)).into_response())
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address")
}

impl Server {
    /// The reference.
    pub async fn without_kafka() -> Self {
        Self::start("bench_none", OpenApiRouter::new().route("/api/orders", post(answer_at_once))).await
    }

    /// The API by itself: what it accepts piles up in Kafka.
    pub async fn alone() -> Self {
        Self::start("bench_alone", orders::routes::routes()).await
    }

    /// The API, and a processor in this process.
    pub async fn with_processor() -> Self {
        let server = Self::start("bench_decided", orders::routes::routes()).await;
        let settings = Arc::new(server.harness.settings.clone());
        let codec = OrdersCodec::installed(&settings).await.expect("codec");
        let wake = Arc::new(Notify::new());
        let health = server.health.clone();
        tokio::spawn(processor::run::<OrdersContext>(settings, codec, wake, health, CancellationToken::new()));
        server
    }

    async fn start(name: &str, routes: OpenApiRouter<Arc<Api>>) -> Self {
        let mut harness = Harness::bare(name).await;
        harness.settings.http.listen = free_address();
        harness.settings.http.admission.queue_commands_max = u64::MAX / 2;
        harness.settings.http.sync_wait_ms = 25_000;
        harness.install().await;
        let health = Health::new(Duration::MAX);
        let settings = Arc::new(harness.settings.clone());
        let (names, refusals) = (harness.names(), orders::routes::REFUSALS);
        let context = ContextApi {
            name: "orders",
            stream_id_field: "orderId",
            names,
            projections: Vec::new(),
            settings: settings.clone(),
            routes,
            refusals,
        };
        let served = Served { title: "bench", contexts: vec![context], others: Router::new() };
        let entrance = api::Entrance::open(&settings.http).await.expect("the port is free");
        tokio::spawn(api::run(served, entrance, health.clone(), CancellationToken::new()));
        let server = Self { base: format!("http://{}", harness.settings.http.listen), harness, health };
        eventually("the server is ready", || async {
            let ready = server.health.readiness();
            (!ready.is_empty() && ready.iter().all(|check| check.ok)).then_some(())
        })
        .await;
        server
    }

    /// Waits until `count` commands were decided.
    pub async fn decided(&self, count: usize) {
        let client = self.harness.client().await;
        let statement = "select coalesce(sum(next_offset), 0)::bigint from throughline.offsets";
        eventually("everything accepted is decided", || async {
            let decided: i64 = client.query_one(statement, &[]).await.expect("offsets").get(0);
            (usize::try_from(decided).ok() == Some(count)).then_some(())
        })
        .await;
    }
}
