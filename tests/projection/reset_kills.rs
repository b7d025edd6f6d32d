//! A reset that was carried out is never carried out again, wherever the process died meanwhile.
//!
//! What a second one would do differs by its kind, so each leaves a mark: after a skip, the skipped
//! events are in the rows; after a reset to the current offset too, where a skip came before it.

use super::bed::{Bed, PARTITIONS, Stored};
use super::binary::{command, dies_at, stops, until_stopped, wake};
use super::fold::{assert_same, fold, rows};
use super::resets::{resets, run_until_caught_up};
use super::scenario::lives;

const NAME: &str = "daily-sales";
const RUN: [&str; 2] = ["run", "projection:daily-sales"];

/// Every await between Kafka's answer and our next commit there.
const POINTS: [&str; 6] = [
    "projection.claim.named",
    "projection.claim.before_commit",
    "projection.claim.after_commit",
    "projection.claim.after_commit:3",
    "projection.before_commit",
    "projection.after_commit",
];

fn ends(bed: &Bed) -> Vec<(i32, i64)> {
    (0..PARTITIONS).map(|partition| (partition, bed.watermarks(partition).1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_forward_survives_a_kill_anywhere() {
    let mut bed = Bed::new().await;
    let mut seen: Vec<Stored> = bed.emit(&lives(61, 60)).await;
    run_until_caught_up(&bed).await;
    for (round, point) in (1..).zip(POINTS) {
        bed.emit(&lives(600 + round as u64, 20)).await;
        bed.reset(NAME, &ends(&bed)).await;
        // Something to apply beyond the target, so that the checkpoint leaves it before Kafka hears of us.
        seen.extend(bed.emit(&lives(700 + round as u64, 20)).await);
        dies_at(&bed, &RUN, point).await;
        run_until_caught_up(&bed).await;
        assert_eq!(resets(&bed, "backward").await, 0, "{point}: the skip was undone");
        assert_eq!(resets(&bed, "forward").await, round * i64::from(PARTITIONS), "{point}");
        assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &seen));
    }
    // The same reset once more is another one, even where Kafka never heard that we did the first.
    let target = ends(&bed);
    bed.reset(NAME, &target).await;
    bed.emit(&lives(801, 20)).await;
    dies_at(&bed, &RUN, "projection.after_commit").await;
    let before = all_resets(&bed).await;
    bed.reset(NAME, &target).await;
    run_until_caught_up(&bed).await;
    assert_eq!(all_resets(&bed).await, before + i64::from(PARTITIONS));
    assert!(resets(&bed, "backward").await > 0, "some partition had gone on from its target");
}

/// A member that sleeps with what it has read of the group, while another does the work: what it writes
/// to Kafka on waking, refused or not, neither hides a reset nor repeats one.
#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_before_the_name_changes_nothing() {
    let mut bed = Bed::new().await;
    let mut seen: Vec<Stored> = bed.emit(&lives(63, 60)).await;
    run_until_caught_up(&bed).await;
    // Woken beside the other, and when the other has left: then the broker takes what comes.
    for (round, alone) in (1..).zip([false, true]) {
        bed.emit(&lives(640 + round as u64, 20)).await;
        bed.reset(NAME, &ends(&bed)).await;
        seen.extend(bed.emit(&lives(650 + round as u64, 20)).await);
        let mut zombie = command(&bed, &RUN);
        zombie.env("THROUGHLINE_STOP_AT", "consumer.before_naming").env("RUST_LOG", "warn");
        let zombie = zombie.stderr(std::process::Stdio::inherit()).spawn().expect("it starts");
        until_stopped(&zombie).await;
        let running = bed.start(NAME);
        bed.caught_up(NAME).await;
        assert_eq!(resets(&bed, "forward").await, round * i64::from(PARTITIONS));
        if alone {
            running.stop().await;
            wake(&zombie);
        } else {
            wake(&zombie);
            seen.extend(bed.emit(&lives(660 + round as u64, 20)).await);
            bed.caught_up(NAME).await;
            running.stop().await;
        }
        // The woken one is a member like any other: it takes over, from where the rows are.
        seen.extend(bed.emit(&lives(670 + round as u64, 20)).await);
        bed.caught_up(NAME).await;
        stops(zombie).await;
        run_until_caught_up(&bed).await;
        assert_eq!(resets(&bed, "forward").await, round * i64::from(PARTITIONS), "alone: {alone}");
        assert_eq!(resets(&bed, "backward").await, 0, "alone: {alone}: the skip was undone");
        assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &seen));
    }
}

async fn all_resets(bed: &Bed) -> i64 {
    bed.number("select count(*) from throughline.projection_resets").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_backward_is_carried_out_once() {
    let mut bed = Bed::new().await;
    bed.emit(&lives(62, 60)).await;
    run_until_caught_up(&bed).await;
    for (round, point) in
        (1..).zip(["projection.claim.named", "projection.claim.after_commit:3", "projection.after_commit"])
    {
        bed.reset(NAME, &[(0, 3), (1, 0), (2, 5)]).await;
        dies_at(&bed, &RUN, point).await;
        run_until_caught_up(&bed).await;
        assert_eq!(resets(&bed, "backward").await, round * i64::from(PARTITIONS), "{point}");
        super::fold::assert_folded(&bed, NAME).await;
    }
}
