//! The references, written by hand: no library of ours between them and the tables.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::try_join;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use reference::orders::domain::Order;
use reference::orders::parse_command;
use throughline::engine::ids::event_id;
use throughline::engine::{Aggregate, EventCodec, destination_partition};
use throughline::kafka::client;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::figures::{Figure, Machine};
use crate::harness::Harness;
use crate::workload::{Item, Workload, codec};

const BATCH: usize = 2_000;
const CONNECTIONS: usize = 4;
const EVENTS: &str = "
    insert into throughline.events (partition, topic, seq, stream_id, version, event_id, type, schema_version, command_id,
                                    correlation_id, recorded_at, payload)
    select p, 1, s, o, 1, e, 'OrderPlaced', 3, c, c::text, now(), b
    from unnest($1::int[], $2::bigint[], $3::uuid[], $4::uuid[], $5::uuid[], $6::bytea[]) as t (p, s, o, e, c, b)";
const OUTBOX: &str = "
    insert into throughline.outbox (partition, topic, seq, key, type, message_id, subject, schema_version, stream_version,
                                    command_id, correlation_id, created_at, value)
    select p, 1, s, o, 'throughline.orders.OrderPlaced', e, o, 3, 1, c, c::text, now(), b
    from unnest($1::int[], $2::bigint[], $3::uuid[], $4::uuid[], $5::uuid[], $6::bytea[]) as t (p, s, o, e, c, b)";
const OUTCOMES: &str = "
    insert into throughline.commands (partition, topic, command_id, stream_id, payload_hash, accepted, version, seq,
                                      correlation_id, decided_at)
    select p, 1, c, o, '\\x00112233445566778899aabbccddeeff', true, 1, s, c::text, now()
    from unnest($1::int[], $2::bigint[], $3::uuid[], $4::uuid[]) as t (p, s, o, c)";
const COUNTERS: &str = "
    update throughline.counters c set last_seq = t.s from unnest($1::int[], $2::bigint[]) as t (p, s)
    where c.partition = t.p and c.topic = 1";

/// A connection that appends rows by sets, and the sequence numbers it gives out.
struct Appender {
    client: Client,
    statements: Vec<Statement>,
    last_seq: Vec<i64>,
}

/// What one command becomes.
struct Row<'a> {
    order: Uuid,
    command: Uuid,
    event: &'a [u8],
}

impl Appender {
    async fn new(harness: &Harness) -> Self {
        let client = harness.client().await;
        let mut statements = Vec::new();
        for statement in [EVENTS, OUTBOX, OUTCOMES, COUNTERS] {
            statements.push(client.prepare(statement).await.expect("prepared"));
        }
        Self { client, statements, last_seq: vec![0; harness.settings.topics.event_partitions as usize] }
    }

    /// One transaction, one round trip.
    async fn append(&mut self, rows: &[Row<'_>]) {
        let mut seqs = Vec::with_capacity(rows.len());
        let mut partitions = Vec::with_capacity(rows.len());
        for row in rows {
            let partition = destination_partition(row.order, self.last_seq.len() as i32);
            self.last_seq[partition as usize] += 1;
            partitions.push(partition);
            seqs.push(self.last_seq[partition as usize]);
        }
        let orders: Vec<Uuid> = rows.iter().map(|row| row.order).collect();
        let commands: Vec<Uuid> = rows.iter().map(|row| row.command).collect();
        let events: Vec<Uuid> = rows.iter().map(|row| event_id("orders", row.order, 1, row.command)).collect();
        let payloads: Vec<&[u8]> = rows.iter().map(|row| row.event).collect();
        // Of its own partitions alone: another connection may hold the others' counters.
        let mut moved = partitions.clone();
        moved.sort_unstable();
        moved.dedup();
        let last: Vec<i64> = moved.iter().map(|partition| self.last_seq[*partition as usize]).collect();
        let client = &self.client;
        try_join!(
            client.batch_execute("begin"),
            async {
                client
                    .execute(&self.statements[0], &[&partitions, &seqs, &orders, &events, &commands, &payloads])
                    .await
                    .map(drop)
            },
            async {
                client
                    .execute(&self.statements[1], &[&partitions, &seqs, &orders, &events, &commands, &payloads])
                    .await
                    .map(drop)
            },
            async { client.execute(&self.statements[2], &[&partitions, &seqs, &orders, &commands]).await.map(drop) },
            async { client.execute(&self.statements[3], &[&moved, &last]).await.map(drop) },
            client.batch_execute("commit"),
        )
        .expect("appended");
    }
}

fn row(item: &Item) -> Row<'_> {
    Row { order: item.order, command: item.command, event: &item.event }
}

/// Items by connection: a destination partition is one connection's alone.
fn shares<'a>(harness: &Harness, items: &'a [Item], connections: usize) -> Vec<Vec<&'a Item>> {
    let mut shares = vec![Vec::new(); connections];
    for item in items {
        let partition = destination_partition(item.order, harness.settings.topics.event_partitions);
        shares[partition as usize % connections].push(item);
    }
    shares
}

async fn appenders(harness: &Harness, connections: usize) -> Vec<Appender> {
    let mut appenders = Vec::new();
    for _ in 0..connections {
        appenders.push(Appender::new(harness).await);
    }
    appenders
}

/// Appends by sets, and nothing else: the ceiling.
pub async fn sets(harness: &Harness, workload: &Workload, machine: &Machine, connections: usize) -> Figure {
    let shares = shares(harness, &workload.items, connections);
    let mut appenders = appenders(harness, connections).await;
    let from = machine.moment().await;
    join_all(appenders.iter_mut().zip(&shares).map(async |(appender, share)| {
        for batch in share.chunks(BATCH) {
            appender.append(&batch.iter().copied().map(row).collect::<Vec<_>>()).await;
        }
    }))
    .await;
    Machine::figure(workload.items.len(), from, machine.moment().await)
}

/// One transaction a command, a few connections at once, statements of each sent together.
pub async fn one_by_one(harness: &Harness, workload: &Workload, machine: &Machine) -> Figure {
    // A tenth of the commands: it is that slow, and its rate does not depend on the number.
    let items = &workload.items[..workload.items.len() / 10];
    let shares = shares(harness, items, CONNECTIONS);
    let mut appenders = appenders(harness, CONNECTIONS).await;
    let from = machine.moment().await;
    join_all(appenders.iter_mut().zip(&shares).map(async |(appender, share)| {
        for item in share {
            appender.append_one(row(item)).await;
        }
    }))
    .await;
    Machine::figure(items.len(), from, machine.moment().await)
}

impl Appender {
    async fn append_one(&mut self, row: Row<'_>) {
        let partition = destination_partition(row.order, self.last_seq.len() as i32);
        self.last_seq[partition as usize] += 1;
        let seq = self.last_seq[partition as usize];
        let (partitions, seqs, orders, commands) = ([partition], [seq], [row.order], [row.command]);
        let (events, payloads) = ([event_id("orders", row.order, 1, row.command)], [row.event]);
        let (partitions, seqs, orders, commands) =
            (partitions.as_slice(), seqs.as_slice(), orders.as_slice(), commands.as_slice());
        let (events, payloads) = (events.as_slice(), payloads.as_slice());
        let client = &self.client;
        try_join!(
            client.batch_execute("begin"),
            async {
                client
                    .execute(&self.statements[0], &[&partitions, &seqs, &orders, &events, &commands, &payloads])
                    .await
                    .map(drop)
            },
            async {
                client
                    .execute(&self.statements[1], &[&partitions, &seqs, &orders, &events, &commands, &payloads])
                    .await
                    .map(drop)
            },
            async { client.execute(&self.statements[2], &[&partitions, &seqs, &orders, &commands]).await.map(drop) },
            async { client.execute(&self.statements[3], &[&partitions, &seqs]).await.map(drop) },
            client.batch_execute("commit"),
        )
        .expect("appended");
    }
}

/// From Kafka to the tables by hand: poll, parse, decide, encode, append. No group, no fencing, no
/// look-up of ids or streams. One connection; polling, parsing and deciding go on beside it.
pub async fn from_kafka(harness: &Harness, workload: &Workload, machine: &Machine) -> Figure {
    workload.produce(harness);
    let mut appender = Appender::new(harness).await;
    let codec = codec();
    let consumer: BaseConsumer = client::consumer(&harness.settings.kafka, "by-hand", "").create().expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    for partition in 0..harness.settings.topics.command_partitions {
        let topic = harness.names().commands();
        assignment.add_partition_offset(&topic, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&assignment).expect("assigned");
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Vec<(Uuid, Uuid, Vec<u8>)>>(2);
    let total = workload.items.len();
    let polling = std::thread::spawn(move || {
        let mut batch = Vec::with_capacity(BATCH);
        let mut seen = 0;
        while seen < total {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                seen += 1;
                let parsed = parse_command(message.payload().expect("a value"), Uuid::nil()).expect("valid");
                let events = Order::default().decide(&parsed.payload).expect("accepted");
                let encoded = codec.encode(&events[0]).expect("encoded");
                batch.push((parsed.meta.stream_id, parsed.meta.command_id, encoded.bytes));
            }
            if batch.len() == BATCH || seen == total {
                sender.blocking_send(std::mem::take(&mut batch)).expect("the appender lives");
            }
        }
    });
    let mut from = None;
    let mut first = 0;
    while let Some(batch) = receiver.recv().await {
        let rows: Vec<Row<'_>> =
            batch.iter().map(|(order, command, event)| Row { order: *order, command: *command, event }).collect();
        appender.append(&rows).await;
        if from.is_none() {
            // Measured from the first commit on, like the processor: joining is not in it.
            first = rows.len();
            from = Some(machine.moment().await);
        }
    }
    polling.join().expect("the poller ends");
    Machine::figure(total - first, from.expect("a batch"), machine.moment().await)
}
