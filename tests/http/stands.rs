//! Reads of a table that does not go on: what is not found there is not said to be absent, what is found is told to be
//! old, other partitions and tables answer as ever, and all of it is over by itself.

use std::cell::Cell;

use serde_json::json;
use throughline::engine::destination_partition;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, an_order};

const STANDS: &str = "PROJECTION_STANDING";

fn order_in(partition: i32) -> Uuid {
    std::iter::repeat_with(Uuid::new_v4).find(|id| destination_partition(*id, 6) == partition).expect("one")
}

/// Places an order; its token.
async fn place(server: &Server, order: Uuid, customer: &str) -> String {
    let mut body = an_order();
    (body["orderId"], body["customerId"]) = (json!(order), json!(customer));
    let placed = server.send("/api/orders/sync", &body).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    placed.header("consistency-token").to_owned()
}

async fn until(server: &Server, what: &str, path: &str, is_so: impl Fn(&Answer) -> bool) -> Answer {
    eventually(what, || async { Some(server.read(path).await).filter(|answer| is_so(answer)) }).await
}

async fn until_stands(server: &Server, path: &str, reason: &str, cure: &str) {
    let answer = until(server, "it is told to stand", path, |answer| answer.status == 503).await;
    answer.is_problem(503, STANDS);
    let retry: u64 = answer.header("retry-after").parse().expect("Retry-After");
    assert!((1..=60).contains(&retry), "{retry}");
    let detail = answer.text("detail");
    for part in [reason, cure, " since ", "Next step: "] {
        assert!(detail.contains(part), "{part}: {detail}");
    }
    assert_eq!(server.read(&format!("/problems/{STANDS}")).await.status, 200);
}

fn order_path(order: Uuid) -> String {
    format!("/api/orders/{order}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halted_partition_answers_for_its_own_keys_only_and_is_well_by_itself() {
    let mut harness = Harness::bare("http_halted").await;
    harness.settings.http.consistency_wait_ms = 300;
    harness.settings.kafka.halt_retry_ms = 300;
    harness.install().await;
    let server = Server::whole(&harness).await;
    let client = harness.client().await;
    let (before, stuck, other) = (order_in(2), order_in(2), order_in(4));
    place(&server, before, "customer-1").await;
    until(&server, "an order is shown", &order_path(before), |answer| answer.status == 200).await;
    until(&server, "it is listed", "/api/orders", |answer| answer.body["items"][0].is_object()).await;
    for table in ["order_details", "order_list"] {
        let refuse = format!("alter table read.{table} add constraint refuses check (customer_id <> 'poison')");
        client.batch_execute(&refuse).await.expect("a constraint");
    }
    let token = place(&server, stuck, "poison").await;
    let reason = "projection order-details stands at partition 2";
    until_stands(&server, &order_path(stuck), reason, "order-details").await;
    // Nothing is known of any key of that partition; others are as they were.
    server.read(&order_path(order_in(2))).await.is_problem(503, STANDS);
    server.read(&order_path(order_in(4))).await.is_problem(404, "NOT_FOUND");
    place(&server, other, "customer-2").await;
    let shown = until(&server, "others are shown", &order_path(other), |answer| answer.status == 200).await;
    assert_eq!(shown.header("projection-standing"), "");
    // What is there is answered, and told to be old.
    let old = server.read(&order_path(before)).await;
    assert_eq!((old.status, old.header("projection-standing")), (200, "2"), "{old:?}");
    let list = until(&server, "a list tells", "/api/orders", |list| list.header("projection-standing") == "2").await;
    assert_eq!(list.status, 200);
    // Who waits for its own write hears why it is not met.
    for (path, status) in [(order_path(stuck), 503), ("/api/orders".to_owned(), 200), (order_path(before), 200)] {
        let answer = server.get(&path).header("Consistency-Token", &token).send().await.expect("an answer");
        let answer = Answer::of(answer).await;
        assert_eq!((answer.status, answer.header("consistency")), (status, "not-met"), "{answer:?}");
        assert_eq!(answer.header("projection-standing"), "2", "{answer:?}");
    }
    // Other tables go on.
    until(&server, "its history", &format!("{}/history", order_path(stuck)), |answer| answer.status == 200).await;
    server.read(&format!("{}/history", order_path(order_in(2)))).await.is_problem(404, "NOT_FOUND");
    server.read("/api/customers/nobody").await.is_problem(404, "NOT_FOUND");

    for table in ["order_details", "order_list"] {
        client.batch_execute(&format!("alter table read.{table} drop constraint refuses")).await.expect("dropped");
    }
    let well = |answer: &Answer| answer.status == 200 && answer.header("projection-standing").is_empty();
    until(&server, "it is shown", &order_path(stuck), well).await;
    until(&server, "the list is well", "/api/orders", well).await;
    server.read(&order_path(order_in(2))).await.is_problem(404, "NOT_FOUND");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_nobody_projects_says_so_where_it_is_behind() {
    let harness = Harness::new("http_nobody").await;
    let server = Server::start(&harness, &["api", "processor", "relay"]).await;
    let order = order_in(1);
    // Behind in nothing: what is not there is not there.
    server.read(&order_path(order)).await.is_problem(404, "NOT_FOUND");
    server.read("/api/customers/customer-1").await.is_problem(404, "NOT_FOUND");
    place(&server, order, "customer-1").await;
    let path = order_path(order);
    for path in [path.clone(), format!("{path}/history"), format!("{path}/events"), "/api/customers/customer-1".into()]
    {
        let answer = until(&server, "it is told to stand", &path, |answer| answer.status == 503).await;
        answer.is_problem(503, STANDS);
        assert!(answer.text("detail").contains("no process that lives has it"), "{answer:?}");
        assert!(answer.text("detail").contains("throughline run projection:"), "{answer:?}");
    }
    server.read(&order_path(order_in(3))).await.is_problem(404, "NOT_FOUND");
    let projections = Server::start(&harness, &["projections"]).await;
    until(&server, "it is shown", &path, |answer| answer.status == 200).await;
    until(&server, "absence counts again", &order_path(order_in(1)), |answer| answer.status == 404).await;
    projections.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_table_names_the_word_that_resumes_it() {
    let harness = Harness::new("http_paused").await;
    let server = Server::whole(&harness).await;
    let client = harness.client().await;
    let (before, order) = (order_in(5), order_in(5));
    place(&server, before, "customer-1").await;
    until(&server, "an order is shown", &order_path(before), |answer| answer.status == 200).await;
    let owned = "select count(*) from throughline.partition_states where loop = 'projection order-details'";
    eventually("it is told to have its partitions", || async {
        (client.query_one(owned, &[]).await.expect("a count").get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    let pause = "update throughline.projections set paused = $1 where name = 'order-details'";
    client.execute(pause, &[&true]).await.expect("paused");
    eventually("it has left its group", || async {
        (client.query_one(owned, &[]).await.expect("a count").get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    place(&server, order, "customer-1").await;
    let cure = "throughline projection resume order-details";
    until_stands(&server, &order_path(order), "it is paused", cure).await;
    until(&server, "other tables go on", "/api/customers/customer-1", |answer| answer.body["orders"] == 2).await;
    client.execute(pause, &[&false]).await.expect("resumed");
    until(&server, "it is shown", &order_path(order), |answer| answer.status == 200).await;
    server.stop().await;
}

/// What was committed while a partition stood is no less lacking once it goes on: absence counts when that is shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_goes_on_says_nothing_is_absent_until_it_has_made_good() {
    let mut harness = Harness::bare("http_behind").await;
    harness.settings.http.consistency_wait_ms = 300;
    harness.settings.kafka.halt_retry_ms = 300;
    harness.settings.projection.batch_events_max = 1;
    harness.install().await;
    let server = Server::whole(&harness).await;
    let client = harness.client().await;
    let (before, poisoned) = (order_in(2), order_in(2));
    place(&server, before, "customer-1").await;
    until(&server, "an order is shown", &order_path(before), |answer| answer.status == 200).await;
    // From now on each row takes its time.
    client
        .batch_execute(
            "alter table read.order_details add constraint refuses check (customer_id <> 'poison');
             create function read.dawdle() returns trigger language plpgsql as
                 $$ begin perform pg_sleep(1.2); return new; end $$;
             create trigger dawdles before insert on read.order_details for each row execute function read.dawdle()",
        )
        .await
        .expect("a constraint, and a slow table");
    place(&server, poisoned, "poison").await;
    until_stands(&server, &order_path(poisoned), "projection order-details stands at partition 2", "order-details")
        .await;
    let behind: Vec<Uuid> = std::iter::repeat_with(|| order_in(2)).take(8).collect();
    for order in &behind {
        place(&server, *order, "customer-2").await;
    }
    client.batch_execute("alter table read.order_details drop constraint refuses").await.expect("dropped");
    until(&server, "it goes on", &order_path(poisoned), |answer| answer.status == 200).await;
    let goes_on = Cell::new(0);
    for order in &behind {
        until(&server, "it is shown", &order_path(*order), |answer| {
            assert_ne!(answer.status, 404, "after {} answers that it is behind: {answer:?}", goes_on.get());
            let detail = if answer.status == 503 { answer.text("detail") } else { "" };
            let is_told = detail.contains("it goes on, and") && detail.contains("it catches up");
            goes_on.set(goes_on.get() + u32::from(is_told));
            answer.status == 200
        })
        .await;
    }
    assert!(goes_on.get() > 0, "it told that it goes on");
    until(&server, "absence counts again", &order_path(order_in(2)), |answer| answer.status == 404).await;
    // What is decided from now on is no backlog of the stand: lag as ever is no stand.
    let late = order_in(2);
    place(&server, late, "customer-2").await;
    server.read(&order_path(late)).await.is_problem(404, "NOT_FOUND");
    server.stop().await;
}
