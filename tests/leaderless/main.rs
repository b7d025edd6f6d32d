//! Two brokers, one of them away: what the living one leads goes on, the rest stands by name and heals.
//!
//! Services of this program's own; its tests have them one after the other.

mod api;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../outbox/mod.rs"]
mod outbox;
mod relay;
#[path = "../http/server.rs"]
mod server;

use std::path::Path;
use std::time::Duration;

use harness::Harness;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use throughline::app::dev::Services;
use throughline::app::install;
use throughline::kafka::client;
use throughline::settings::{DevRunner, DevSettings};
use tokio::sync::{Mutex, MutexGuard};

/// Partitions of every topic; even ones live on the first broker, odd ones on the second.
pub const PARTITIONS: i32 = 6;

static CLUSTER: Mutex<Option<Services>> = Mutex::const_new(None);

/// Both brokers, up, for one test alone.
pub struct Cluster(MutexGuard<'static, Option<Services>>);

impl Cluster {
    pub async fn up() -> Self {
        let mut held = CLUSTER.lock().await;
        if held.is_none() {
            let settings = DevSettings {
                directory: Path::new(env!("CARGO_TARGET_TMPDIR")).join("leaderless"),
                runner: DevRunner::Local,
                kafka_brokers: 2,
                kafka_heap_mib: 256,
                ..DevSettings::default()
            };
            throughline::app::dev::reset(&settings).await.expect("an empty directory");
            *held = Some(Services::start_or_find(&settings).await.expect("two brokers"));
        }
        let cluster = Self(held);
        cluster.start_second().await;
        cluster
    }

    fn services(&self) -> &Services {
        self.0.as_ref().expect("started")
    }

    pub async fn kill_second(&self) {
        self.services().kill_broker(2).await.expect("the second broker is killed");
    }

    pub async fn start_second(&self) {
        self.services().start_broker(2).await.expect("the second broker answers");
    }

    /// A database of its own, and topics with a partition in turn on each broker.
    pub async fn harness(&self, name: &str) -> Harness {
        let services = self.services();
        let mut harness = Harness::on(name, services.kafka_brokers.clone(), services.database_url.clone()).await;
        harness.settings.topics.event_partitions = PARTITIONS;
        harness.settings.topics.command_partitions = PARTITIONS;
        install::apply_database(&crate::harness::orders(), &harness.settings).await.expect("apply the database");
        let placed: Vec<[i32; 1]> = (0..PARTITIONS).map(|partition| [partition % 2 + 1]).collect();
        let placed: Vec<&[i32]> = placed.iter().map(<[i32; 1]>::as_slice).collect();
        let specs = install::topic_specs(&reference::orders::context(), &harness.settings);
        let topics: Vec<NewTopic<'_>> = specs
            .iter()
            .map(|spec| {
                let topic = NewTopic::new(&spec.name, PARTITIONS, TopicReplication::Variable(&placed));
                spec.config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
            })
            .collect();
        let admin: AdminClient<DefaultClientContext> =
            client::base(&harness.settings.kafka).create().expect("an admin client");
        let wait = Some(Duration::from_secs(30));
        let options = AdminOptions::new().request_timeout(wait).operation_timeout(wait);
        let made = admin.create_topics(&topics, &options).await.expect("an answer");
        made.into_iter().for_each(|topic| drop(topic.expect("a topic")));
        harness
    }
}

/// Whether the living broker leads it.
pub fn lives(partition: i32) -> bool {
    partition % 2 == 0
}
