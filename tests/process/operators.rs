//! What operators do to a process manager: see what is parked, retry it, reset everything.

use throughline::app::install;
use throughline::process::OpenProcess;

use crate::bed::Bed;
use crate::courier::{self, MENDED, POISON};

const PARKED: &str = "select count(*) from throughline.dead_letters where status = 'parked'";

async fn process(bed: &Bed, app: &throughline::App) -> Box<dyn OpenProcess> {
    install::processes(app, &bed.harness.settings).await.expect("processes").remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_handled_is_parked_with_its_instance_alone_and_comes_back_in_order() {
    let bed = Bed::new("process_parked").await;
    let mut courier = bed.courier(&[]);
    let bad = bed.place(&[POISON]).await;
    let good = bed.place(&["a", "b", "c", "d"]).await;
    bed.until_events("OrderShipped", &good).await;
    bed.until("the order is parked", PARKED, 1).await;
    // Later events of the instance wait behind it, though they could be handled.
    let value = serde_json::json!({"type": "CancelOrder", "reason": "no more"});
    bed.send(bad[0], value).await;
    bed.until("its cancellation waits", PARKED, 2).await;
    let status = process(&bed, &courier::app()).await.status(&bed.store).await.expect("a status");
    assert_eq!((status.state, status.parked, status.stuck.as_slice()), ("running", 2, bad.as_slice()));

    let again = process(&bed, &courier::app()).await.retry().await.expect("retried");
    assert_eq!((again.handled, again.failed, again.behind), (0, 1, 1), "nothing was mended");
    courier.kill().await.expect("killed");
    let mended = process(&bed, &courier::mended()).await.retry().await.expect("retried");
    assert_eq!((mended.handled, mended.failed, mended.behind), (2, 0, 0));
    let view =
        process(&bed, &courier::mended()).await.instance(&bed.store, bad[0]).await.expect("read").expect("begun");
    assert_eq!(view.state["cancelled"], true);
    let kinds: Vec<bool> = view.inputs.iter().map(|input| input["input"]["event"]["Placed"].is_object()).collect();
    assert_eq!(kinds, [true, false], "in the order in which they happened");
    bed.until("nothing is parked", PARKED, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_handles_everything_again_and_sends_nothing_twice() {
    let bed = Bed::new("process_reset").await;
    let _courier = bed.courier(&[(MENDED, "1")]);
    let orders = bed.place(&["a", "b", "c", "d", "e"]).await;
    bed.until_events("OrderShipped", &orders).await;
    let handled = "select count(*) from throughline.process_inputs";
    // Placed, paid, shipped, and two outcomes.
    bed.until("all is handled", handled, 25).await;
    bed.is_settled().await;
    let states =
        "select string_agg(instance::text || state::text, ',' order by instance) from throughline.process_instances";
    let states = async || bed.store.query_one(states, &[]).await.expect("states").get::<_, String>(0);
    let (before, sent) = (states().await, bed.commands_on_topic());
    bed.store
        .batch_execute("update throughline.process_instances set state = '{\"paid\": 7}'")
        .await
        .expect("what an older program wrote");

    let report = process(&bed, &courier::mended()).await.reset().await.expect("reset");
    assert_eq!((report.instances, report.failed.len()), (5, 0));
    assert_eq!(states().await, before, "the fold of what it was told");
    let caught_up = "select count(*) from throughline.counters k join throughline.topics t on t.id = k.topic
                     left join throughline.process_checkpoints c on c.topic = t.name and c.partition = k.partition
                     where coalesce(c.seq, 0) < k.last_seq";
    bed.until("it has read everything again", caught_up, 0).await;
    assert_eq!(bed.number(handled).await, 25, "each cause is handled once");
    assert_eq!(bed.commands_on_topic(), sent, "nothing is sent again");
    assert_eq!(states().await, before);
    let more = bed.place(&["f"]).await;
    bed.until_events("OrderShipped", &more).await;
    bed.is_settled().await;
}
