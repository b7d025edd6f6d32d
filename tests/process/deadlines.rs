//! Deadlines: once, late rather than never, never early, whoever lives meanwhile.

use std::time::Duration;

use crate::bed::Bed;
use crate::courier::{PATIENCE, SILENT};

/// Milliseconds. Longer than any test.
const HOURS: &str = "36000000";

/// Deadlines that were not handled before the time that `comes_due` gave them, by the database's clock.
const IN_TIME: &str = "
    select count(*) from throughline.process_inputs
    where input->>'deadline' is not null
      and extract(epoch from handled_at) >= (select due::double precision from moved)";
const FIRED: &str = "select count(*) from throughline.process_inputs where input->>'deadline' is not null";
const SET: &str = "select count(*) from throughline.process_deadlines";

/// Moves what is due in hours to so many seconds from now: no test waits for a time that a busy machine may miss.
async fn comes_due_in(bed: &Bed, seconds: f64) {
    // The store may have seen less time pass than did: it is given as much again, as the process gives its own.
    let lag = 2.0;
    bed.store
        .batch_execute(&format!(
            "create temporary table moved as select extract(epoch from clock_timestamp()) + {seconds} as due;
             update throughline.process_deadlines d set due = k.elapsed + interval '{} seconds'
             from throughline.clock k",
            seconds + lag
        ))
        .await
        .expect("moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_fires_once_after_a_restart_and_not_before_its_time() {
    let bed = Bed::new("process_deadline").await;
    let mut first = bed.courier(&[(PATIENCE, HOURS)]);
    let orders = bed.place(&[SILENT, SILENT, SILENT]).await;
    bed.until("the deadlines are set", SET, 3).await;
    let paying = bed.place(&["pays"]).await;
    bed.until_events("OrderShipped", &paying).await;
    first.kill().await.expect("killed");
    comes_due_in(&bed, 3.0).await;
    let _others = [bed.courier(&[]), bed.courier(&[])];
    bed.until_events("OrderCancelled", &orders).await;
    bed.is_settled().await;
    assert_eq!(bed.number(FIRED).await, 3);
    assert_eq!(bed.number(IN_TIME).await, 3, "fired early");
    assert_eq!(bed.number(SET).await, 0);
    assert_eq!(bed.events("OrderCancelled", &paying).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_process_fires_late_and_not_never() {
    let bed = Bed::new("process_late").await;
    let _courier = bed.courier(&[(PATIENCE, HOURS)]);
    let orders = bed.place(&[SILENT]).await;
    bed.until("the deadline is set", SET, 1).await;
    throughline::process::state::set_paused(&bed.store, "courier", true).await.expect("paused");
    // Longer than its tick: it notices by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    comes_due_in(&bed, 0.0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bed.number(FIRED).await, 0, "it was told to do nothing");
    throughline::process::state::set_paused(&bed.store, "courier", false).await.expect("resumed");
    bed.until_events("OrderCancelled", &orders).await;
    bed.is_settled().await;
}
