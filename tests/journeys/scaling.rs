//! From one processor to two, to four, and back, under load: no error, and no partition pauses long.

use std::time::{Duration, Instant};

use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::place_order;
use crate::process::Process;

const PARTITIONS: i32 = 12;
/// How long each number of processors is held.
const PHASE: Duration = Duration::from_secs(6);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A steady load on all partitions until told to stop; how many commands Kafka took.
async fn feed(
    settings: throughline::settings::KafkaSettings,
    topic: String,
    stop: tokio::sync::watch::Receiver<bool>,
) -> u128 {
    let producer: FutureProducer = client::producer(&settings, 2).create().expect("a producer");
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut sent = 0;
    while !*stop.borrow() {
        tick.tick().await;
        let mut deliveries = Vec::new();
        for _ in 0..25 {
            sent += 1;
            let order = Uuid::from_u128(sent);
            let (key, value) = (order.to_string(), place_order(order, Uuid::from_u128(1 << 64 | sent)).to_string());
            let record = FutureRecord::to(&topic).key(&key).payload(&value);
            deliveries.push(producer.send_result(record).map_err(|(error, _)| error).expect("queued"));
        }
        for delivery in deliveries {
            delivery.await.expect("a report").map_err(|(error, _)| error).expect("acknowledged");
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn processors_come_and_go_under_load_without_errors_or_long_pauses() {
    let mut harness = Harness::bare("scaling").await;
    harness.settings.topics.event_partitions = PARTITIONS;
    harness.settings.topics.command_partitions = PARTITIONS;
    harness.install().await;
    let client = harness.client().await;
    let mut processors = vec![Process::run(&harness, &["processor"])];
    processors[0].logged("partitions assigned").await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let feeding = tokio::spawn(feed(harness.settings.kafka.clone(), harness.names().commands(), stopped));

    let mut figures = Vec::new();
    for wanted in [1_usize, 2, 4, 2, 1] {
        while processors.len() < wanted {
            processors.push(Process::run(&harness, &["processor"]));
        }
        while processors.len() > wanted {
            let leaving = processors.pop().expect("a processor");
            assert_eq!(leaving.count(" ERROR "), 0);
            assert_eq!(leaving.terminate().await, 0, "it leaves cleanly");
        }
        let before = decided(&client).await;
        let started = Instant::now();
        tokio::time::sleep(PHASE).await;
        let rate = (decided(&client).await - before) as f64 / started.elapsed().as_secs_f64();
        figures.push(format!("{wanted} processor(s): {rate:.0} commands/s"));
    }
    stop.send(true).expect("the feed listens");
    let sent = feeding.await.expect("the feed ends");
    eventually("everything decided", || async { (decided(&client).await == sent as i64).then_some(()) }).await;

    let rows = client
        .query(
            "select partition, max(extract(epoch from decided_at - before))::float8 from (
                 select partition, decided_at, lag(decided_at) over (partition by partition order by decided_at) as before
                 from throughline.commands) c
             group by partition order by 2 desc",
            &[],
        )
        .await
        .expect("commands");
    assert_eq!(rows.len() as i32, PARTITIONS, "the load reaches every partition");
    let longest = rows[0].get::<_, f64>(1);
    eprintln!("scaling: {}; longest pause of a partition {longest:.2} s; {sent} commands", figures.join(", "));
    assert!(longest < PAUSE_MAX.as_secs_f64(), "a partition paused for {longest} s");
    for processor in &processors {
        assert_eq!(processor.count(" ERROR "), 0);
    }
    for processor in processors {
        assert_eq!(processor.terminate().await, 0);
    }
}

async fn decided(client: &tokio_postgres::Client) -> i64 {
    client.query_one("select count(*) from throughline.commands", &[]).await.expect("commands").get(0)
}
