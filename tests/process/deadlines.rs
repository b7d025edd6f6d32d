//! Deadlines: once, late rather than never, never early, whoever lives meanwhile.

use std::time::Duration;

use crate::bed::Bed;
use crate::courier::{PATIENCE, SILENT};

/// How long an instance waited, seconds, by the database's clock.
const WAITED: &str = "
    select extract(epoch from min(d.handled_at - b.handled_at))::bigint * 1000
    from throughline.process_inputs b join throughline.process_inputs d using (process, instance)
    where b.number = 1 and d.input->>'deadline' is not null";
const FIRED: &str = "select count(*) from throughline.process_inputs where input->>'deadline' is not null";

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_fires_once_after_a_restart_and_not_before_its_time() {
    let bed = Bed::new("process_deadline").await;
    let mut first = bed.courier(&[(PATIENCE, "4000")]);
    let orders = bed.place(&[SILENT, SILENT, SILENT, "pays"]).await;
    bed.until("the deadlines are set", "select count(*) from throughline.process_deadlines", 3).await;
    first.kill().await.expect("killed");
    // The time that is meant to pass while nobody lives.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bed.number(FIRED).await, 0);
    let _others = [bed.courier(&[]), bed.courier(&[])];
    bed.until_events("OrderCancelled", &orders[..3]).await;
    bed.is_settled().await;
    assert_eq!(bed.number(FIRED).await, 3);
    assert!(bed.number(WAITED).await >= 4_000, "fired early");
    assert_eq!(bed.number("select count(*) from throughline.process_deadlines").await, 0);
    assert_eq!(bed.events("OrderCancelled", &orders[3..]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_process_fires_late_and_not_never() {
    let bed = Bed::new("process_late").await;
    let _courier = bed.courier(&[(PATIENCE, "1500")]);
    let orders = bed.place(&[SILENT]).await;
    bed.until("the deadline is set", "select count(*) from throughline.process_deadlines", 1).await;
    throughline::process::state::set_paused(&bed.store, "courier", true).await.expect("paused");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.number(FIRED).await, 0, "it was told to do nothing");
    throughline::process::state::set_paused(&bed.store, "courier", false).await.expect("resumed");
    bed.until_events("OrderCancelled", &orders).await;
    bed.is_settled().await;
}
