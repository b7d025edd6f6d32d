//! Kafka and PostgreSQL away, frozen or stuck: readiness, liveness, status and the log say so, each in its way.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use throughline::app::dev::{Layout, Services};
use throughline::settings::{DevRunner, DevSettings};

use crate::harness::{Harness, eventually};
use crate::process::{Process, command};
use crate::status::{TOLD_WITHIN, status, until_ok, until_told};

/// Silence that counts as a hang here; what is waited for takes longer.
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Log lines of a process for an outage of one service, at most: one a change and loop, and no storm.
const LINES_MAX: usize = 40;

/// Services that this test may hurt.
struct Own {
    /// Goes first: it drops its database.
    harness: Harness,
    services: Services,
    settings: DevSettings,
}

impl Own {
    async fn start(name: &str) -> Self {
        let settings = DevSettings {
            directory: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name),
            runner: DevRunner::Local,
            kafka_heap_mib: 256,
            ..DevSettings::default()
        };
        throughline::app::dev::reset(&settings).await.expect("an empty directory");
        let services = Services::start_or_find(&settings).await.expect("services start");
        let harness = Harness::on(name, services.kafka_brokers.clone(), services.database_url.clone()).await;
        harness.install().await;
        Self { services, harness, settings }
    }

    /// Sends a signal to the process of a service.
    fn signal(&self, service: &str, signal: Signal) {
        let state = Layout::of(&self.settings).expect("a layout").read_state().expect("a state");
        let process = if service == "kafka" { state.kafka } else { state.postgres };
        kill(Pid::from_raw(process.expect("a process").pid), signal).expect("signal the service");
    }

    fn run(&self) -> Process {
        let mut run = command(&self.harness, &["run"]);
        run.env("THROUGHLINE__HTTP__HEARTBEAT_SILENCE_MAX_MS", SILENCE_MAX.as_millis().to_string());
        Process::start(run)
    }
}

/// The probe's status and body.
async fn probe(admin: &str, name: &str) -> (u16, Value) {
    let answer = reqwest::get(format!("{admin}/{name}?verbose")).await.expect("an answer");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

/// Waits until it is not ready, for one of these reasons.
async fn until_unready(admin: &str, since: Instant, names: &[&str]) {
    loop {
        let (code, said) = probe(admin, "readyz").await;
        let failing: Vec<&str> = said["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["ok"] == false)
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        if code == 503 && failing.iter().any(|one| names.iter().any(|name| one.starts_with(name))) {
            return;
        }
        assert!(since.elapsed() < TOLD_WITHIN, "{code} {failing:?} instead of one of {names:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_ready(admin: &str) {
    eventually("ready", || async { (probe(admin, "readyz").await.0 == 200).then_some(()) }).await;
}

/// Alive all the while.
async fn lives_for(admin: &str, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let (code, said) = probe(admin, "livez").await;
        assert_eq!(code, 200, "a restart would cure nothing: {said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn post(url: &str) -> Value {
    let body = json!({"customerId": "customer-42", "currency": "USD",
        "items": [{"productId": uuid::Uuid::from_u128(7), "quantity": 1, "unitPrice": "1.00"}]});
    let answer = reqwest::Client::new().post(format!("{url}/api/orders")).json(&body).send().await.expect("an answer");
    assert_eq!(answer.status(), 202);
    answer.json().await.expect("JSON")
}

async fn until_decided(url: &str, accepted: &Value) {
    let path = format!("{url}/api/commands/{}", accepted["commandId"].as_str().unwrap());
    eventually("it is decided", || async {
        let answer: Value = reqwest::get(&path).await.ok()?.json().await.ok()?;
        (answer["status"] == "accepted").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_frozen_and_killed() {
    let own = Own::start("outage_kafka").await;
    let all = own.run();
    let (url, admin) = (all.http_url().await, all.admin_url().await);
    until_ready(&admin).await;
    until_ok(&own.harness).await;

    let frozen = Instant::now();
    own.signal("kafka", Signal::SIGSTOP);
    tokio::join!(until_unready(&admin, frozen, &["kafka"]), until_told(&own.harness, frozen, "Kafka"));
    let (_, said) = status(&own.harness).await;
    assert!(said["away"][0].as_str().is_some_and(|away| away.contains(&own.services.kafka_brokers)), "{said}");
    assert_eq!(said["processes"].as_array().unwrap().len(), 1, "the rest is told all the same: {said}");
    assert_eq!(said["waiting"][1]["commands"], Value::Null, "and what is not known, as such");
    lives_for(&admin, SILENCE_MAX + Duration::from_secs(2)).await;
    own.signal("kafka", Signal::SIGCONT);
    until_ready(&admin).await;
    until_ok(&own.harness).await;

    let before = all.count("");
    let killed = Instant::now();
    own.services.kill_kafka().await.expect("the broker dies");
    tokio::join!(until_unready(&admin, killed, &["kafka"]), until_told(&own.harness, killed, "Kafka"));
    lives_for(&admin, Duration::from_secs(10)).await;
    let lines = all.count("") - before;
    assert!(lines <= LINES_MAX, "{lines} lines in {:?}:\n{}", killed.elapsed(), all.log());
    own.services.start_kafka().await.expect("the broker is back");
    until_ready(&admin).await;
    until_ok(&own.harness).await;
    let accepted = post(&url).await;
    until_decided(&url, &accepted).await;
    assert!(!all.log().contains("db error"), "{}", all.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_away_and_a_server_that_does_not_answer() {
    let own = Own::start("outage_postgres").await;
    let all = own.run();
    let (url, admin) = (all.http_url().await, all.admin_url().await);
    until_ready(&admin).await;
    until_ok(&own.harness).await;
    let client = own.harness.client().await;
    let set = async |setting: &str| {
        for statement in ["set synchronous_commit = off", setting, "select pg_reload_conf()"] {
            client.batch_execute(statement).await.expect("the server is configured");
        }
    };

    // Commits wait for a standby that never comes, without bound.
    set("alter system set synchronous_standby_names = 'nobody'").await;
    let stuck = Instant::now();
    let accepted = post(&url).await;
    until_unready(&admin, stuck + Duration::from_secs(5), &["processor worker", "relay", "projection"]).await;
    lives_for(&admin, SILENCE_MAX * 2).await;
    let (_, said) = status(&own.harness).await;
    assert_eq!(said["processes"].as_array().unwrap().len(), 1, "presence waits for no standby: {said}");
    set("alter system reset synchronous_standby_names").await;
    until_decided(&url, &accepted).await;
    until_ready(&admin).await;
    until_ok(&own.harness).await;

    // Read only: nobody's heartbeat is taken, and nobody is called dead for that.
    let since = Instant::now();
    set("alter system set default_transaction_read_only = on").await;
    let said = until_told(&own.harness, since, "takes no writes").await;
    assert!(!said["problems"].to_string().contains("no process"), "{said}");
    client.batch_execute("set default_transaction_read_only = off").await.expect("it is set");
    set("alter system reset default_transaction_read_only").await;
    until_ok(&own.harness).await;

    // It accepts, and never answers.
    let silent = Instant::now();
    own.signal("postgres", Signal::SIGSTOP);
    let said = until_told(&own.harness, silent, "PostgreSQL").await;
    assert_eq!(said["deadLetters"], Value::Null, "{said}");
    own.signal("postgres", Signal::SIGCONT);
    until_ok(&own.harness).await;
}
