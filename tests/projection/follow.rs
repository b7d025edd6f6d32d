//! The plain way: events arrive, tables follow, restarts and duplicates change nothing.

use super::bed::Bed;
use super::fold::assert_folded;
use super::scenario::lives;

const ALL: [&str; 5] = ["order-list", "order-details", "customer-summary", "daily-sales", "order-history"];

#[tokio::test(flavor = "multi_thread")]
async fn every_table_equals_the_fold_of_its_events() {
    let mut bed = Bed::new().await;
    let running: Vec<_> = ALL.iter().map(|name| bed.start(name)).collect();
    bed.emit(&lives(1, 150)).await;
    // More while they run: updates of rows that earlier batches made.
    bed.emit(&lives(2, 150)).await;
    for name in ALL {
        bed.caught_up(name).await;
        assert_folded(&bed, name).await;
    }
    for one in running {
        one.stop().await;
    }
    for name in ALL {
        let committed = bed.committed(name);
        for (partition, (offset, metadata)) in committed {
            assert_eq!(offset, bed.watermarks(partition).1, "{name}: Kafka follows");
            assert!(metadata.starts_with("e="), "{name}: {metadata}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_dropped_and_a_restart_goes_on() {
    let mut bed = Bed::new().await;
    let first = bed.emit(&lives(3, 60)).await;
    let running = bed.start("daily-sales");
    bed.caught_up("daily-sales").await;
    running.stop().await;
    // A relay that was killed publishes its tail again.
    bed.publish(&first[first.len() / 2..]).await;
    bed.emit(&lives(4, 60)).await;
    bed.publish(&first[first.len() - 5..]).await;
    let running = bed.start("daily-sales");
    bed.caught_up("daily-sales").await;
    running.stop().await;
    assert_folded(&bed, "daily-sales").await;
}
