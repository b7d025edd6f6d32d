//! Rights: a projector writes its own tables and checkpoint, the reader only reads.

use throughline::store::{self, DatabaseRole};

use super::bed::Bed;
use super::scenario::lives;

async fn denied(bed: &Bed, role: DatabaseRole, sql: &str) {
    let client = store::connect::connect(&bed.settings.database, &role).await.expect("connects");
    let error = client.batch_execute(sql).await.expect_err(sql);
    assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{sql}: {}", store::describe(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn projectors_write_their_own_tables_only() {
    let mut bed = Bed::new().await;
    bed.emit(&lives(31, 10)).await;
    let running = [bed.start("order-list"), bed.start("daily-sales")];
    bed.caught_up("order-list").await;
    bed.caught_up("daily-sales").await;
    for one in running {
        one.stop().await;
    }
    let role = || DatabaseRole::Projector("order-list");
    for sql in [
        "delete from read.daily_sales_by_partition",
        "update read.order_details set status = 'paid'",
        "insert into read.customer_orders values (gen_random_uuid(), 0, 'c', 'USD', 1)",
        "select count(*) from read.order_lines",
        "insert into throughline.counters values (9, 1, 0)",
        "update throughline.events set version = 1",
        "delete from throughline.events",
        "update throughline.projections set version = 9",
        "create table read.mine ()",
        "delete from throughline.dead_letters",
    ] {
        denied(&bed, role(), sql).await;
    }
    // Its own, it may; another's checkpoint it does not even see.
    let client = store::connect::connect(&bed.settings.database, &role()).await.expect("connects");
    assert!(client.execute("update read.order_list set version = version", &[]).await.expect("its own") > 0);
    let moved = client
        .execute("update throughline.checkpoints set seq = 0 where projection = 'daily-sales'", &[])
        .await
        .expect("no error, no rows");
    assert_eq!(moved, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reader_only_reads() {
    let bed = Bed::new().await;
    let client = store::connect::connect(&bed.settings.database, &DatabaseRole::Reader).await.expect("connects");
    for relation in ["order_list", "order_details", "order_lines", "customer_summary", "daily_sales", "order_history"] {
        client.query(&format!("select * from read.{relation}"), &[]).await.expect("reads");
    }
    client.query("select * from throughline.checkpoints", &[]).await.expect("reads checkpoints");
    for sql in [
        "insert into read.order_history select * from read.order_history",
        "delete from read.order_list",
        "update throughline.checkpoints set seq = 0",
        "update throughline.projections set paused = true",
        "select count(*) from throughline.events",
    ] {
        denied(&bed, DatabaseRole::Reader, sql).await;
    }
}

/// Databases of one cluster are installed at once: each needs the same roles, and none may trip over
/// another's that is not committed yet.
#[tokio::test(flavor = "multi_thread")]
async fn roles_are_made_once_however_many_begin() {
    const SESSIONS: usize = 8;
    let bed = Bed::new().await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(store::connect::connect(&bed.settings.database, &DatabaseRole::Owner).await.expect("connects"));
    }
    for round in 0..20 {
        let role = format!("throughline_test_{}_{round}", uuid::Uuid::new_v4().simple());
        let made = sessions.iter().map(|session| store::roles::ensure(session, &role, Some("throughline_projector")));
        for outcome in futures_util::future::join_all(made).await {
            outcome.expect("the role is there");
        }
        bed.owner.batch_execute(&format!("drop role {role}")).await.expect("dropped");
    }
}
