//! What a stopped partition keeps is set apart in pieces: more of it than a statement could move, whoever is
//! killed at it, and whatever happens to it meanwhile.

use throughline::settings::Settings;
use throughline::store::partitions::{self, Turn};
use throughline::store::{DatabaseRole, Destination, connect};
use tokio_postgres::Client;

use crate::floor::number;
use crate::harness::{Harness, eventually};
use crate::outbox;

/// The partition that is not published.
const STOPPED: i32 = 2;
const OLD: &str = "outbox_past";

struct Past {
    harness: Harness,
    client: Client,
    events: Destination,
}

impl Past {
    /// A time partition of the past with `stopped` rows of one destination partition that stands, and a few of all
    /// others, published.
    async fn new(name: &str, stopped: i64) -> Self {
        let mut harness = Harness::bare(name).await;
        harness.install().await;
        harness.settings.database.statement_timeout_ms = 400;
        let mut client = unhurried(&harness.settings).await;
        let events = outbox::events(&client, &harness.names().events()).await;
        for partition in 0..events.partitions {
            outbox::append(&mut client, events.id, partition, if partition == STOPPED { stopped } else { 10 }).await;
        }
        client
            .batch_execute(&format!(
                "create table throughline.{OLD} partition of throughline.outbox for values
                     from ('2020-01-01 00:00:00+00') to ('2020-01-01 00:30:00+00');
                 update throughline.outbox set created_at = '2020-01-01 00:10:00+00';
                 update throughline.relay_leases l set published = c.last_seq from throughline.counters c
                 where (c.partition, c.topic) = (l.partition, l.topic) and c.partition <> {STOPPED}"
            ))
            .await
            .expect("the past");
        Self { harness, client, events }
    }

    /// A process that keeps house.
    async fn keeper(&self) -> Client {
        connect::connect(&self.harness.settings.database, &DatabaseRole::Maintenance).await.expect("connects")
    }

    /// One piece: rows moved, and whether it was the last.
    async fn piece(&self, keeper: &Client) -> Option<(i64, bool)> {
        let piece = "select moved, complete from throughline.hold_piece('30 min')";
        keeper.query_opt(piece, &[]).await.expect("a piece").map(|row| (row.get(0), row.get(1)))
    }

    async fn count(&self, what: &str) -> i64 {
        number(&self.client, &format!("select count(*) from {what}")).await
    }

    async fn spans(&self) -> Vec<String> {
        let names = "select name::text from throughline.spans('outbox') where lower_bound < '2021-01-01'";
        self.client.query(names, &[]).await.expect("spans").iter().map(|row| row.get(0)).collect()
    }

    /// The numbers of the stopped partition are in the past without a hole, once each, behind those published.
    async fn assert_whole(&self, first: i64, last: i64) {
        let found = format!(
            "select count(*), count(distinct seq), min(seq), max(seq) from throughline.outbox
             where partition = {STOPPED} and topic = {} and seq >= {first} and created_at < '2021-01-01'",
            self.events.id
        );
        let row = self.client.query_one(&found, &[]).await.expect("rows");
        let found: (i64, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!(found, (last - first + 1, last - first + 1, first, last));
    }
}

async fn unhurried(settings: &Settings) -> Client {
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
    client.batch_execute("set statement_timeout = 0; set lock_timeout = '30s'").await.expect("takes its time");
    client
}

/// Processes are killed in the middle of a piece, again and again: others go on where it stopped, and the rows of
/// all others go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_statement_can_move_goes_in_pieces_whoever_is_killed() {
    const ROWS: i64 = 120_000;
    let past = Past::new("held_pieces", ROWS).await;
    let mut moved = 0;
    loop {
        let victim = past.keeper().await;
        let pid: i32 = victim.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        let killed = tokio::spawn(async move { victim.query("select throughline.hold_piece('30 min')", &[]).await });
        let at_it = format!("pg_stat_activity where pid = {pid} and query like '%hold_piece%' and state = 'active'");
        eventually("it is at it", async || (past.count(&at_it).await == 1 || killed.is_finished()).then_some(())).await;
        past.client.execute("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
        let was_killed = killed.await.expect("no panic").is_err();
        let gone = format!("pg_stat_activity where pid = {pid}");
        eventually("it is gone", async || (past.count(&gone).await == 0).then_some(())).await;
        if past.spans().await != [OLD] {
            break; // It came through before it was killed.
        }
        let keeper = past.keeper().await;
        let (piece, complete) = past.piece(&keeper).await.expect("there is more");
        assert!(piece > 0 && (piece < ROWS / 2), "{piece} rows, killed before: {was_killed}");
        moved += piece;
        if complete {
            break;
        }
        assert_eq!(past.spans().await, [OLD], "a copy that is not complete is no partition");
        // The rest by turns, as a process does.
        if moved > ROWS / 4 {
            let turn = partitions::maintain(&keeper, &past.harness.settings.database).await.expect("a turn");
            if !turn.held.is_empty() {
                break;
            }
        }
    }
    assert_eq!(past.spans().await, [format!("{OLD}_held")]);
    past.assert_whole(1, ROWS).await;
    assert_eq!(past.count("throughline.outbox where created_at < '2021-01-01'").await, ROWS, "only what waits is kept");
    let plain = "pg_constraint where conrelid = 'throughline.outbox_past_held'::regclass and conname = 'within_span'";
    assert_eq!(past.count(plain).await, 0);
    let keeper = past.keeper().await;
    assert_eq!(past.piece(&keeper).await, None, "and not again");
}

/// It is published, and written to, while it is copied: what was published since may stay, what came late is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_is_kept_and_what_is_published_meanwhile_is_not_copied() {
    const ROWS: i64 = 60_000;
    let past = Past::new("held_late", ROWS).await;
    let keeper = past.keeper().await;
    let (copied, complete) = past.piece(&keeper).await.expect("a piece");
    assert!(!complete, "{copied} rows at once");
    let publish =
        format!("update throughline.relay_leases set published = $1 where partition = {STOPPED} and topic = $2");
    let published = ROWS - 1_000;
    past.client.execute(&publish, &[&published, &past.events.id]).await.unwrap();
    // A writer whose clock stood still: it is in the middle of its transaction when the last piece comes.
    let mut late = unhurried(&past.harness.settings).await;
    let transaction = late.transaction().await.unwrap();
    let first = outbox::take(&transaction, past.events.id, STOPPED, 7).await;
    outbox::insert(&transaction, past.events.id, STOPPED, first, 7, 20).await;
    let back = "update throughline.outbox set created_at = '2020-01-01 00:20:00+00' where created_at > '2021-01-01'";
    transaction.execute(back, &[]).await.unwrap();
    assert_eq!(past.piece(&keeper).await, None, "it steps back behind the writer");
    assert_eq!(past.spans().await, [OLD]);
    transaction.commit().await.unwrap();
    eventually("it is complete", async || past.piece(&keeper).await.is_some_and(|piece| piece.1).then_some(())).await;
    past.assert_whole(published + 1, ROWS + 7).await;
    let kept = past.count("throughline.outbox where created_at < '2021-01-01'").await;
    assert!(kept <= copied + 1_007, "{kept} rows are kept, {copied} were copied before");
}

/// It goes on and is through before the copy is complete: both go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_nobody_needs_any_more_goes() {
    let past = Past::new("held_needless", 60_000).await;
    let keeper = past.keeper().await;
    assert!(!past.piece(&keeper).await.expect("a piece").1);
    let held = "pg_class where relname = 'outbox_past_held'";
    assert_eq!(past.count(held).await, 1);
    let publish = "update throughline.relay_leases set published = 60000 where partition = 2 and topic = $1";
    past.client.execute(publish, &[&past.events.id]).await.unwrap();
    eventually("the old one goes", async || {
        partitions::maintain(&keeper, &past.harness.settings.database).await.expect("a turn");
        past.spans().await.is_empty().then_some(())
    })
    .await;
    let turn = partitions::maintain(&keeper, &past.harness.settings.database).await.expect("a turn");
    assert_eq!((turn, past.count(held).await), (Turn::default(), 0));
}

/// Nobody else may call what moves rows; a program of before calls what it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_before_sets_rows_apart_as_well() {
    let past = Past::new("held_before", 2_000).await;
    for role in [DatabaseRole::Writer, DatabaseRole::Relay, DatabaseRole::Reader] {
        let other = connect::connect(&past.harness.settings.database, &role).await.expect("connects");
        for call in ["hold_piece('30 min')", "copy_unpublished('outbox_past', 'outbox', now())"] {
            assert!(other.query(&format!("select throughline.{call}"), &[]).await.is_err(), "{role:?} {call}");
        }
    }
    let keeper = past.keeper().await;
    let held = keeper.query("select throughline.hold_unpublished_outbox('30 min')", &[]).await.expect("held");
    assert_eq!(held.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>(), ["outbox_past_held"]);
    past.assert_whole(1, 2_000).await;
}
