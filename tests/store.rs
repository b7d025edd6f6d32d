//! Connections to a real server: by several addresses, in a pool, through a network that goes silent.

mod harness;

use std::time::{Duration, Instant};

use harness::way::Way;
use harness::{Harness, eventually};
use throughline::settings::DatabaseSettings;
use throughline::store::{Database, DatabaseRole, connect};
use tokio::net::TcpListener;

/// Takes every connection and answers none.
async fn silent_host() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    address
}

/// The same database, with `first` in front of its host.
fn behind(settings: &DatabaseSettings, first: &str, more: &str) -> DatabaseSettings {
    let (head, rest) = settings.url.expose().rsplit_once('@').expect("a user");
    DatabaseSettings { url: format!("{head}@{first},{rest}{more}").as_str().into(), ..settings.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_first_host_costs_seconds_and_not_the_whole_wait() {
    let harness = Harness::new("store_silent_host").await;
    let settings = behind(&harness.settings.database, &silent_host().await, "");
    for role in [DatabaseRole::Owner, DatabaseRole::Writer, DatabaseRole::Relay] {
        let since = Instant::now();
        let client = connect::connect(&settings, &role).await.expect("the second host answers");
        client.batch_execute("select 1").await.expect("a session");
        assert!(since.elapsed() < Duration::from_secs(5), "{role:?}: {:?}", since.elapsed());
        eprintln!("{role:?}: connected after {:?}", since.elapsed());
    }
    let pool = Database::new(&settings, &DatabaseRole::Reader).expect("a pool");
    let since = Instant::now();
    pool.client().await.expect("the second host answers").batch_execute("select 1").await.expect("a session");
    assert!(since.elapsed() < Duration::from_secs(5), "pool: {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_host_is_named_with_its_reason() {
    let harness = Harness::bare("store_reasons").await;
    let silent = silent_host().await;
    let mut settings = harness.settings.database.clone();
    settings.connect_timeout_ms = 300;
    settings.url = format!("postgres://nobody:secret-canary@127.0.0.1:1,{silent},127.0.0.1:2/none?connect_timeout=1")
        .as_str()
        .into();
    let since = Instant::now();
    let told = connect::connect(&settings, &DatabaseRole::Owner).await.expect_err("nobody is there").to_string();
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    for word in
        ["127.0.0.1:1: error connecting", &format!("{silent}: no answer in time"), "127.0.0.1:2: error connecting"]
    {
        assert!(told.contains(word), "`{word}` is not in: {told}");
    }
    assert!(!told.contains("secret-canary"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_urls_own_connect_timeout_is_honoured() {
    let harness = Harness::bare("store_timeout").await;
    let mut settings = harness.settings.database.clone();
    let silent = silent_host().await;
    settings.url = format!("postgres://nobody@{silent}/none?connect_timeout=1").as_str().into();
    let since = Instant::now();
    connect::connect(&settings, &DatabaseRole::Owner).await.expect_err("nobody answers");
    let elapsed = since.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&elapsed), "{elapsed:?}");
    // Without one, a single host gets the whole wait of whoever asks.
    settings.url = format!("postgres://nobody@{silent}/none").as_str().into();
    settings.connect_wait_ms = 4_500;
    let since = Instant::now();
    connect::connect(&settings, &DatabaseRole::Owner).await.expect_err("nobody answers");
    assert!(since.elapsed() >= Duration::from_millis(4_400), "{:?}", since.elapsed());
}

/// Whom the URL asks for is found among several: the first of them only reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_the_wrong_kind_is_passed_over() {
    let harness = Harness::new("store_attrs").await;
    let client = harness.client().await;
    let port =
        |url: &str| url.rsplit_once('@').and_then(|(_, rest)| rest.split_once('/')).expect("a host").0.to_owned();
    let own = port(harness.settings.database.url.expose());
    let settings = behind(&harness.settings.database, &own, "?target_session_attrs=read-write");
    let database = client.query_one("select current_database()::text", &[]).await.expect("a name").get::<_, String>(0);
    connect::connect(&settings, &DatabaseRole::Owner).await.expect("it takes writes");
    let read_only = format!("alter database {database} set default_transaction_read_only = on");
    client.batch_execute(&read_only).await.expect("read only");
    let told = connect::connect(&settings, &DatabaseRole::Owner).await.expect_err("nobody takes writes").to_string();
    assert_eq!(told.matches("does not allow writes").count(), 2, "each host says why: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_hands_out_no_connection_that_has_gone_silent() {
    let harness = Harness::new("store_pool").await;
    let (way, url) = Way::new(harness.settings.database.url.expose()).await;
    let mut settings = harness.settings.database.clone();
    settings.url = url.as_str().into();
    settings.statement_timeout_ms = 500;
    settings.round_trip_timeout_ms = 1_600;
    settings.pool_connections_max = 4;
    let pool = Database::new(&settings, &DatabaseRole::Reader).expect("a pool");
    {
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(pool.client().await.expect("a connection"));
        }
    }
    let asking = pool.client().await.expect("a connection");
    way.silence(true);
    // Who asks is told, by the limit of a round trip.
    let since = Instant::now();
    asking.batch_execute("select 1").await.expect_err("nobody answers");
    assert!((Duration::from_millis(1_400)..Duration::from_secs(3)).contains(&since.elapsed()), "{:?}", since.elapsed());
    drop(asking);
    way.silence(false);
    // Three of the old ones rest in the pool, all of them dead: one is asked, the others go with it.
    let since = Instant::now();
    let client = pool.client().await.expect("a live connection");
    client.batch_execute("select 1").await.expect("it answers");
    eprintln!("a live connection after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

/// The other end notices, too: what a lost client was at, and the locks that it held, are given up in seconds.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_gives_up_what_a_lost_client_was_at() {
    let harness = Harness::new("store_lost_client").await;
    let watching = harness.client().await;
    let client = connect::connect_with(&harness.settings.database, &DatabaseRole::Owner, "").await.expect("connects");
    let row = client.query_one("select current_setting('tcp_keepalives_idle')::int", &[]).await.expect("a setting");
    assert!(row.get::<_, i32>(0) <= 5);
    let asked = tokio::spawn(async move { client.batch_execute("select pg_sleep(40)").await });
    let sleeping = "select count(*) from pg_stat_activity
                    where datname = current_database() and query like 'select pg_sleep%'";
    let count = || async { watching.query_one(sleeping, &[]).await.expect("a count").get::<_, i64>(0) };
    eventually("it sleeps", || async { (count().await == 1).then_some(()) }).await;
    asked.abort();
    let since = Instant::now();
    eventually("the server has noticed", || async { (count().await == 0).then_some(()) }).await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}
