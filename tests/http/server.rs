//! A server of one test: the roles asked for, embedded, on a port of their own.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use throughline::App;
use throughline::app::lifecycle::Lifecycle;
use throughline::app::roles;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Harness, eventually, orders};

/// Roles in this process, stopped when dropped.
pub struct Server {
    pub base: String,
    pub admin: String,
    pub client: Client,
    shutdown: CancellationToken,
    task: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

/// An address that nobody listens on.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address")
}

impl Server {
    /// Starts `names` (as `throughline run` takes them) of orders and waits until the admin port says ready.
    pub async fn start(harness: &Harness, names: &[&str]) -> Self {
        Self::of(&orders(), harness, names).await
    }

    /// As [`Server::start`], of any application.
    pub async fn of(app: &App, harness: &Harness, names: &[&str]) -> Self {
        let mut settings = harness.settings.clone();
        settings.http.listen = free_address();
        settings.http.admin_listen = free_address();
        // Groups take their time to gather on a busy machine; tests of waits set their own.
        settings.http.sync_wait_ms = settings.http.sync_wait_ms.max(25_000);
        let scheme = if settings.http.tls_key_file.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", settings.http.listen);
        let admin = format!("http://{}", settings.http.admin_listen);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let roles: BTreeSet<_> = roles::parse(app, &names).expect("roles");
        let lifecycle = Lifecycle::embedded();
        let shutdown = lifecycle.shutdown();
        roles::start(app, &roles, &settings, &lifecycle).await.expect("the roles start");
        let task = tokio::spawn(lifecycle.run());
        // Another test of this program may have installed it already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder()
            .tls_danger_accept_invalid_certs(true)
            .timeout(Duration::from_secs(40))
            .build()
            .expect("a client");
        let server = Self { base, admin, client, shutdown, task: Some(task) };
        eventually("the server is ready", || async {
            let answer = server.client.get(format!("{}/readyz", server.admin)).send().await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
        server
    }

    /// The whole pipeline.
    pub async fn whole(harness: &Harness) -> Self {
        Self::start(harness, &[]).await
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    /// Posts and reads the answer.
    pub async fn send(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.post(path, body).send().await.expect("an answer")).await
    }

    /// Gets and reads the answer.
    pub async fn read(&self, path: &str) -> Answer {
        Answer::of(self.get(path).send().await.expect("an answer")).await
    }

    /// Stops the roles and waits for their end.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.await.expect("the roles end").expect("the roles end well");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a body");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, headers, body }
    }

    /// A header's text, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A member of the body, as text.
    pub fn text(&self, name: &str) -> &str {
        self.body[name].as_str().unwrap_or_default()
    }

    /// Asserts a problem of this status and code, well formed.
    #[track_caller]
    pub fn is_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.text("code")), (status, code), "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.text("type"), format!("/problems/{code}"));
        assert_eq!(self.body["status"], status);
        assert_eq!(self.text("correlationId"), self.header("x-correlation-id"));
        assert!(!self.text("title").is_empty() && !self.text("detail").is_empty());
    }
}

/// The body that places an order of 39.98 USD.
pub fn an_order() -> Value {
    json!({"customerId": "customer-42", "currency": "USD",
           "items": [{"productId": Uuid::from_u128(7), "quantity": 2, "unitPrice": "19.99"}]})
}

/// The body that pays `amount` USD.
pub fn a_payment(amount: &str) -> Value {
    json!({"paymentId": Uuid::new_v4(), "amount": amount, "currency": "USD"})
}
