//! A process manager that is killed at each of its steps, taken over, or paused: each command counts once.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::bed::{Bed, signal};
use crate::courier::{PATIENCE, SILENT};
use crate::harness::eventually;

/// Every place at which something is done and the next thing is not.
const POINTS: [&str; 9] = [
    "process.claimed",
    "process.in_batch",
    "process.before_commit",
    "process.after_commit",
    "process.send.read",
    "process.send.acknowledged",
    "process.send.marked",
    "process.deadline.before_commit",
    "process.deadline.after_commit",
];
const PATIENCE_MS: (&str, &str) = (PATIENCE, "2000");

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_step_it_does_each_thing_once() {
    let bed = Bed::new("process_kills").await;
    let (mut paid, mut silent) = (Vec::new(), Vec::new());
    for point in POINTS {
        paid.extend(bed.place(&["a", "b", "c", "d"]).await);
        silent.extend(bed.place(&[SILENT]).await);
        let mut child = bed.courier(&[PATIENCE_MS, ("THROUGHLINE_CRASH_AT", point)]);
        let ended = tokio::time::timeout(Duration::from_secs(40), child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("{point} is not passed")).expect("a child");
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
    }
    let _courier = bed.courier(&[PATIENCE_MS]);
    bed.until_events("OrderShipped", &paid).await;
    bed.until_events("OrderCancelled", &silent).await;
    bed.is_settled().await;
    assert_eq!(bed.events("OrderCancelled", &paid).await, 0, "a deadline that was cleared does not fire");
    let commands = 2 * paid.len() + silent.len();
    assert_eq!(bed.number("select count(*) from throughline.process_commands").await, commands as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_paused_and_wakes_after_the_takeover_changes_nothing() {
    let bed = Bed::new("process_zombie").await;
    let first = bed.courier(&[]);
    let mut orders = bed.place(&["a", "b", "c", "d", "e", "f"]).await;
    bed.until_events("OrderShipped", &orders).await;
    signal(&first, Signal::SIGSTOP);
    let _second = bed.courier(&[]);
    orders.extend(bed.place(&["a", "b", "c", "d", "e", "f", "g", "h"]).await);
    bed.until_events("OrderShipped", &orders).await;
    signal(&first, Signal::SIGCONT);
    orders.extend(bed.place(&["a", "b", "c", "d", "e", "f", "g", "h"]).await);
    bed.until_events("OrderShipped", &orders).await;
    bed.is_settled().await;
    assert_eq!(bed.number("select count(*) from throughline.process_commands").await, 2 * orders.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_carry_the_correlation_of_what_began_it_and_the_cause() {
    let bed = Bed::new("process_causes").await;
    let _courier = bed.courier(&[]);
    let orders = bed.place(&["a"]).await;
    bed.until_events("OrderShipped", &orders).await;
    let query = "select correlation_id, causation_id, event_id::text, type from throughline.events order by version";
    let rows = eventually("three events", || async {
        let rows = bed.store.query(query, &[]).await.expect("events");
        (rows.len() == 3).then_some(rows)
    })
    .await;
    let text = |row: usize, column: usize| rows[row].get::<_, String>(column);
    for (event, cause) in [(1, 0), (2, 1)] {
        assert_eq!(text(event, 0), text(0, 0), "{} has the correlation of the first", text(event, 3));
        assert_eq!(text(event, 1), text(cause, 2), "{} is caused by {}", text(event, 3), text(cause, 3));
    }
}
