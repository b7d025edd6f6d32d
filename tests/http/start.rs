//! The start: what is wrong with a port ends it before any loop, and nothing is accepted before it is measured.

use std::time::{Duration, Instant};

use reqwest::Client;
use throughline::app::lifecycle::Lifecycle;
use throughline::app::roles;
use throughline::settings::Settings;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, an_order, free_address};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_port_ends_the_start_before_any_loop() {
    let harness = Harness::new("http_start").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let missing = || Some(std::path::PathBuf::from("/nowhere/at/all"));
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Settings));
    let changes: [Change<'_>; 6] = [
        ("HTTP_LISTEN", &|settings| settings.http.listen = taken.local_addr().unwrap()),
        ("ADMIN_LISTEN", &|settings| settings.http.admin_listen = taken.local_addr().unwrap()),
        ("no authentication is configured", &|settings| settings.http.listen = ([0, 0, 0, 0], 0).into()),
        ("no authentication is configured", &|settings| settings.http.admin_listen = ([0, 0, 0, 0], 0).into()),
        ("http.auth.api_keys_file", &|settings| settings.http.auth.api_keys_file = missing()),
        ("TLS", &|settings| settings.http.tls_certificate_file = missing()),
    ];
    for (word, change) in changes {
        let mut settings = harness.settings.clone();
        settings.http.listen = free_address();
        settings.http.admin_listen = free_address();
        change(&mut settings);
        let lifecycle = Lifecycle::embedded();
        let error = roles::start(
            &crate::harness::orders(),
            &roles::parse(&crate::harness::orders(), &[]).unwrap(),
            &settings,
            &lifecycle,
        )
        .await
        .expect_err(word);
        assert!(error.to_string().contains(word), "{word}: {error}");
        // No task was begun: there is nothing to wait for.
        lifecycle.shutdown().cancel();
        tokio::time::timeout(Duration::from_millis(100), lifecycle.run()).await.expect("nothing runs").unwrap();
    }
    let claimed = harness.client().await.query_one("select count(*) from throughline.offsets", &[]).await.unwrap();
    assert_eq!(claimed.get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_measurement_the_api_is_not_ready_and_says_why() {
    let harness = Harness::new("http_starting").await;
    let mut settings = harness.settings.clone();
    // No broker: nothing can be measured.
    settings.kafka.brokers = "127.0.0.1:1".into();
    settings.kafka.request_timeout_ms = 500;
    settings.http.listen = free_address();
    settings.http.admin_listen = free_address();
    settings.http.admission.wait_ms = 700;
    let (base, admin) = (format!("http://{}", settings.http.listen), format!("http://{}", settings.http.admin_listen));
    let lifecycle = Lifecycle::embedded();
    roles::start(
        &crate::harness::orders(),
        &roles::parse(&crate::harness::orders(), &["api".into()]).unwrap(),
        &settings,
        &lifecycle,
    )
    .await
    .unwrap();
    let shutdown = lifecycle.shutdown();
    let running = tokio::spawn(lifecycle.run());
    let client = Client::new();
    let ready = async || Answer::of(client.get(format!("{admin}/readyz?verbose")).send().await.unwrap()).await;
    assert_eq!(ready().await.status, 503, "from the first moment on");
    for _ in 0..2 {
        let asked_at = Instant::now();
        let refused = client.post(format!("{base}/api/orders")).json(&an_order()).send().await.unwrap();
        let refused = Answer::of(refused).await;
        refused.is_problem(503, "STARTING");
        assert_eq!(refused.header("retry-after"), "1");
        assert!((650..5_000).contains(&asked_at.elapsed().as_millis()), "it waits for the measurement, for a while");
    }
    let told = eventually("the reason is told", || async {
        let told = ready().await;
        told.body.to_string().contains("the queue cannot be measured").then_some(told)
    })
    .await;
    assert_eq!(told.status, 503, "{told:?}");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
