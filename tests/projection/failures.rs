//! Poison, panics, blocked handlers, holes, fences, lost connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use throughline::api::{admin, install_metrics};
use throughline::projection::replay;
use throughline::settings::{FailurePolicy, Settings};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::bed::{Bed, PARTITIONS, expired};
use super::faulty::{Fault, Faulty};
use super::fold::{assert_folded, assert_same, fold, rows};
use super::harness::way::Way;
use super::scenario::lives;

const NAME: &str = "order-list";

fn faulty(bed: &Bed, stream: Uuid, fault: Fault) -> (Arc<Faulty>, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(true));
    let inner = bed.projection(NAME);
    let projection = Faulty { inner, stream, from_version: 2, fault, broken: broken.clone(), version: 1 };
    (Arc::new(projection), broken)
}

/// An order that goes on after its first event.
fn victim(bed: &Bed) -> Uuid {
    let later = |id: Uuid| bed.log.iter().filter(|e| e.stream_id == id).count() >= 3;
    bed.log.iter().map(|e| e.stream_id).find(|&id| later(id)).expect("a long life")
}

fn parking(settings: &mut Settings) {
    settings.projection.policies = BTreeMap::from([(NAME.to_owned(), FailurePolicy::Park)]);
    settings.projection.apply_timeout_ms = 300;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_halts_its_partition_and_no_other() {
    let mut bed = Bed::new().await;
    bed.emit(&lives(21, 100)).await;
    let stream = victim(&bed);
    let poison = bed.log.iter().find(|e| e.stream_id == stream && e.version == 2).expect("version 2").clone();
    let (projection, broken) = faulty(&bed, stream, Fault::Refuse);
    let running = bed.start_with(projection.clone(), bed.settings.clone());
    for partition in 0..PARTITIONS {
        let all = bed.log.iter().filter(|e| e.partition == partition).count() as i64;
        let reached = if partition == poison.partition { poison.seq - 1 } else { all };
        bed.until(&format!(
            "select count(*) = 1 from throughline.checkpoints
             where projection = '{NAME}' and partition = {partition} and seq = {reached}"
        ))
        .await;
    }
    let seen: Vec<_> =
        bed.log.iter().filter(|e| e.partition != poison.partition || e.seq < poison.seq).cloned().collect();
    assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &seen));
    running.stop().await;
    broken.store(false, Ordering::Release);
    let running = bed.start_with(projection, bed.settings.clone());
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
}

async fn parks_and_replays(fault: Fault, code: &str) {
    let mut bed = Bed::with(parking).await;
    bed.emit(&lives(22, 80)).await;
    let stream = victim(&bed);
    let (projection, _broken) = faulty(&bed, stream, fault);
    let running = bed.start_with(projection, bed.settings.clone());
    bed.caught_up(NAME).await;
    // Others flowed; the victim stands at its first event.
    let seen: Vec<_> = bed.log.iter().filter(|e| e.stream_id != stream || e.version < 2).cloned().collect();
    assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &seen));
    running.stop().await;
    let parked = bed
        .owner
        .query("select seq, reason_code from throughline.dead_letters where status = 'parked' order by seq", &[])
        .await
        .expect("parked rows");
    let expected: Vec<i64> =
        bed.log.iter().filter(|e| e.stream_id == stream && e.version >= 2).map(|e| e.seq).collect();
    assert_eq!(parked.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>(), expected, "in order");
    assert_eq!(parked[0].get::<_, &str>(1), code);
    assert!(parked[1..].iter().all(|row| row.get::<_, &str>(1) == "BEHIND_PARKED"));

    // A fixed handler replays them in order; a dry run only tells.
    let fixed = bed.projector(NAME);
    let told = replay(&fixed, None, true).await.expect("a dry run");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].seqs, expected);
    assert_eq!(told[0].failure, None);
    assert_eq!(told[0].changes.len(), 2, "{:?}", told[0].changes);
    assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &seen));
    replay(&fixed, None, false).await.expect("a replay");
    assert_folded(&bed, NAME).await;
    assert_eq!(bed.number("select count(*) from throughline.dead_letters where status = 'parked'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_is_parked_with_its_key() {
    parks_and_replays(Fault::Refuse, "HANDLER_REFUSED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_parked_with_its_key() {
    parks_and_replays(Fault::Panic, "HANDLER_PANIC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_constraint_is_parked_with_its_key() {
    parks_and_replays(Fault::Constraint, "DATABASE_REFUSED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_is_parked_with_its_key() {
    parks_and_replays(Fault::Wait, "HANDLER_TIMEOUT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn later_events_of_a_parked_key_are_parked_after_a_restart_too() {
    let mut bed = Bed::with(parking).await;
    let events = lives(23, 60);
    let (head, tail) = events.split_at(events.len() / 2);
    bed.append(head).await;
    let late = head.iter().map(reference::orders::domain::OrderEvent::order_id);
    let stream = late
        .filter(|id| head.iter().filter(|e| e.order_id() == *id).count() >= 2)
        .find(|id| tail.iter().any(|e| e.order_id() == *id))
        .expect("an order that spans both halves");
    bed.publish(&bed.log).await;
    let (projection, broken) = faulty(&bed, stream, Fault::Refuse);
    let running = bed.start_with(projection.clone(), bed.settings.clone());
    bed.caught_up(NAME).await;
    running.stop().await;
    // Fixed and restarted: what comes later still waits behind what is parked.
    broken.store(false, Ordering::Release);
    bed.emit(tail).await;
    let running = bed.start_with(projection, bed.settings.clone());
    bed.caught_up(NAME).await;
    // Replayed beside the running projector.
    replay(&bed.projector(NAME), None, false).await.expect("a replay");
    assert_folded(&bed, NAME).await;
    bed.emit(&lives(24, 20)).await;
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_thread_stops_no_other_projection() {
    let mut bed = Bed::new().await;
    bed.emit(&lives(25, 30)).await;
    let (projection, broken) = faulty(&bed, victim(&bed), Fault::Block(Duration::from_secs(6)));
    let blocked = bed.start_with(projection, bed.settings.clone());
    let other = bed.start("daily-sales");
    let since = Instant::now();
    bed.emit(&lives(26, 30)).await;
    bed.caught_up("daily-sales").await;
    assert!(since.elapsed() < Duration::from_secs(5), "it waited for its neighbour");
    assert_folded(&bed, "daily-sales").await;
    // It is seen, and told from its neighbour, on the port that orchestrators ask.
    let (admin, shutdown) = livez(&bed).await;
    let hung = until_live(&admin, false).await;
    let silent: Vec<_> = hung["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false).collect();
    assert!(silent.len() == 1 && silent[0]["name"] == format!("projection {NAME}"), "{hung}");
    broken.store(false, Ordering::Release);
    until_live(&admin, true).await;
    shutdown.cancel();
    other.stop().await;
    bed.caught_up(NAME).await;
    blocked.stop().await;
    assert_folded(&bed, NAME).await;
}

/// The admin port over the bed's loops.
async fn livez(bed: &Bed) -> (String, CancellationToken) {
    let mut settings = (*bed.settings).clone();
    settings.http.admin_listen =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
    let admin = format!("http://{}/livez?verbose", settings.http.admin_listen);
    let listener = throughline::api::Listener::admin(&settings.http, None).expect("the port is free");
    let shutdown = CancellationToken::new();
    let (stop, metrics) = (shutdown.clone(), install_metrics().expect("a recorder"));
    tokio::spawn(admin::run(listener, bed.health.clone(), metrics, stop.clone(), stop));
    (admin, shutdown)
}

async fn until_live(admin: &str, live: bool) -> serde_json::Value {
    drop(rustls::crypto::ring::default_provider().install_default());
    let since = Instant::now();
    loop {
        expired(since, if live { "alive" } else { "hung" });
        if let Ok(answer) = reqwest::get(admin).await
            && (answer.status() == 200) == live
        {
            return answer.json().await.expect("checks");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_and_foreign_records_are_parked() {
    let mut bed = Bed::with(parking).await;
    bed.emit(&lives(27, 20)).await;
    let next = bed.log.iter().filter(|e| e.partition == 0).count() as i64 + 1;
    bed.produce_raw(0, "no uuid", b"\x01nonsense", Some(next)).await;
    bed.produce_raw(1, "foreign", b"hello", None).await;
    let running = bed.start(NAME);
    bed.until("select count(*) = 2 from throughline.dead_letters where status = 'parked'").await;
    bed.until(&format!(
        "select seq = {next} from throughline.checkpoints where partition = 0 and projection = '{NAME}'"
    ))
    .await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
    let told = replay(&bed.projector(NAME), None, false).await.expect("a replay");
    assert!(told[0].failure.as_ref().is_some_and(|reason| reason.contains("not in the event store")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_stops_its_partition_until_the_store_fills_it() {
    let mut bed = Bed::new().await;
    let stored = bed.append(&lives(28, 60)).await;
    let lost = stored.iter().filter(|e| e.partition == 1).nth(10).expect("enough events").clone();
    let published: Vec<_> = stored.iter().filter(|e| (e.partition, e.seq) != (1, lost.seq)).cloned().collect();
    bed.publish(&published).await;
    let running = bed.start(NAME);
    bed.until(&format!(
        "select seq = {} from throughline.checkpoints where projection = '{NAME}' and partition = 1",
        lost.seq - 1
    ))
    .await;
    for partition in [0, 2] {
        let all = stored.iter().filter(|e| e.partition == partition).count();
        bed.until(&format!(
            "select seq = {all} from throughline.checkpoints where projection = '{NAME}' and partition = {partition}"
        ))
        .await;
    }
    let before: Vec<_> = stored.iter().filter(|e| e.partition != 1 || e.seq < lost.seq).cloned().collect();
    assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &before));
    running.stop().await;
    bed.reset(NAME, &[(1, lost.seq - 1)]).await;
    let running = bed.start(NAME);
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_projector_changes_nothing_and_claims_anew() {
    let mut bed = Bed::new().await;
    let running = bed.start("daily-sales");
    bed.emit(&lives(99, 25)).await;
    bed.caught_up("daily-sales").await;
    let stolen = bed.epochs("daily-sales").await + i64::from(PARTITIONS);
    bed.owner
        .execute("update throughline.checkpoints set epoch = epoch + 1 where projection = 'daily-sales'", &[])
        .await
        .expect("raises the epoch");
    bed.emit(&lives(98, 25)).await;
    bed.caught_up("daily-sales").await;
    let epochs = bed.epochs("daily-sales").await;
    assert!(epochs >= stolen + i64::from(PARTITIONS), "each partition is claimed anew: {epochs} after {stolen}");
    for round in 0..6 {
        bed.emit(&lives(100 + round, 25)).await;
        // As if another process had taken the partitions over.
        bed.owner
            .execute("update throughline.checkpoints set epoch = epoch + 1 where projection = 'daily-sales'", &[])
            .await
            .expect("raises the epoch");
    }
    bed.caught_up("daily-sales").await;
    running.stop().await;
    assert_folded(&bed, "daily-sales").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_lose_and_double_nothing() {
    let mut bed = Bed::new().await;
    let running = bed.start("customer-summary");
    for round in 0..6 {
        bed.emit(&lives(200 + round, 25)).await;
        bed.owner
            .execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid()",
                &[],
            )
            .await
            .expect("ends the sessions");
    }
    bed.caught_up("customer-summary").await;
    running.stop().await;
    assert_folded(&bed, "customer-summary").await;
}

/// The commit happens and its answer is lost: the same batch, tried again under the same claim, is
/// told by its position that it is done. Sums would show a batch that was counted twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_not_repeated() {
    let mut bed = Bed::with(|settings| settings.projection.batch_events_max = 5).await;
    bed.emit(&lives(40, 20)).await;
    let (way, url) = Way::new(bed.settings.database.url.expose()).await;
    let mut settings = Settings::clone(&bed.settings);
    settings.database.url = url.as_str().into();
    let running = bed.start_with(bed.projection("customer-summary"), Arc::new(settings));
    bed.until("select coalesce(sum(seq), 0) > 0 from throughline.checkpoints where projection = 'customer-summary'")
        .await;
    way.lose(5);
    bed.emit(&lives(41, 60)).await;
    bed.caught_up("customer-summary").await;
    running.stop().await;
    assert_eq!(way.lost(), 5);
    assert_folded(&bed, "customer-summary").await;
}
