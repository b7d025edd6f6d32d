//! A store with its orders, and programs that run the process manager of these tests: this test program, started anew.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use throughline::App;
use throughline::app::lifecycle::Lifecycle;
use throughline::app::{install, roles};
use throughline::kafka::{Peek, TopicPartition, client};
use throughline::settings::LoadedSettings;
use tokio::process::{Child, Command};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::{courier, shop};

/// Set where this program is to be the process manager, and not a test.
const ROLE: &str = "COURIER_ROLE";
/// Set where that is to be the process manager between orders and payments.
pub const SHOP: &str = "COURIER_SHOP";

/// Not a test but the program that the tests start: it runs the roles that it is told, until it is ended.
#[tokio::test(flavor = "multi_thread")]
async fn the_program() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let app = if std::env::var_os(SHOP).is_some() { shop::app() } else { courier::app() };
    let settings = LoadedSettings::load_for(None, &[], &app.sections()).expect("settings").settings;
    let mut lifecycle = Lifecycle::with_signals().expect("signals");
    let ready = lifecycle.unless_signalled(install::ready(&app, &settings)).await;
    let Some(ready) = ready else { return };
    ready.expect("it can start");
    let roles = roles::parse(&app, &role.split(' ').map(str::to_owned).collect::<Vec<_>>()).expect("roles");
    roles::start(&app, &roles, &settings, &lifecycle).await.expect("it starts");
    lifecycle.run().await.expect("it runs");
}

/// A store of its own, with what makes orders move.
pub struct Bed {
    pub harness: Harness,
    pub store: Client,
    producer: FutureProducer,
    _orders: Option<Child>,
}

impl Bed {
    pub async fn new(name: &str) -> Self {
        let mut bed = Self::of(&courier::app(), name).await;
        bed._orders = Some(program(&bed.harness, "processor relay", &[]).spawn().expect("the program starts"));
        bed
    }

    /// A store with this application, which nobody runs.
    pub async fn of(app: &App, name: &str) -> Self {
        let mut harness = Harness::bare(name).await;
        harness.settings.topics.event_partitions = 3;
        harness.settings.topics.command_partitions = 3;
        install::ready(app, &harness.settings).await.expect("it is installed");
        let producer = client::producer(&harness.settings.kafka, 2).create().expect("a producer");
        Self { store: harness.client().await, harness, producer, _orders: None }
    }

    /// A program with the process manager.
    pub fn courier(&self, environment: &[(&str, &str)]) -> Child {
        program(&self.harness, "process:courier", environment).spawn().expect("the program starts")
    }

    /// Places orders of one customer each.
    pub async fn place(&self, customers: &[&str]) -> Vec<Uuid> {
        let mut orders = Vec::new();
        for customer in customers {
            let order = Uuid::new_v4();
            let items = json!([{"productId": Uuid::from_u128(7), "quantity": 2, "unitPrice": "19.99"}]);
            let value = json!({"type": "PlaceOrder", "customerId": customer, "currency": "USD", "items": items});
            self.send(order, value).await;
            orders.push(order);
        }
        orders
    }

    /// Sends a command of an order.
    pub async fn send(&self, order: Uuid, mut value: Value) {
        value["orderId"] = order.to_string().into();
        value["commandId"] = Uuid::new_v4().to_string().into();
        let (topic, key, value) = (self.harness.names().commands(), order.to_string(), value.to_string());
        let record = FutureRecord::to(&topic).key(&key).payload(&value);
        self.producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error).expect("sent");
    }

    pub async fn number(&self, query: &str) -> i64 {
        self.store.query_one(query, &[]).await.expect("a number").get(0)
    }

    pub async fn until(&self, what: &str, query: &str, expected: i64) {
        eventually(&format!("{what}: {expected} of `{query}`"), || async {
            (self.number(query).await == expected).then_some(())
        })
        .await;
    }

    /// The events of each kind that happened to these orders.
    pub async fn events(&self, kind: &str, orders: &[Uuid]) -> i64 {
        let query = "select count(*) from throughline.events where type = $1 and stream_id = any($2)";
        self.store.query_one(query, &[&kind, &orders]).await.expect("a number").get(0)
    }

    pub async fn until_events(&self, kind: &str, orders: &[Uuid]) {
        eventually(&format!("{kind} of {} orders", orders.len()), || async {
            (self.events(kind, orders).await >= orders.len() as i64).then_some(())
        })
        .await;
    }

    /// Records on the commands topic.
    pub fn commands_on_topic(&self) -> i64 {
        let peek = Peek::new(&self.harness.settings.kafka).expect("a client");
        let topic = self.harness.names().commands();
        let end = |partition| {
            let source = TopicPartition { topic: topic.as_str().into(), partition };
            peek.watermarks(&source).expect("an answer").1
        };
        (0..self.harness.settings.topics.command_partitions).map(end).sum()
    }

    /// Each command counts once and is sent; nothing was refused, given up or left behind.
    pub async fn is_settled(&self) {
        self.until("all is sent", "select count(*) from throughline.process_commands where sent_at is null", 0).await;
        let undecided = "select count(*) from throughline.process_commands p
                         where not exists (select from throughline.commands c where c.command_id = p.command_id)";
        self.until("all is decided", undecided, 0).await;
        for (what, query) in [
            ("nothing is refused", "select count(*) from throughline.commands where not accepted"),
            ("nothing is parked", "select count(*) from throughline.dead_letters where status = 'parked'"),
            (
                "no order is paid, shipped or cancelled twice",
                "select count(*) from (select from throughline.events group by stream_id, type having count(*) > 1) twice",
            ),
            (
                "no command is decided twice",
                "select count(*) from throughline.process_commands p
                 where (select count(*) from throughline.commands c where c.command_id = p.command_id) > 1",
            ),
            (
                "each command was sent for a cause of its own",
                "select count(*) from (select from throughline.process_commands
                                       group by instance, command having count(*) > 1) twice",
            ),
        ] {
            assert_eq!(self.number(query).await, 0, "{what}");
        }
    }
}

/// This program anew, with these roles.
pub fn program(harness: &Harness, roles: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "bed::the_program", "--nocapture"])
        .envs(harness.environment())
        .env(ROLE, roles)
        .env("RUST_LOG", "throughline=warn")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Signals a program that runs.
pub fn signal(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id().expect("it runs")).expect("a process id");
    kill(Pid::from_raw(id), signal).expect("signalled");
}
