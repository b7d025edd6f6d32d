//! Rebuilds beside the live tables: equal, killable, refusable, reversible.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use throughline::projection::{
    Progress, ProjectionLoopError, Projector, RebuildMode, drop_previous, rebuild, rollback,
};
use uuid::Uuid;

use super::bed::{Bed, PARTITIONS, expired};
use super::faulty::{Fault, Faulty};
use super::fold::assert_folded;
use super::scenario::lives;

const ALL: [&str; 5] = ["order-list", "order-details", "customer-summary", "daily-sales", "order-history"];

async fn settled(bed: &mut Bed, name: &str, seed: u64, orders: usize) {
    bed.emit(&lives(seed, orders)).await;
    let running = bed.start(name);
    bed.caught_up(name).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_generation_equals_the_live_one_and_can_be_rolled_back() {
    let mut bed = Bed::with(|settings| settings.projection.rebuild_chunk_events = 50).await;
    bed.emit(&lives(41, 120)).await;
    let running: Vec<_> = ALL.iter().map(|name| bed.start(name)).collect();
    for name in ALL {
        bed.caught_up(name).await;
        let report = rebuild(&bed.projector(name), &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
        assert!(report.compared, "{name}");
        assert_eq!(report.differences, Vec::<String>::new(), "{name}");
        assert_eq!(report.events, bed.log.len() as u64, "{name}");
        assert_folded(&bed, name).await;
    }
    // The running projectors noticed and go on with the new generation.
    bed.emit(&lives(42, 60)).await;
    for name in ALL {
        bed.caught_up(name).await;
        assert_folded(&bed, name).await;
        // Back: the previous generation catches up from Kafka.
        let report = rollback(&bed.projector(name), false).await.expect("rolls back");
        assert!(report.behind > 0, "{name}: {report:?}");
        bed.caught_up(name).await;
        assert_folded(&bed, name).await;
    }
    for one in running {
        one.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_reads_never_stop() {
    let mut bed = Bed::with(|settings| settings.projection.rebuild_chunk_events = 200).await;
    let name = "order-list";
    bed.emit(&lives(43, 400)).await;
    let running = bed.start(name);
    bed.caught_up(name).await;
    let stop = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let reader = {
        let (stop, reads, database) = (stop.clone(), reads.clone(), bed.settings.database.clone());
        tokio::spawn(async move {
            let role = throughline::store::DatabaseRole::Reader;
            let client = throughline::store::connect::connect(&database, &role).await.expect("connects");
            while !stop.load(Ordering::Acquire) {
                let count: i64 =
                    client.query_one("select count(*) from read.order_list", &[]).await.expect("reads").get(0);
                assert!(count >= 400, "{count} orders: a reader saw half a table");
                reads.fetch_add(1, Ordering::Release);
            }
        })
    };
    for round in 0..3 {
        let projector = bed.projector(name);
        let rebuilding = tokio::spawn(async move { rebuild(&projector, &Arc::default(), RebuildMode::Checked).await });
        bed.emit(&lives(300 + round, 100)).await;
        let report = rebuilding.await.expect("no panic").expect("rebuilds");
        assert_eq!(report.differences, Vec::<String>::new());
    }
    bed.caught_up(name).await;
    stop.store(true, Ordering::Release);
    reader.await.expect("every read was answered");
    assert!(reads.load(Ordering::Acquire) > 10);
    running.stop().await;
    assert_folded(&bed, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_midway_it_leaves_nothing_behind_and_runs_again() {
    let mut bed = Bed::with(|settings| settings.projection.rebuild_chunk_events = 10).await;
    let name = "daily-sales";
    settled(&mut bed, name, 44, 200).await;
    for stop_at in [1, 100, 300] {
        let (projector, progress) = (bed.projector(name), Arc::new(Progress::default()));
        let seen = progress.clone();
        let task = tokio::spawn(async move { rebuild(&projector, &seen, RebuildMode::Checked).await.map(|_| ()) });
        let since = std::time::Instant::now();
        while progress.done.load(Ordering::Acquire) < stop_at {
            expired(since, "the rebuild to start");
            tokio::task::yield_now().await;
        }
        task.abort();
        assert!(task.await.expect_err("aborted").is_cancelled());
        assert_folded(&bed, name).await;
        bed.until(
            "select count(*) = 0 from pg_locks l join pg_database d on d.oid = l.database
             where l.locktype = 'advisory' and d.datname = current_database()",
        )
        .await;
    }
    let report = rebuild(&bed.projector(name), &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
    assert_eq!(report.differences, Vec::<String>::new());
    assert_folded(&bed, name).await;
    assert_eq!(bed.number("select count(*) from throughline.checkpoints where generation = 'read_next'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_without_a_reason_stops_the_switch_unless_forced_and_none_runs_twice() {
    let mut bed = Bed::new().await;
    let name = "order-list";
    settled(&mut bed, name, 45, 60).await;
    bed.owner.execute("update read.order_list set paid = paid + 1 where partition = 1", &[]).await.expect("spoils");
    let projector = bed.projector(name);
    let dry = rebuild(&projector, &Arc::default(), RebuildMode::DryRun).await.expect("a dry run");
    assert_eq!((dry.events, dry.compared), (bed.log.len() as u64, false));
    // Somebody else's goes on for longer than one that has ended is waited for.
    let lock = "pg_advisory_lock(hashtext('throughline.rebuild'), hashtext('order-list'))";
    bed.owner.batch_execute(&format!("select {lock}")).await.expect("locks");
    let second = rebuild(&projector, &Arc::default(), RebuildMode::Checked).await;
    assert!(matches!(second, Err(ProjectionLoopError::Refused { .. })), "{second:?}");
    bed.owner.batch_execute(&format!("select {}", lock.replace("lock(", "unlock("))).await.expect("unlocks");
    let report = rebuild(&projector, &Arc::default(), RebuildMode::Checked).await.expect("one at a time");
    assert_eq!(report.differences.len(), 1, "{:?}", report.differences);
    assert!(report.differences[0].starts_with("order_list partition 1:"), "{:?}", report.differences);
    assert!(report.differences[0].ends_with("(no known reason)"), "{:?}", report.differences);
    assert_eq!((report.unexplained, report.switched), (1, false));
    // The live tables are what they were, for whoever wants to know why; the rebuilt ones stand beside them.
    let spoilt = |schema| format!("select sum(paid)::bigint from {schema}.order_list where partition = 1");
    assert_ne!(bed.number(&spoilt("read")).await, bed.number(&spoilt("read_next")).await);
    assert_eq!(bed.number("select count(*) from throughline.projections where switched_at is not null").await, 0);
    let report = rebuild(&projector, &Arc::default(), RebuildMode::Forced).await.expect("rebuilds");
    assert_eq!((report.differences.len(), report.unexplained, report.switched), (1, 1, true));
    assert_folded(&bed, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_generation_lives_as_long_as_is_set() {
    let mut bed = Bed::new().await;
    let (name, other) = ("customer-summary", "order-list");
    settled(&mut bed, name, 51, 40).await;
    settled(&mut bed, other, 52, 10).await;
    for one in [name, other] {
        rebuild(&bed.projector(one), &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
    }
    let role = throughline::store::DatabaseRole::Maintenance;
    let maintenance = throughline::store::connect::connect(&bed.settings.database, &role).await.expect("connects");
    assert_eq!(drop_previous(&maintenance, 1).await.expect("a turn"), Vec::<String>::new(), "within its hour");
    let kept =
        "select count(*) from pg_class where relnamespace = 'read_previous'::regnamespace and relkind in ('r', 'v')";
    assert_eq!(bed.number(kept).await, 4);
    bed.owner
        .execute("update throughline.projections set switched_at = now() - interval '61 min' where name = $1", &[&name])
        .await
        .expect("an hour passes");
    assert_eq!(drop_previous(&maintenance, 1).await.expect("a turn"), Vec::<String>::new(), "by the clock alone");
    let passes =
        "update throughline.unchanged set since = since - interval '61 min' where thing like '%customer-summary'";
    bed.owner.execute(passes, &[]).await.expect("an hour was seen to pass");
    // Whoever rebuilds, rolls back or replays meanwhile is not disturbed.
    let lock = "select pg_advisory_lock(hashtext('throughline.rebuild'), hashtext('customer-summary'))";
    bed.owner.execute(lock, &[]).await.expect("a lock");
    assert_eq!(drop_previous(&maintenance, 1).await.expect("a turn"), Vec::<String>::new(), "it is being worked on");
    bed.owner.batch_execute("select pg_advisory_unlock_all()").await.expect("unlocks");
    // Nor is a reader: the turn gives up and comes back.
    let reading = bed.owner.transaction().await.expect("begins");
    reading.query("select * from read_previous.customer_orders", &[]).await.expect("reads");
    assert_eq!(drop_previous(&maintenance, 1).await.expect("a turn"), Vec::<String>::new(), "it is being read");
    reading.rollback().await.expect("ends");
    assert_eq!(drop_previous(&maintenance, 1).await.expect("a turn"), [name]);
    assert_eq!(bed.number(kept).await, 1, "the other projection's is younger");
    let checkpoints = "select count(*) from throughline.checkpoints where generation = 'read_previous'";
    assert_eq!(bed.number(checkpoints).await, i64::from(PARTITIONS));
    let refused = rollback(&bed.projector(name), false).await.expect_err("nothing to go back to");
    assert!(refused.to_string().contains("no previous generation is kept"), "{refused}");
    // The next rebuild keeps one again.
    rebuild(&bed.projector(name), &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
    rollback(&bed.projector(name), false).await.expect("rolls back");
    let running = bed.start(name);
    bed.caught_up(name).await;
    running.stop().await;
    assert_folded(&bed, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_waits_for_its_rebuild() {
    let mut bed = Bed::new().await;
    let name = "order-list";
    settled(&mut bed, name, 46, 40).await;
    let next = Arc::new(Faulty {
        inner: bed.projection(name),
        stream: Uuid::nil(),
        from_version: 1,
        fault: Fault::Refuse,
        broken: Arc::new(AtomicBool::new(false)),
        version: 2,
    });
    let running = bed.start_with(next.clone(), bed.settings.clone());
    bed.emit(&lives(47, 20)).await;
    let projector = Projector::new(bed.settings.clone(), &bed.names, next, bed.codec.clone());
    let status = throughline::projection::state::status(&bed.owner, &projector).await.expect("a status");
    assert_eq!((status.state, status.version), ("waits for rebuild", Some(1)));
    assert!(status.lag_events > 0);
    let report = rebuild(&projector, &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
    assert_eq!((report.from_version, report.to_version, report.compared), (Some(1), 2, false));
    bed.caught_up(name).await;
    running.stop().await;
    assert_folded(&bed, name).await;
    // The old program may be rolled back to, too.
    rollback(&bed.projector(name), false).await.expect("rolls back");
    let running = bed.start(name);
    bed.caught_up(name).await;
    running.stop().await;
    assert_folded(&bed, name).await;
    assert_eq!(
        bed.number("select count(*) from throughline.checkpoints where generation = 'read'").await,
        i64::from(PARTITIONS)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_projection_leaves_its_group() {
    let mut bed = Bed::new().await;
    let name = "order-list";
    let running = bed.start(name);
    bed.emit(&lives(48, 20)).await;
    bed.caught_up(name).await;
    assert!(throughline::projection::state::set_paused(&bed.owner, name, true).await.expect("pauses"));
    // Only an empty group takes this commit.
    bed.reset(name, &[(0, 0)]).await;
    bed.emit(&lives(49, 20)).await;
    throughline::projection::state::set_paused(&bed.owner, name, false).await.expect("resumes");
    bed.caught_up(name).await;
    running.stop().await;
    assert_folded(&bed, name).await;
}
