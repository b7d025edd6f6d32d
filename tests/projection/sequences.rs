//! Parked events through resets, rebuilds and rollbacks: each is in the rows once, or out for a reason on
//! record. The walk goes through all of it at random; these are the ways it went wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use throughline::kafka::client;
use throughline::projection::{Projector, RebuildMode, rebuild, replay, rollback};
use throughline::settings::{FailurePolicy, Settings};
use throughline::store::dead_letters::{self, Filter};
use throughline::store::{DatabaseRole, connect};
use uuid::Uuid;

use super::bed::{Bed, PARTITIONS, Running, Stored};
use super::faulty::{Fault, Faulty};
use super::fold::{assert_folded, assert_same, fold, rows};
use super::scenario::lives;

/// Its rows are sums: an event that counts twice shows.
pub const NAME: &str = "customer-summary";

fn parking(settings: &mut Settings) {
    settings.projection.on_failure = FailurePolicy::Park;
    settings.projection.retries_max = 0;
}

/// A projection that refuses the later events of one order, while it is broken.
pub struct Sick {
    pub bed: Bed,
    stream: Uuid,
    pub broken: Arc<AtomicBool>,
    projection: Arc<Faulty>,
}

impl Sick {
    /// Its events are in the store, and not published yet.
    pub async fn new(seed: u64) -> Self {
        let mut bed = Bed::with(parking).await;
        let events = lives(seed, 60);
        bed.append(&events).await;
        let many = |id: Uuid| bed.log.iter().filter(|event| event.stream_id == id).count() >= 3;
        let stream = bed.log.iter().map(|event| event.stream_id).find(|&id| many(id)).expect("a long life");
        let broken = Arc::new(AtomicBool::new(true));
        let projection = Arc::new(Faulty {
            inner: bed.projection(NAME),
            stream,
            from_version: 2,
            fault: Fault::Refuse,
            broken: broken.clone(),
            version: 1,
        });
        Self { bed, stream, broken, projection }
    }

    pub fn projector(&self) -> Projector<reference::orders::domain::OrderEvent> {
        let (settings, codec) = (self.bed.settings.clone(), self.bed.codec.clone());
        Projector::new(settings, &self.bed.names, self.projection.clone(), codec)
    }

    fn start(&self) -> Running {
        self.bed.start_with(self.projection.clone(), self.bed.settings.clone())
    }

    pub async fn run(&self) {
        let epochs = self.bed.epochs(NAME).await;
        let running = self.start();
        self.bed.claimed_since(NAME, epochs).await;
        self.bed.caught_up(NAME).await;
        running.stop().await;
    }

    pub async fn rebuild(&self) {
        let report = rebuild(&self.projector(), &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
        assert_eq!((report.switched, report.unexplained), (true, 0), "{report:?}");
    }

    pub async fn letters(&self, status: &str) -> i64 {
        self.bed.number(&format!("select count(*) from throughline.dead_letters where status = '{status}'")).await
    }

    pub fn parked(&self) -> i64 {
        self.bed.log.iter().filter(|event| event.stream_id == self.stream && event.version >= 2).count() as i64
    }

    pub fn without_parked(&self) -> Vec<Stored> {
        let stays = |event: &&Stored| event.stream_id != self.stream || event.version < 2;
        self.bed.log.iter().filter(stays).cloned().collect()
    }
}

pub const EARLIEST: [(i32, i64); 3] = [(0, 0), (1, 0), (2, 0)];

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_supersedes_letters_and_a_rebuild_after_it_leaves_nothing_out() {
    let sick = Sick::new(71).await;
    sick.bed.publish(&sick.bed.log).await;
    sick.run().await;
    assert_eq!(sick.letters("parked").await, sick.parked());
    sick.broken.store(false, Ordering::Release);
    sick.bed.reset(NAME, &EARLIEST).await;
    sick.run().await;
    assert_folded(&sick.bed, NAME).await;
    assert_eq!((sick.letters("superseded").await, sick.letters("discarded").await), (sick.parked(), 0));
    let named = "select count(*) from throughline.dead_letters where superseded_by like 'backward reset %'";
    assert_eq!(sick.bed.number(named).await, sick.parked(), "what superseded them is on record");
    sick.rebuild().await;
    assert_folded(&sick.bed, NAME).await;
    // And replayed there is nothing.
    assert!(replay(&sick.projector(), None, false).await.expect("a replay").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rollback_brings_again_is_not_replayed_too() {
    let sick = Sick::new(72).await;
    // The generation that is rolled back to stands before the events that are parked.
    sick.rebuild().await;
    sick.bed.publish(&sick.bed.log).await;
    sick.run().await;
    assert_eq!(sick.letters("parked").await, sick.parked());
    sick.broken.store(false, Ordering::Release);
    rollback(&sick.projector(), false).await.expect("rolls back");
    assert_eq!((sick.letters("parked").await, sick.letters("superseded").await), (0, sick.parked()));
    sick.run().await;
    assert!(replay(&sick.projector(), None, false).await.expect("a replay").is_empty());
    assert_folded(&sick.bed, NAME).await;
    // The other generation lacks them still, and says so once it is live again.
    rollback(&sick.projector(), false).await.expect("rolls back");
    assert_eq!(sick.letters("parked").await, sick.parked());
    assert_same(&rows(&sick.bed, NAME, "read").await, &fold(&sick.bed, NAME, &sick.without_parked()));
    replay(&sick.projector(), None, false).await.expect("a replay");
    assert_folded(&sick.bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_replayed_into_one_generation_is_parked_for_the_one_before() {
    let sick = Sick::new(73).await;
    sick.bed.publish(&sick.bed.log).await;
    sick.run().await;
    sick.rebuild().await;
    sick.broken.store(false, Ordering::Release);
    replay(&sick.projector(), None, false).await.expect("a replay");
    assert_folded(&sick.bed, NAME).await;
    rollback(&sick.projector(), false).await.expect("rolls back");
    assert_same(&rows(&sick.bed, NAME, "read").await, &fold(&sick.bed, NAME, &sick.without_parked()));
    assert_eq!(sick.letters("parked").await, sick.parked());
    sick.run().await;
    replay(&sick.projector(), None, false).await.expect("a replay");
    assert_folded(&sick.bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_event_stays_out_on_every_path() {
    let sick = Sick::new(74).await;
    sick.bed.publish(&sick.bed.log).await;
    sick.run().await;
    let found = dead_letters::find(&sick.bed.owner, &Filter { open_only: true, ..Filter::default() }, 100).await;
    let ids: Vec<i64> = found.expect("letters").iter().map(|letter| letter.id).collect();
    let expected = fold(&sick.bed, NAME, &sick.without_parked());
    // It is mended before, so that whatever does not know of the discard would apply the events.
    sick.broken.store(false, Ordering::Release);
    dead_letters::close(&sick.bed.owner, &ids, "discarded").await.expect("discards");
    sick.rebuild().await;
    assert_same(&rows(&sick.bed, NAME, "read").await, &expected);
    sick.bed.reset(NAME, &EARLIEST).await;
    sick.run().await;
    assert_same(&rows(&sick.bed, NAME, "read").await, &expected);
    let middle: Vec<(i32, i64)> = (0..PARTITIONS).map(|p| (p, sick.bed.watermarks(p).1 - 1)).collect();
    sick.bed.reset(NAME, &middle).await;
    sick.run().await;
    assert_same(&rows(&sick.bed, NAME, "read").await, &expected);
    rollback(&sick.projector(), false).await.expect("rolls back");
    sick.run().await;
    assert_same(&rows(&sick.bed, NAME, "read").await, &expected);
    assert!(replay(&sick.projector(), None, false).await.expect("a replay").is_empty());
    assert_eq!(sick.letters("discarded").await, ids.len() as i64);
}

/// A generation that applied an event before it was discarded is made anew when it is live again.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_does_not_bring_back_what_was_discarded_since() {
    let sick = Sick::new(75).await;
    sick.bed.publish(&sick.bed.log).await;
    sick.broken.store(false, Ordering::Release);
    sick.run().await;
    sick.rebuild().await;
    assert_folded(&sick.bed, NAME).await;
    sick.broken.store(true, Ordering::Release);
    sick.bed.reset(NAME, &EARLIEST).await;
    sick.run().await;
    assert_eq!(sick.letters("parked").await, sick.parked());
    let found = dead_letters::find(&sick.bed.owner, &Filter { open_only: true, ..Filter::default() }, 100).await;
    let ids: Vec<i64> = found.expect("letters").iter().map(|letter| letter.id).collect();
    dead_letters::close(&sick.bed.owner, &ids, "discarded").await.expect("discards");
    rollback(&sick.projector(), false).await.expect("rolls back");
    sick.run().await;
    let expected = fold(&sick.bed, NAME, &sick.without_parked());
    assert_same(&rows(&sick.bed, NAME, "read").await, &expected);
}

/// Drops every record of the topic, as retention does, and the group with its commits.
async fn forget_all(bed: &Bed, all: bool) {
    let admin: AdminClient<DefaultClientContext> = client::base(&bed.settings.kafka).create().expect("an admin client");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let end = bed.watermarks(partition).1;
        let until = if all { end } else { end - 2 };
        list.add_partition_offset(&bed.names.events(), partition, Offset::Offset(until)).expect("an offset");
    }
    admin.delete_records(&list, &AdminOptions::new()).await.expect("records are dropped");
    let group = bed.names.projection_group(NAME);
    admin.delete_groups(&[&group], &AdminOptions::new()).await.expect("asked")[0].clone().expect("deleted");
}

async fn expired_while_away(seed: u64, all: bool) {
    let mut sick = Sick::new(seed).await;
    let (head, rest): (Vec<Stored>, Vec<Stored>) = sick.bed.log.iter().cloned().partition(|event| event.seq <= 10);
    sick.bed.publish(&head).await;
    let running = sick.start();
    sick.bed
        .until(&format!("select count(*) = 3 from throughline.checkpoints where projection = '{NAME}' and seq = 10"))
        .await;
    running.stop().await;
    sick.bed.publish(&rest).await;
    sick.bed
        .owner
        .execute(
            "update throughline.relay_leases l set published = c.last_seq from throughline.counters c
             where c.topic = l.topic and c.partition = l.partition",
            &[],
        )
        .await
        .expect("published");
    forget_all(&sick.bed, all).await;
    // What fails is parked although no record is left that could be; the others need nobody.
    let running = sick.start();
    sick.bed.caught_up(NAME).await;
    assert_same(&rows(&sick.bed, NAME, "read").await, &fold(&sick.bed, NAME, &sick.without_parked()));
    assert_eq!(sick.letters("parked").await, sick.parked());
    sick.bed.emit(&lives(seed + 100, 20)).await;
    sick.bed.caught_up(NAME).await;
    running.stop().await;
    sick.broken.store(false, Ordering::Release);
    replay(&sick.projector(), None, false).await.expect("a replay");
    assert_folded(&sick.bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_record_has_expired_the_store_has_the_events() {
    expired_while_away(76, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_records_have_expired_but_the_last_the_store_has_the_events() {
    expired_while_away(77, false).await;
}

async fn session(sick: &Sick) -> tokio_postgres::Client {
    connect::connect(&sick.bed.settings.database, &DatabaseRole::Owner).await.expect("connects")
}

/// The session of the one before may be there for a moment longer: that is nobody's rebuild.
#[tokio::test(flavor = "multi_thread")]
async fn one_operation_may_follow_another_at_once() {
    let sick = Sick::new(75).await;
    sick.broken.store(false, Ordering::Release);
    sick.bed.publish(&sick.bed.log).await;
    sick.run().await;
    sick.rebuild().await;
    let leaving = session(&sick).await;
    let lock = "select pg_advisory_lock(hashtext('throughline.rebuild'), hashtext($1))";
    leaving.execute(lock, &[&NAME]).await.expect("locked");
    let goes = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        drop(leaving);
    });
    rollback(&sick.projector(), false).await.expect("it is waited for");
    goes.await.expect("gone");
    let stays = session(&sick).await;
    stays.execute(lock, &[&NAME]).await.expect("locked");
    let refused = rollback(&sick.projector(), false).await.expect_err("it is running").to_string();
    assert!(refused.contains("wait for it to end"), "{refused}");
    drop(stays);
    rollback(&sick.projector(), false).await.expect("rolls back");
    sick.run().await;
    assert_folded(&sick.bed, NAME).await;
}
