//! The relay: partitions of the living broker keep their speed, the others stand by name, nothing is lost.

use std::time::{Duration, Instant};

use throughline::health::{Health, PartitionState};
use tokio_postgres::Client;

use super::harness::eventually;
use super::outbox::{self, append, published};
use super::{Cluster, PARTITIONS, lives};

/// Small enough for one partition to fill, were it not for its share.
const ROOM: usize = 2_000;

async fn append_where(client: &mut Client, topic: i16, wanted: impl Fn(i32) -> bool, rows: i64) {
    for partition in (0..PARTITIONS).filter(|partition| wanted(*partition)) {
        append(client, topic, partition, rows).await;
    }
}

/// Partitions of the events topic that stand, as the process itself tells.
fn standing(health: &Health, topic: &str) -> Vec<i32> {
    let reports = health.partition_reports().into_iter();
    let stands = reports.filter(|report| report.state == PartitionState::Standing && &*report.topic == topic);
    stands.map(|report| report.partition).collect()
}

async fn halted(client: &Client, topic: i16) -> Vec<(i32, String)> {
    let query = "select partition, halted from throughline.relay_leases
                 where topic = $1 and halted is not null order by 1";
    let rows = client.query(query, &[&topic]).await.expect("leases");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// How long the living broker's partitions take to be published up to `last`.
async fn time(client: &Client, events: &throughline::store::Destination, last: i64) -> Duration {
    let started = Instant::now();
    let wanted: Vec<_> = (0..PARTITIONS).filter(|partition| lives(*partition)).map(|one| (one, last)).collect();
    published(client, events, &wanted).await;
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_holds_up_its_own_partitions_only() {
    let cluster = Cluster::up().await;
    let mut harness = cluster.harness("relay_leaderless").await;
    harness.settings.relay.in_flight_max = ROOM;
    harness.settings.relay.silence_ms = 1_500;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, health) = outbox::start_told(&harness.settings);
    append_where(&mut client, events.id, |_| true, 100).await;
    published(&client, &events, &(0..PARTITIONS).map(|partition| (partition, 100)).collect::<Vec<_>>()).await;
    append_where(&mut client, events.id, lives, 10_000).await;
    let undisturbed = time(&client, &events, 10_100).await;

    cluster.kill_second().await;
    // More than the whole room for those that nobody takes: they come first, and stay.
    append_where(&mut client, events.id, |partition| !lives(partition), 2 * ROOM as i64).await;
    let dead: Vec<i32> = (0..PARTITIONS).filter(|partition| !lives(*partition)).collect();
    let since = Instant::now();
    let told = loop {
        let (told, stand) = (halted(&client, events.id).await, standing(&health, &events.name));
        if told.len() == dead.len() && stand == dead {
            break told;
        }
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{dead:?} should stand: {stand:?} do, {told:?} are written down"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(told.iter().all(|(partition, why)| !lives(*partition) && why.contains("not acknowledged")), "{told:?}");
    append_where(&mut client, events.id, lives, 10_000).await;
    let disturbed = time(&client, &events, 20_100).await;
    eprintln!("20,000 records: {undisturbed:?} with both brokers, {disturbed:?} with one");
    assert!(disturbed < undisturbed * 3 + Duration::from_secs(1), "{disturbed:?}, and {undisturbed:?} before");

    cluster.start_second().await;
    let after = 100 + 2 * ROOM as i64;
    published(&client, &events, &dead.iter().map(|partition| (*partition, after)).collect::<Vec<_>>()).await;
    eventually("nothing stands any more", || async {
        (halted(&client, events.id).await.is_empty() && standing(&health, &events.name).is_empty()).then_some(())
    })
    .await;
    outbox::stop(running, token).await;
    for partition in 0..PARTITIONS {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        let last = if lives(partition) { 20_100 } else { after };
        assert_eq!(outbox::repetitions(&outbox::seqs(&records), last), 0, "partition {partition}");
    }
}

/// A relay that starts, or takes over, while a broker is away: the tails that nobody tells are on nobody's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_starts_without_a_broker_publishes_what_the_other_leads() {
    let cluster = Cluster::up().await;
    let mut harness = cluster.harness("relay_leaderless_start").await;
    harness.settings.relay.silence_ms = 1_500;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, _) = outbox::start_told(&harness.settings);
    append_where(&mut client, events.id, |_| true, 100).await;
    published(&client, &events, &(0..PARTITIONS).map(|partition| (partition, 100)).collect::<Vec<_>>()).await;
    outbox::stop(running, token).await;

    cluster.kill_second().await;
    append_where(&mut client, events.id, |_| true, 100).await;
    let begun = Instant::now();
    let (running, token, health) = outbox::start_told(&harness.settings);
    time(&client, &events, 200).await;
    // A tail that nobody tells is waited for for kafka.request_timeout_ms: 10 s.
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let told = eventually("their ends could not be read", || async {
        Some(halted(&client, events.id).await).filter(|told| told.len() == PARTITIONS as usize / 2)
    })
    .await;
    assert!(told.iter().all(|(_, why)| why.contains("its end could not be read")), "{told:?}");
    // A second one joins, gets its share, and is not held up either.
    let (second, second_token, _) = outbox::start_told(&harness.settings);
    tokio::time::timeout(Duration::from_secs(20), async {
        eventually("it has leases", || async {
            let query = "select count(distinct owner) from throughline.relay_leases where owner <> ''";
            (client.query_one(query, &[]).await.expect("owners").get::<_, i64>(0) == 2).then_some(())
        })
        .await;
    })
    .await
    .expect("a share");
    append_where(&mut client, events.id, lives, 100).await;
    assert!(time(&client, &events, 300).await < Duration::from_secs(6));

    cluster.start_second().await;
    let all: Vec<_> = (0..PARTITIONS).map(|one| (one, if lives(one) { 300 } else { 200 })).collect();
    published(&client, &events, &all).await;
    eventually("nothing stands any more", || async { halted(&client, events.id).await.is_empty().then_some(()) }).await;
    // Of this process, too: a partition that it lost to the other one is no longer its to tell.
    eventually("and is told as well", || async { standing(&health, &events.name).is_empty().then_some(()) }).await;
    outbox::stop(running, token).await;
    outbox::stop(second, second_token).await;
    for (partition, last) in all {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        assert_eq!(outbox::repetitions(&outbox::seqs(&records), last), 0, "partition {partition}");
    }
}
