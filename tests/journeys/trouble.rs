//! Trouble at start: one paragraph that names what failed and the next command to run.

use crate::harness::{Harness, on_database};
use crate::process::{Ended, command, ended};

fn assert_helpful(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, 1, "stderr: {}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "`{word}` is not in: {}", ended.stderr);
    }
    let paragraph: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(paragraph.len(), 1, "one paragraph: {}", ended.stderr);
    for noise in ["panicked", "stack backtrace", "RUST_BACKTRACE"] {
        assert!(!ended.stderr.contains(noise), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_broker() {
    let harness = Harness::bare("no_broker").await;
    let mut run = command(&harness, &["run", "relay"]);
    run.env("KAFKA_BROKERS", "127.0.0.1:1").env("THROUGHLINE__KAFKA__REQUEST_TIMEOUT_MS", "1000");
    assert_helpful(
        &ended(&mut run).await,
        &["cannot reach Kafka at 127.0.0.1:1", "KAFKA_BROKERS", "throughline dev up"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_database() {
    let harness = Harness::bare("no_database").await;
    let mut run = command(&harness, &["run", "relay"]);
    run.env("DATABASE_URL", "postgres://nobody:secret-canary@127.0.0.1:1/none");
    let ended = ended(&mut run).await;
    assert_helpful(&ended, &["cannot connect to PostgreSQL at 127.0.0.1:1/none", "DATABASE_URL"]);
    assert!(!ended.stderr.contains("secret-canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_database_configured() {
    let harness = Harness::bare("unconfigured").await;
    let mut check = command(&harness, &["db", "check"]);
    check.env_remove("DATABASE_URL");
    assert_helpful(&ended(&mut check).await, &["no database is configured", "throughline dev up"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password() {
    let harness = Harness::bare("wrong_password").await;
    let url = harness.settings.database.url.expose().to_owned();
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (user, host) = rest.split_once('@').expect("a user");
    let user = user.split(':').next().expect("a name");
    let mut run = command(&harness, &["run", "relay"]);
    run.env("DATABASE_URL", format!("{scheme}://{user}:wrong-canary@{host}"));
    let ended = ended(&mut run).await;
    assert_helpful(&ended, &["password authentication failed", "Check user and password"]);
    assert!(!ended.stderr.contains("wrong-canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_such_database() {
    let harness = Harness::bare("missing_database").await;
    let mut run = command(&harness, &["run", "relay"]);
    run.env("DATABASE_URL", on_database(harness.settings.database.url.expose(), "not_there"));
    assert_helpful(&ended(&mut run).await, &["not_there", "Create the database"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn port_taken() {
    let harness = Harness::new("port_taken").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut run = command(&harness, &["run", "api"]);
    run.env("HTTP_LISTEN", &address);
    assert_helpful(&ended(&mut run).await, &[&address, "HTTP_LISTEN"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_with_fewer_replicas() {
    let harness = Harness::new("replicas").await;
    let asked = |arguments: &[&str]| {
        let mut command = command(&harness, arguments);
        command.env("THROUGHLINE__TOPICS__REPLICATION", "2");
        command
    };
    let found = ended(&mut asked(&["topics", "check", "--context", "orders"])).await;
    assert_eq!(found.code, 3, "{}", found.stderr);
    for word in ["orders-events has 1 of 2 replicas on partition(s) 0, 1, 2, 3, 4, 5", "kafka-reassign-partitions"] {
        assert!(found.stderr.contains(word), "`{word}` is not in: {}", found.stderr);
    }
    assert_helpful(&ended(&mut asked(&["run", "relay"])).await, &["has 1 of 2 replicas", "topics.replication"]);
    let as_made = ended(&mut command(&harness, &["topics", "check", "--context", "orders"])).await;
    assert_eq!(as_made.code, 0, "{}", as_made.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn database_of_another_encoding() {
    let harness = Harness::bare("encodings").await;
    let client = harness.client().await;
    for (encoding, apply_at_start) in [("SQL_ASCII", "true"), ("LATIN1", "false"), ("EUC_JP", "true")] {
        let name = format!("encoded_{}_{}", encoding.to_lowercase(), uuid::Uuid::new_v4().simple());
        let create = format!("create database {name} encoding '{encoding}' locale 'C' template template0");
        client.batch_execute(&create).await.expect("create a database");
        let url = on_database(harness.settings.database.url.expose(), &name);
        let words = [&*name, encoding, "encoding 'UTF8' template template0", "DATABASE_URL"];
        let asked = |arguments: &[&str]| {
            let mut command = command(&harness, arguments);
            command.env("DATABASE_URL", &url).env("THROUGHLINE__DATABASE__APPLY_AT_START", apply_at_start);
            command
        };
        assert_helpful(&ended(&mut asked(&["db", "apply"])).await, &words);
        assert_helpful(&ended(&mut asked(&["run", "relay"])).await, &words);
        let check = ended(&mut asked(&["db", "check"])).await;
        assert_eq!(check.code, 3, "{}", check.stderr);
        assert!(words.iter().all(|word| check.stderr.contains(word)), "{}", check.stderr);
        // Nothing was left behind.
        let mut settings = harness.settings.database.clone();
        settings.url = url.as_str().into();
        let role = throughline::store::DatabaseRole::Owner;
        let refused = throughline::store::connect::connect(&settings, &role).await.expect("connect");
        let left = "select count(*) from pg_namespace where nspname = 'throughline'";
        assert_eq!(refused.query_one(left, &[]).await.expect("a count").get::<_, i64>(0), 0);
        client.batch_execute(&format!("drop database {name} with (force)")).await.expect("drop the database");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_with_other_partitions() {
    let harness = Harness::new("partitions").await;
    let mut run = command(&harness, &["run", "processor"]);
    run.env("THROUGHLINE__TOPICS__COMMAND_PARTITIONS", "7");
    assert_helpful(&ended(&mut run).await, &["has 6 partitions, 7 are needed", "--partitions 7"]);
    let mut check = command(&harness, &["topics", "check"]);
    check.env("THROUGHLINE__TOPICS__COMMAND_PARTITIONS", "7");
    let found = ended(&mut check).await;
    assert_eq!(found.code, 3, "{}", found.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn database_of_a_newer_version() {
    let harness = Harness::new("newer").await;
    let client = harness.client().await;
    client
        .batch_execute("insert into throughline.migrations (number, name, sha256) values (9999, 'future', 'x')")
        .await
        .expect("insert");
    let run = ended(&mut command(&harness, &["run", "processor"])).await;
    assert_helpful(&run, &["newer version", "9999"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_setting_and_unknown_role() {
    let harness = Harness::bare("unknown").await;
    let mut run = command(&harness, &["run"]);
    run.env("THROUGHLINE__RELAY__LEESE_MS", "1");
    assert_helpful(&ended(&mut run).await, &["leese_ms", "config show"]);
    assert_helpful(
        &ended(&mut command(&harness, &["run", "projection:nothing"])).await,
        &["projection:nothing", "order-list"],
    );
    assert_eq!(ended(&mut command(&harness, &["no-such-verb"])).await.code, 2);
}
