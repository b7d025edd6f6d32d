//! Clients: some over Kafka, some over HTTP, each with orders of its own and one call at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::history::{Answer, Call, History};
use crate::neighbours::Neighbours;

const CLIENTS: usize = 32;
const ORDERS_EACH: usize = 70;
/// A call that takes longer is given up, and nobody knows.
const PATIENCE: Duration = Duration::from_secs(8);

pub struct Load {
    history: Arc<History>,
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
}

impl Load {
    pub fn start(neighbours: &Neighbours, api: String, random: &mut StdRng, commands: usize, span: Duration) -> Self {
        let (history, stop) = (Arc::new(History::new()), Arc::new(AtomicBool::new(false)));
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &neighbours.harness.settings.kafka.brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", "60000")
            .create()
            .expect("a producer");
        let mut clients = JoinSet::new();
        let every = span.mul_f64(CLIENTS as f64 / commands as f64);
        for _ in 0..CLIENTS {
            let mut client = Client {
                random: StdRng::seed_from_u64(random.random()),
                orders: (0..ORDERS_EACH).map(|_| Uuid::from_u128(random.random())).collect(),
                sent: Vec::new(),
                history: history.clone(),
                producer: producer.clone(),
                topic: neighbours.harness.names().commands(),
                http: reqwest::Client::builder().timeout(PATIENCE).build().expect("a client"),
                api: api.clone(),
            };
            let stop = stop.clone();
            clients.spawn(async move {
                let mut due = Instant::now();
                while !stop.load(Ordering::Acquire) {
                    due += every;
                    client.call().await;
                    tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
                }
            });
        }
        Self { history, clients, stop }
    }

    /// No more calls; what is on its way is waited for.
    pub async fn end(mut self) -> Arc<History> {
        self.stop.store(true, Ordering::Release);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client ends well");
        }
        self.history
    }
}

struct Client {
    random: StdRng,
    orders: Vec<Uuid>,
    sent: Vec<Value>,
    history: Arc<History>,
    producer: FutureProducer,
    topic: String,
    http: reqwest::Client,
    api: String,
}

impl Client {
    async fn call(&mut self) {
        let command = match self.sent.choose(&mut self.random) {
            // The same again, as whoever got no answer does.
            Some(before) if self.random.random_ratio(1, 10) => before.clone(),
            _ => self.command(),
        };
        let (way, answer) = {
            let way = ["kafka", "kafka", "kafka", "http", "sync"][self.random.random_range(0..5)];
            self.history.asks(way, &command);
            let answer = if way == "kafka" { self.by_kafka(&command).await } else { self.by_http(way, &command).await };
            (way, answer)
        };
        let id = |name: &str| command[name].as_str().and_then(|text| text.parse().ok()).expect("an id");
        self.history.answered(Call { order: id("orderId"), command: id("commandId"), way, answer });
        self.sent.push(command);
        if self.sent.len() > 200 {
            self.sent.remove(0);
        }
    }

    fn command(&mut self) -> Value {
        let order = *self.orders.choose(&mut self.random).expect("orders");
        // An id counts in its order: now and then it is that of another order's command.
        let id = match self.sent.choose(&mut self.random) {
            Some(other) if self.random.random_ratio(1, 50) && other["orderId"] != order.to_string() => {
                other["commandId"].as_str().and_then(|text| text.parse().ok()).expect("an id")
            }
            _ => Uuid::from_u128(self.random.random()),
        };
        let amount = ["19.99", "20.00", "39.98", "0.01", "50.00"][self.random.random_range(0..5)];
        match self.random.random_range(0..100_u8) {
            0..20 => {
                let mut placed = json!({"type": "PlaceOrder", "commandId": id, "orderId": order,
                    "customerId": format!("customer-{}", self.random.random_range(0..50)), "currency": "USD",
                    "items": [{"productId": Uuid::from_u128(self.random.random_range(1..9)), "quantity": 2,
                               "unitPrice": "19.99"}]});
                if self.random.random_ratio(1, 5) {
                    let token = ["tok_approve", "tok_decline", "tok_silent"][self.random.random_range(0..3)];
                    placed["payment"] = json!({"token": token});
                }
                placed
            }
            20..70 => json!({"type": "RecordPayment", "commandId": id, "orderId": order, "currency": "USD",
                             "paymentId": Uuid::from_u128(self.random.random()), "amount": amount}),
            70..95 => json!({"type": "ShipOrder", "commandId": id, "orderId": order, "carrier": "DHL",
                             "trackingNumber": "JD1"}),
            _ => json!({"type": "CancelOrder", "commandId": id, "orderId": order, "reason": "chaos"}),
        }
    }

    async fn by_kafka(&self, command: &Value) -> Answer {
        let (key, value) = (command["orderId"].as_str().expect("an id"), command.to_string());
        let record = FutureRecord::to(&self.topic).key(key).payload(&value);
        match self.producer.send(record, PATIENCE).await {
            Ok(_) => Answer::Acknowledged,
            Err(_) => Answer::Unknown,
        }
    }

    async fn by_http(&self, way: &str, command: &Value) -> Answer {
        let order = command["orderId"].as_str().expect("an id");
        let path = match command["type"].as_str().expect("a type") {
            "PlaceOrder" => "/api/orders".to_owned(),
            "RecordPayment" => format!("/api/orders/{order}/payments"),
            "ShipOrder" => format!("/api/orders/{order}/shipments"),
            _ => format!("/api/orders/{order}/cancellation"),
        };
        let mut body = command.clone();
        body.as_object_mut().expect("an object").remove("type");
        let url = format!("{}{path}{}", self.api, if way == "sync" { "/sync" } else { "" });
        let Ok(answer) = self.http.post(url).json(&body).send().await else { return Answer::Unknown };
        let status = answer.status().as_u16();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (token, version) = (header("consistency-token"), header("etag"));
        let Ok(body) = answer.json::<Value>().await else { return Answer::Unknown };
        let code = body["code"].as_str().unwrap_or_default().to_owned();
        match status {
            201 => {
                let version = version.and_then(|tag| tag.trim_matches('"').parse().ok());
                if let (Some(token), Some(version)) = (token, version) {
                    self.sees(order, &token, version).await;
                }
                Answer::Accepted { version }
            }
            202 => Answer::Acknowledged,
            409 | 412 | 422 => Answer::Refused(code),
            // It may or may not have been taken.
            500.. if ["KAFKA_UNAVAILABLE", "REQUEST_TIMEOUT", "INTERNAL_ERROR"].contains(&code.as_str()) => {
                Answer::Unknown
            }
            _ => Answer::NotTaken(status),
        }
    }

    /// A read with the token of a write sees it, or says why not (I11).
    async fn sees(&self, order: &str, token: &str, version: i64) {
        let url = format!("{}/api/orders/{order}", self.api);
        let Ok(answer) = self.http.get(url).header("Consistency-Token", token).send().await else { return };
        let status = answer.status().as_u16();
        // A table that is behind says so.
        let is_met = answer.headers().get("consistency").is_none_or(|met| met != "not-met");
        let Ok(body) = answer.json::<Value>().await else { return };
        let is_shown = status == 200 && body["version"].as_i64().is_some_and(|shown| shown >= version);
        if !is_shown && (is_met || status == 404) && status != 503 {
            let told = format!("I11: order {order}, version {version}: a read with its token answered {status} {body}");
            self.history.unseen.lock().unwrap().push(told);
        }
    }
}
