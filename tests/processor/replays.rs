//! Dead commands of one destination partition that share an id: a permit is for one letter's stream.

use std::sync::Arc;

use serde_json::{Value, json};
use throughline::engine::destination_partition;
use throughline::store::dead_letters::Parked;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::floor::{Produced, Running, Source, command, consumed, number, sound};
use crate::fragile::{FragileCodec, FragileContext, mend};
use crate::harness::{Harness, eventually};
use crate::odd::{letters, throughline, told};

/// Orders whose events go to one partition, and the letters of the commands that died there.
struct Dead {
    harness: Harness,
    client: Client,
    source: Source,
    running: Running,
    records: Vec<Produced>,
}

impl Dead {
    /// Sends `asks` to one commands partition, where they die of `defect`, and mends it.
    async fn new(name: &str, defect: &str, asks: &[Value]) -> Self {
        let harness = Harness::new(name).await;
        let (client, source) = (harness.client().await, Source::new(&harness));
        let records: Vec<Produced> =
            asks.iter().map(|ask| Produced { partition: Some(0), ..command(&harness, ask) }).collect();
        source.produce(&records);
        let running = Running::start_as::<FragileContext>(&harness.settings, Arc::new(FragileCodec));
        consumed(&client, records.len() as i64).await;
        assert_eq!(number(&client, "select count(*) from throughline.events").await, 0);
        mend(defect);
        Self { harness, client, source, running, records }
    }

    async fn letters(&self) -> Vec<Parked> {
        letters(&self.client).await
    }

    async fn replay(&self, arguments: &[&str]) {
        let replayed = throughline(&self.harness, &[&["dlq", "replay", "--yes"], arguments].concat()).await;
        assert!(replayed.status.success(), "{}", told(&replayed));
    }

    /// Streams that have events, and how many; waits until there are `total`.
    async fn events(&self, total: i64) -> Vec<(Uuid, i64)> {
        let all = "select count(*) from throughline.events";
        eventually("they are decided anew", async || (number(&self.client, all).await >= total).then_some(())).await;
        let by_stream = "select stream_id, count(*) from throughline.events group by 1 order by 1";
        let rows = self.client.query(by_stream, &[]).await.expect("events");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Copies of all records, from anybody: none is decided by them.
    async fn copies_change_nothing(&self, produced: i64, accepted: i64, failed: i64) {
        self.source.produce(&self.records);
        consumed(&self.client, produced + self.records.len() as i64).await;
        let outcomes = |of: &str| format!("select count(*) from throughline.commands where {of}");
        assert_eq!(number(&self.client, &outcomes("accepted")).await, accepted);
        assert_eq!(number(&self.client, &outcomes("code = 'COMMAND_FAILED'")).await, failed);
        assert_eq!(number(&self.client, "select count(*) from throughline.events").await, accepted);
        assert_eq!(number(&self.client, "select count(*) from throughline.replays").await, 0);
        let open = "select count(*) from throughline.dead_letters where status = 'parked'";
        assert_eq!(number(&self.client, open).await, failed);
    }

    async fn end(self) {
        self.running.stop().await;
        sound(&self.client).await;
    }
}

/// Two orders of one destination partition, the lower one first.
fn neighbours(harness_partitions: i32) -> [Uuid; 2] {
    let first = Uuid::now_v7();
    let partition = destination_partition(first, harness_partitions);
    let second = std::iter::repeat_with(Uuid::new_v4)
        .find(|one| destination_partition(*one, harness_partitions) == partition && *one > first)
        .expect("one in some");
    [first, second]
}

fn partitions() -> i32 {
    throughline::settings::Settings::default().topics.event_partitions
}

fn ask(order: Uuid, id: Uuid, defect: &str) -> Value {
    json!({"orderId": order, "commandId": id, "trouble": defect})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_orders_that_share_an_id_are_each_decided_anew_once() {
    let (orders, id, defect) = (neighbours(partitions()), Uuid::new_v4(), "mendable-both");
    let dead = Dead::new("replays_both", defect, &orders.map(|order| ask(order, id, defect))).await;
    assert_eq!(dead.letters().await.len(), 2);
    dead.replay(&[]).await;
    assert_eq!(dead.events(2).await, orders.map(|order| (order, 1)));
    dead.copies_change_nothing(4, 2, 0).await;
    dead.end().await;
}

/// The other keeps its outcome, its letter and its turn, whichever of the two is replayed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_orders_that_share_an_id_one_alone_is_decided_anew() {
    for which in [0, 1] {
        let (orders, id, defect) = (neighbours(partitions()), Uuid::new_v4(), format!("mendable-one-{which}"));
        let dead = Dead::new("replays_one", &defect, &orders.map(|order| ask(order, id, &defect))).await;
        let letters = dead.letters().await;
        let of = |order: Uuid| {
            let key = order.to_string().into_bytes();
            letters.iter().find(|one| one.letter.key.as_ref() == Some(&key)).expect("a letter").id.to_string()
        };
        dead.replay(&["--id", &of(orders[which])]).await;
        assert_eq!(dead.events(1).await, [(orders[which], 1)]);
        dead.copies_change_nothing(3, 1, 1).await;
        dead.replay(&["--id", &of(orders[1 - which])]).await;
        assert_eq!(dead.events(2).await, orders.map(|order| (order, 1)));
        dead.copies_change_nothing(6, 2, 0).await;
        dead.end().await;
    }
}

/// The very same command twice is one command; without an id of its own it is two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_record_twice_is_decided_anew_as_often_as_it_died() {
    let (order, defect) = (Uuid::now_v7(), "mendable-twice");
    let named = ask(order, Uuid::new_v4(), defect);
    let dead = Dead::new("replays_twice", defect, &[named.clone(), named]).await;
    assert_eq!(dead.letters().await.len(), 1, "the second is a duplicate of the first");
    dead.replay(&[]).await;
    assert_eq!(dead.events(1).await, [(order, 1)]);
    dead.copies_change_nothing(3, 1, 0).await;
    dead.end().await;

    let defect = "mendable-nameless";
    let nameless = json!({"orderId": order, "trouble": defect});
    let dead = Dead::new("replays_nameless", defect, &[nameless.clone(), nameless]).await;
    let letters = dead.letters().await;
    assert_eq!(letters.len(), 2);
    // The later one alone, then all that is open.
    dead.replay(&["--id", &letters.iter().map(|one| one.id).max().unwrap_or_default().to_string()]).await;
    assert_eq!(dead.events(1).await, [(order, 1)]);
    dead.replay(&[]).await;
    assert_eq!(dead.events(2).await, [(order, 2)]);
    let ids = "select count(distinct command_id) from throughline.commands where accepted";
    assert_eq!(number(&dead.client, ids).await, 2);
    dead.end().await;
}
