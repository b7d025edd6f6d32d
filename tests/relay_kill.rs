//! Relay processes killed with SIGKILL at each of their steps, 50 times under load: per partition the
//! topic holds seq 1..n in order, nothing missing. Repetitions are counted and printed.

mod harness;
mod outbox;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use harness::{Harness, eventually};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

const KILLS: usize = 50;
/// At any time so many relays run beside each other.
const RELAYS: usize = 2;
/// A crash point that is not passed in this time is replaced by a kill at whatever the process does.
const REACHED: Duration = Duration::from_secs(8);
const POINTS: [&str; 5] =
    ["relay.after_acquire", "relay.after_read", "relay.after_produce", "relay.before_mark", "relay.after_mark"];
/// Passes of a point before the process dies there: early, and in the middle of the stream.
const PASSES: [usize; 4] = [1, 2, 7, 19];

fn spawn(harness: &Harness, crash_at: Option<&str>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline"));
    command.args(["run", "relay"]).envs(harness.environment()).env("RUST_LOG", "throughline=warn");
    if let Some(point) = crash_at {
        command.env("THROUGHLINE_CRASH_AT", point);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().expect("the binary starts")
}

/// Appends to all partitions until told to stop; returns the rows of each.
async fn load(harness: Arc<Harness>, stop: CancellationToken) -> i64 {
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let mut rows = 0;
    while !stop.is_cancelled() {
        let transaction = client.transaction().await.expect("begin");
        for partition in 0..events.partitions {
            let first = outbox::take(&transaction, events.id, partition, 10).await;
            outbox::insert(&transaction, events.id, partition, first, 10, 250).await;
        }
        transaction.commit().await.expect("commit");
        rows += 10;
        // Pace of the load, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rows
}

/// One relay after the other, each killed; returns where they died.
async fn killing(harness: Arc<Harness>, worker: usize) -> BTreeMap<String, usize> {
    let mut deaths = BTreeMap::new();
    for kill in (worker..KILLS).step_by(RELAYS) {
        let round = kill / RELAYS;
        let point = POINTS[(round + worker) % POINTS.len()];
        let pass = if point == "relay.after_acquire" { 1 } else { PASSES[(round / POINTS.len()) % PASSES.len()] };
        let mut child = spawn(&harness, Some(&format!("{point}:{pass}")));
        let place = match tokio::time::timeout(REACHED, child.wait()).await {
            Ok(status) => {
                let status = status.expect("a child");
                assert_eq!(status.signal(), Some(9), "{point}:{pass}: {status}");
                point
            }
            Err(_) => {
                child.kill().await.expect("kill");
                "elsewhere"
            }
        };
        *deaths.entry(place.to_owned()).or_default() += 1;
    }
    deaths
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_under_load_leave_no_hole_and_no_inversion() {
    let mut harness = Harness::new("relay_kill").await;
    harness.settings.relay.lease_ms = 1_500;
    let harness = Arc::new(harness);
    let stop_load = CancellationToken::new();
    let loading = tokio::spawn(load(harness.clone(), stop_load.clone()));
    let killers: Vec<_> = (0..RELAYS).map(|worker| tokio::spawn(killing(harness.clone(), worker))).collect();
    let mut deaths: BTreeMap<String, usize> = BTreeMap::new();
    for killer in killers {
        for (place, count) in killer.await.expect("no panic") {
            *deaths.entry(place).or_default() += count;
        }
    }
    stop_load.cancel();
    let last = loading.await.expect("no panic");

    let survivor = spawn(&harness, None);
    let client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    for partition in 0..events.partitions {
        eventually("the backlog is published", || async {
            (outbox::watermark(&client, events.id, partition).await == last).then_some(())
        })
        .await;
    }
    drop(survivor);

    let mut repeated = 0;
    for partition in 0..events.partitions {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        let seqs = outbox::seqs(&records);
        assert_eq!(seqs, records.iter().map(outbox::names_seq).collect::<Vec<_>>(), "bytes belong to their number");
        repeated += outbox::repetitions(&seqs, last);
    }
    let rows = last * i64::from(events.partitions);
    eprintln!("{KILLS} kills {deaths:?}: {rows} records in {} partitions, {repeated} repeated", events.partitions);
    assert_eq!(deaths.values().sum::<usize>(), KILLS);
    for point in POINTS {
        assert!(deaths.contains_key(point), "never died at {point}: {deaths:?}");
    }
}

/// A zombie: stopped past its lease, resumed after another has taken over. It may repeat what its
/// client still held; it opens no hole, inverts nothing new, and moves no watermark.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_are_paused_and_resumed_leave_no_hole() {
    let mut harness = Harness::new("relay_pause").await;
    harness.settings.relay.lease_ms = 1_500;
    let harness = Arc::new(harness);
    let client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let stop_load = CancellationToken::new();
    let loading = tokio::spawn(load(harness.clone(), stop_load.clone()));
    let relays = [spawn(&harness, None), spawn(&harness, None)];
    let owned = async |pid: u32| -> i64 {
        let owner = format!("%-{pid}-%");
        let row = client
            .query_one(
                "select count(*) from throughline.relay_leases where owner like $1 and expires_at > now()",
                &[&owner],
            )
            .await
            .expect("leases");
        row.get(0)
    };
    // Events and results of two contexts, six partitions each.
    for round in 0..6 {
        let pid = relays[round % 2].id().expect("it runs");
        eventually("the relay has its share", || async { (owned(pid).await == 12).then_some(()) }).await;
        let process = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        signal::kill(process, Signal::SIGSTOP).expect("stop");
        let other = relays[(round + 1) % 2].id().expect("it runs");
        eventually("the other takes over", || async { (owned(other).await == 24).then_some(()) }).await;
        signal::kill(process, Signal::SIGCONT).expect("resume");
    }
    stop_load.cancel();
    let last = loading.await.expect("no panic");
    for partition in 0..events.partitions {
        eventually("the backlog is published", || async {
            (outbox::watermark(&client, events.id, partition).await == last).then_some(())
        })
        .await;
    }
    drop(relays);
    let mut repeated = 0;
    for partition in 0..events.partitions {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        repeated += outbox::repetitions(&outbox::seqs(&records), last);
    }
    let rows = last * i64::from(events.partitions);
    eprintln!("6 pauses: {rows} records in {} partitions, {repeated} repeated", events.partitions);
}
