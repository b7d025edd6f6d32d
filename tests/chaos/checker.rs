//! Reads what is left, by SQL and Kafka's client alone, and tells each promise that is broken.
//!
//! Shares no code with the pipeline: it knows the README, the tables and the shape of records.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::history::{Answer, History};
use crate::model::Order;
use crate::neighbours::{Neighbours, ODD_ORDER, PARTITIONS};
use crate::process::{command, ended};
use crate::topics::{self, Seen};

/// What is told of one promise, at most.
const TOLD_MAX: usize = 5;

/// Waits until every command is decided, published, shown and processed (I13).
pub async fn drained(neighbours: &Neighbours, most: Duration) -> Result<(), String> {
    let (client, began) = (neighbours.client().await, Instant::now());
    let commands = neighbours.harness.names().commands();
    let ends = |partitions: &BTreeMap<i32, Vec<Seen>>| -> Vec<i64> {
        partitions.values().map(|records| records.last().map_or(0, |record| record.offset + 1)).collect()
    };
    let brokers = neighbours.harness.settings.kafka.brokers.clone();
    loop {
        // Process managers send commands as long as they handle events: the end moves.
        let wanted = ends(&topics::read(&brokers, &commands, PARTITIONS, false));
        let row = client
            .query_one(
                "select
                    (select array_agg(next_offset order by partition) from throughline.offsets
                     where source_topic = $1) as decided,
                    (select count(*) from throughline.counters c left join throughline.relay_leases l using (partition, topic)
                     where c.last_seq > coalesce(l.published, 0)) as unpublished,
                    (select count(*) from throughline.checkpoints k join throughline.counters c using (partition)
                     join throughline.topics t on t.id = c.topic
                     where t.name like '%orders-events' and k.projection <> 'payments' and k.generation = 'read'
                       and k.seq < c.last_seq) as unshown,
                    (select count(*) from throughline.process_checkpoints k join throughline.topics t on t.name = k.topic
                     join throughline.counters c on c.topic = t.id and c.partition = k.partition
                     where k.seq < c.last_seq) as unprocessed,
                    (select count(*) from throughline.process_commands where sent_at is null)
                    + (select count(*) from throughline.process_deadlines) as undone",
                &[&commands],
            )
            .await
            .expect("the store tells how far it is");
        let decided: Option<Vec<i64>> = row.get("decided");
        let left: Vec<i64> = ["unpublished", "unshown", "unprocessed", "undone"].map(|name| row.get(name)).to_vec();
        if decided.as_deref() == Some(&wanted) && left.iter().all(|left| *left == 0) {
            return Ok(());
        }
        if began.elapsed() > most {
            return Err(format!(
                "I13: not drained within {most:?}: decided {decided:?} of {wanted:?}; unpublished, unshown, \
                 unprocessed, undone: {left:?}"
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A row of `throughline.commands`.
struct Outcome {
    accepted: bool,
    code: Option<String>,
    version: Option<i64>,
}

/// Everything that is broken.
pub async fn check(neighbours: &Neighbours, history: &History) -> Vec<String> {
    let (client, names) = (neighbours.client().await, neighbours.harness.names());
    let brokers = neighbours.harness.settings.kafka.brokers.clone();
    let log = topics::read(&brokers, &names.commands(), PARTITIONS, false);
    let published = topics::read(&brokers, &names.events(), PARTITIONS, true);
    let mut broken = Broken::default();

    let rows = client
        .query("select stream_id, command_id, accepted, code, version from throughline.commands", &[])
        .await
        .expect("outcomes");
    let mut outcomes: HashMap<(Uuid, Uuid), Outcome> = HashMap::new();
    for row in &rows {
        let (key, outcome) =
            ((row.get(0), row.get(1)), Outcome { accepted: row.get(2), code: row.get(3), version: row.get(4) });
        let doubled = outcomes.insert(key, outcome).is_some();
        broken.unless(!doubled || key.0 == ODD_ORDER, "I1", || {
            format!("command {} of {} has two outcomes", key.1, key.0)
        });
    }
    answers(history, &outcomes, &mut broken);
    let orders = replay(&log, &outcomes, &mut broken);
    poison(&client, &log, &outcomes, &mut broken).await;
    stored(&client, &published, &outcomes, &mut broken).await;
    tables(&client, &orders, &mut broken).await;
    processes(&client, &mut broken).await;

    for row in client.query("select * from public.went_back", &[]).await.expect("checkpoints") {
        broken.add(
            "I8",
            format!(
                "{}/{} went from {} to {}",
                row.get::<_, &str>(0),
                row.get::<_, i32>(1),
                row.get::<_, i64>(2),
                row.get::<_, i64>(3)
            ),
        );
    }
    history.unseen.lock().unwrap().iter().for_each(|told| broken.add("I11", told.clone()));
    let verified = ended(&mut command(&neighbours.harness, &["verify", "--full"])).await;
    broken.unless(verified.code == 0, "verify", || format!("{}{}", verified.stdout, verified.stderr));
    broken.told()
}

/// Nothing answered is missing, and nothing refused happened (I1, I4).
fn answers(history: &History, outcomes: &HashMap<(Uuid, Uuid), Outcome>, broken: &mut Broken) {
    for call in history.calls() {
        let what = || format!("command {} of {} by {}", call.command, call.order, call.way);
        let outcome = outcomes.get(&(call.order, call.command));
        match &call.answer {
            Answer::Acknowledged => {
                broken.unless(outcome.is_some(), "I1", || format!("{} was acknowledged and has no outcome", what()))
            }
            Answer::Accepted { version } => {
                let same = outcome.is_some_and(|one| one.accepted && (version.is_none() || one.version == *version));
                broken.unless(same, "I1", || format!("{} was answered 201 and its outcome is another", what()));
            }
            Answer::Refused(code) => {
                let same = outcome.is_some_and(|one| !one.accepted && one.code.as_ref() == Some(code));
                broken.unless(same, "I4", || format!("{} was refused {code} and its outcome is another", what()));
            }
            Answer::NotTaken(_) | Answer::Unknown => {}
        }
    }
}

/// The log decided again by the model: the outcomes are its answers (I2, I9). The orders that it comes to.
fn replay(
    log: &BTreeMap<i32, Vec<Seen>>,
    outcomes: &HashMap<(Uuid, Uuid), Outcome>,
    broken: &mut Broken,
) -> HashMap<Uuid, Order> {
    let (mut orders, mut met): (HashMap<Uuid, Order>, HashSet<(Uuid, Uuid)>) = Default::default();
    for record in log.values().flatten() {
        let command: Option<Value> = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        let id = |name: &str| command.as_ref()?[name].as_str()?.parse::<Uuid>().ok();
        let (Some(command), Some(order), Some(command_id)) = (&command, id("orderId"), id("commandId")) else {
            continue;
        };
        if order == ODD_ORDER || !met.insert((order, command_id)) {
            continue;
        }
        let state = orders.entry(order).or_default();
        let expected = state.decide(command);
        let Some(outcome) = outcomes.get(&(order, command_id)) else {
            broken.add("I1", format!("command {command_id} of {order} is in the log and has no outcome"));
            continue;
        };
        let same = outcome.accepted == expected.is_ok()
            && outcome.code.as_deref() == expected.err()
            && outcome.version == Some(state.version);
        broken.unless(same, "I9", || {
            format!(
                "command {command_id} of {order}: the model says {expected:?} at version {}, the outcome {} {:?} at {:?}",
                state.version, outcome.accepted, outcome.code, outcome.version
            )
        });
    }
    for (order, command_id) in outcomes.keys().filter(|(order, _)| *order != ODD_ORDER && !order.is_nil()) {
        let known = met.contains(&(*order, *command_id)) || !orders.contains_key(order);
        broken.unless(known, "I1", || format!("an outcome of {command_id} of {order}, which nobody asked for"));
    }
    orders
}

/// What nobody can read is kept as a dead letter, whole (I12).
async fn poison(
    client: &Client,
    log: &BTreeMap<i32, Vec<Seen>>,
    outcomes: &HashMap<(Uuid, Uuid), Outcome>,
    broken: &mut Broken,
) {
    let rows = client
        .query(
            "select source_partition, source_offset, value from throughline.dead_letters where kind = 'command'",
            &[],
        )
        .await
        .expect("letters");
    let letters: HashMap<(i32, Option<i64>), Option<Vec<u8>>> =
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let told: HashSet<Uuid> = outcomes.keys().map(|(order, _)| *order).collect();
    for (partition, record) in log.iter().flat_map(|(partition, all)| all.iter().map(move |one| (*partition, one))) {
        let value: Option<Value> = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        let in_value = value.as_ref().and_then(|value| value["orderId"].as_str()?.parse::<Uuid>().ok());
        let in_key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()?.parse::<Uuid>().ok());
        // Whose it is, its outcome tells; nobody would look for that of the others.
        if !in_value.or(in_key).is_some_and(|order| told.contains(&order)) {
            let kept = letters.get(&(partition, Some(record.offset))).is_some_and(|kept| *kept == record.value);
            broken.unless(kept, "I12", || format!("partition {partition} offset {}: not kept", record.offset));
        }
    }
}

/// The store is dense and equals the topic by content (I2, I3, I5, I6).
async fn stored(
    client: &Client,
    published: &BTreeMap<i32, Vec<Seen>>,
    outcomes: &HashMap<(Uuid, Uuid), Outcome>,
    broken: &mut Broken,
) {
    let rows = client
        .query(
            "select e.partition, e.seq, e.stream_id, e.version, e.event_id, e.command_id, e.payload, e.type
             from throughline.events e join throughline.topics t on t.id = e.topic
             where t.name like '%orders-events' order by 1, 2",
            &[],
        )
        .await
        .expect("events");
    let (mut versions, mut ids, mut by_place) = (HashMap::<Uuid, i64>::new(), HashSet::new(), HashMap::new());
    let (mut next, mut caused) = (HashMap::<i32, i64>::new(), HashSet::new());
    for row in &rows {
        let (partition, seq, stream, version): (i32, i64, Uuid, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let (event, command): (Uuid, Uuid) = (row.get(4), row.get(5));
        let last = next.entry(partition).or_default();
        broken.unless(seq == *last + 1, "I6", || format!("partition {partition}: seq {seq} follows {last}"));
        *last = seq;
        let last = versions.entry(stream).or_default();
        broken.unless(version == *last + 1, "I3", || format!("order {stream}: version {version} follows {last}"));
        *last = version;
        broken.unless(ids.insert(event), "I2", || format!("two events have the id {event}"));
        broken.unless(caused.insert((stream, command)), "I2", || format!("command {command} of {stream} acted twice"));
        let accepted = outcomes.get(&(stream, command)).is_some_and(|one| one.accepted);
        broken.unless(accepted, "I4", || format!("an event of {command} of {stream}, which was not accepted"));
        by_place.insert((partition, seq), (event, stream, row.get::<_, Vec<u8>>(6)));
    }
    for (partition, records) in published {
        let mut reached = 0;
        for record in records {
            let Some(seq) = record.headers.get("seq").and_then(|text| text.parse::<i64>().ok()) else {
                broken.add("I5", format!("partition {partition} offset {}: no seq", record.offset));
                continue;
            };
            broken.unless(seq <= reached + 1, "I5", || format!("partition {partition}: seq {seq} follows {reached}"));
            reached = reached.max(seq);
            let same = by_place.get(&(*partition, seq)).is_some_and(|(event, stream, payload)| {
                record.headers.get("ce_id") == Some(&event.to_string())
                    && record.key.as_deref() == Some(stream.to_string().as_bytes())
                    && record.value.as_ref() == Some(payload)
            });
            broken.unless(same, "I5", || {
                format!("partition {partition} seq {seq}: the topic has another event than the store")
            });
        }
        let last = next.get(partition).copied().unwrap_or_default();
        broken.unless(reached == last, "I6", || {
            format!("partition {partition}: published to {reached}, stored to {last}")
        });
    }
}

/// Read tables equal the model's fold (I7, I10).
async fn tables(client: &Client, orders: &HashMap<Uuid, Order>, broken: &mut Broken) {
    let placed: HashMap<&Uuid, &Order> = orders.iter().filter(|(_, order)| order.placed).collect();
    for (table, counts) in [("order_list", false), ("order_details", false), ("order_history", true)] {
        let rows: i64 =
            client.query_one(&format!("select count(*) from read.{table}"), &[]).await.expect("rows").get(0);
        let expected: i64 = if counts { placed.values().map(|order| order.version).sum() } else { placed.len() as i64 };
        broken.unless(rows == expected, "I7", || format!("read.{table} has {rows} rows, the model {expected}"));
    }
    let rows = client
        .query(
            "select order_id, status, (total * 100)::bigint, (paid * 100)::bigint, version from read.order_list",
            &[],
        )
        .await
        .expect("order_list");
    for row in &rows {
        let id: Uuid = row.get(0);
        let shown = (row.get::<_, String>(1), row.get::<_, i64>(2), row.get::<_, i64>(3), row.get::<_, i64>(4));
        let expected = placed.get(&id).map(|order| (order.status().to_owned(), order.total, order.paid, order.version));
        broken.unless(Some(&shown) == expected.as_ref(), "I7", || {
            format!("order {id}: {shown:?}, the model {expected:?}")
        });
    }
}

/// Orders by card end paid or cancelled, unless somebody paid a part by other means, and nothing is sent twice (I10).
async fn processes(client: &Client, broken: &mut Broken) {
    let rows = client
        .query(
            "select l.order_id, l.status from read.order_list l
             join throughline.process_instances i on i.process = 'checkout' and i.instance = l.order_id
             where l.status = 'placed' and l.paid = 0",
            &[],
        )
        .await
        .expect("instances");
    for row in &rows {
        broken.add(
            "I10",
            format!("order {} was to be paid by card and is {}", row.get::<_, Uuid>(0), row.get::<_, &str>(1)),
        );
    }
    let twice = "select c.stream_id, c.command from throughline.process_commands c
                 where c.process = 'checkout' and c.command like 'Authorize%' group by 1, 2 having count(*) > 1";
    let fired = "select instance, count(*) from throughline.process_inputs where input::jsonb ? 'deadline'
                 group by instance, input::text having count(*) > 1";
    for row in &client.query(fired, &[]).await.expect("inputs") {
        broken.add("I10", format!("a deadline of {} fired {} times", row.get::<_, Uuid>(0), row.get::<_, i64>(1)));
    }
    for row in &client.query(twice, &[]).await.expect("commands") {
        broken.add("I10", format!("{} of {} was sent twice", row.get::<_, &str>(1), row.get::<_, Uuid>(0)));
    }
}

/// What is broken, by promise.
#[derive(Default)]
struct Broken(BTreeMap<&'static str, Vec<String>>);

impl Broken {
    fn add(&mut self, promise: &'static str, what: String) {
        self.0.entry(promise).or_default().push(what);
    }

    fn unless(&mut self, holds: bool, promise: &'static str, what: impl FnOnce() -> String) {
        if !holds {
            self.add(promise, what());
        }
    }

    fn told(self) -> Vec<String> {
        let told = |(promise, all): (&'static str, Vec<String>)| {
            let more = all.len().saturating_sub(TOLD_MAX);
            let more = (more > 0).then(|| format!("{promise}: {more} more"));
            all.into_iter().take(TOLD_MAX).map(move |what| format!("{promise}: {what}")).chain(more).collect::<Vec<_>>()
        };
        self.0.into_iter().flat_map(told).collect()
    }
}
