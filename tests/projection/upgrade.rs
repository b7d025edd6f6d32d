//! A database as the release before letters were told apart left it: what became of its parked events after the
//! upgrade, through a replay, a rebuild and a rollback.

use std::sync::atomic::Ordering;

use throughline::projection::{replay, rollback};
use throughline::store::{dead_letters, migrate};

use super::fold::{assert_folded, assert_same, fold, rows};
use super::sequences::{EARLIEST, NAME, Sick};

/// Undoes what the steps since have added. That release closed the letters that a reset passed as discarded.
const BEFORE: &str = "
    drop function throughline.hold_piece(interval), throughline.copy_unpublished(name, name, timestamptz);
    drop table throughline.projection_gaps;
    alter table throughline.dead_letters drop constraint dead_letters_status_check;
    update throughline.dead_letters set status = 'discarded' where status = 'superseded';
    alter table throughline.dead_letters add constraint dead_letters_status_check
        check (status in ('parked', 'replayed', 'discarded')), drop column superseded_by;
    drop index throughline.dead_letters_event, throughline.dead_letters_source;
    create unique index dead_letters_source on throughline.dead_letters
        (source_topic, topic_id, source_partition, source_offset, consumer) where source_offset is not null;
    alter table throughline.checkpoints drop column topic_id;
    alter table throughline.projection_resets drop constraint projection_resets_direction_check;
    alter table throughline.projection_resets add constraint projection_resets_direction_check
        check (direction in ('backward', 'forward', 'current'));
    delete from throughline.migrations where number in (11, 17)";

/// Parked, and then mended; the generation before lacks the parked events as well.
async fn parked(seed: u64) -> Sick {
    let sick = Sick::new(seed).await;
    sick.bed.publish(&sick.bed.log).await;
    sick.run().await;
    sick.rebuild().await;
    assert_eq!(sick.letters("parked").await, sick.parked());
    sick.broken.store(false, Ordering::Release);
    sick
}

async fn upgrade(sick: &mut Sick) {
    sick.bed.owner.batch_execute(BEFORE).await.expect("the release before");
    let applied = migrate::apply(&mut sick.bed.owner).await.expect("migrates");
    assert_eq!(applied, ["projection sequences", "pieces and gaps"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reset_of_before_closed_is_in_the_rows_and_stays_in_rebuilt_ones() {
    let mut sick = parked(91).await;
    sick.bed.reset(NAME, &EARLIEST).await;
    sick.run().await;
    assert_folded(&sick.bed, NAME).await;
    upgrade(&mut sick).await;
    assert_eq!((sick.letters("superseded").await, sick.letters("discarded").await), (sick.parked(), 0));
    sick.rebuild().await;
    assert_folded(&sick.bed, NAME).await;
    sick.run().await;
    assert_folded(&sick.bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generation_of_before_says_what_it_lacks_once_it_is_live() {
    let mut sick = parked(92).await;
    sick.bed.reset(NAME, &EARLIEST).await;
    sick.run().await;
    upgrade(&mut sick).await;
    rollback(&sick.projector(), false).await.expect("rolls back");
    assert_same(&rows(&sick.bed, NAME, "read").await, &fold(&sick.bed, NAME, &sick.without_parked()));
    assert_eq!(sick.letters("parked").await, sick.parked(), "they are told to be missing");
    sick.run().await;
    replay(&sick.projector(), None, false).await.expect("a replay");
    assert_folded(&sick.bed, NAME).await;
    sick.rebuild().await;
    assert_folded(&sick.bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_of_before_are_replayed_once() {
    let mut sick = parked(93).await;
    upgrade(&mut sick).await;
    assert_eq!(sick.letters("parked").await, sick.parked());
    replay(&sick.projector(), None, false).await.expect("a replay");
    assert_folded(&sick.bed, NAME).await;
    assert!(replay(&sick.projector(), None, false).await.expect("a replay").is_empty());
    sick.rebuild().await;
    assert_folded(&sick.bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_of_before_discarded_stays_out_on_every_path() {
    let mut sick = parked(94).await;
    let open = dead_letters::find(&sick.bed.owner, &dead_letters::Filter::default(), 1_000).await.expect("letters");
    let ids: Vec<i64> = open.iter().map(|letter| letter.id).collect();
    dead_letters::close(&sick.bed.owner, &ids, "discarded").await.expect("discards");
    upgrade(&mut sick).await;
    assert_eq!(sick.letters("discarded").await, sick.parked());
    let without = fold(&sick.bed, NAME, &sick.without_parked());
    for step in ["rebuild", "reset", "rollback"] {
        match step {
            "rebuild" => sick.rebuild().await,
            "reset" => sick.bed.reset(NAME, &EARLIEST).await,
            _ => drop(rollback(&sick.projector(), false).await.expect("rolls back")),
        }
        sick.run().await;
        assert_same(&rows(&sick.bed, NAME, "read").await, &without);
        assert_eq!(sick.letters("discarded").await, sick.parked(), "{step}");
    }
}
