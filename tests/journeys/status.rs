//! `throughline status` answers the night's questions, with an exit code that wakes somebody only for a reason.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;
use throughline::kafka::client;

use crate::harness::{Harness, PATIENCE, eventually};
use crate::process::{Process, command, ended};

/// What is wrong is told within this, from its beginning.
pub const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// The exit code and what was said.
pub async fn status(harness: &Harness) -> (i32, Value) {
    let ended = ended(&mut command(harness, &["status", "--output", "json"])).await;
    let said = serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", ended.stdout, ended.stderr));
    (ended.code, said)
}

/// Waits until nothing needs a person.
pub async fn until_ok(harness: &Harness) -> Value {
    let mut last = Value::Null;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (code, said) = status(harness).await;
        let owned = said["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| ["running", "paused"].contains(&text(row, "state")));
        if code == 0 && owned {
            assert_eq!((&said["ok"], &said["problems"]), (&true.into(), &Value::Array(Vec::new())), "{said}");
            return said;
        }
        assert!(Instant::now() < deadline, "still not well: {code} {} (before: {last})", said["problems"]);
        last = said["problems"].clone();
    }
}

/// Waits until a problem says `word`; no longer than is promised since `since`.
pub async fn until_told(harness: &Harness, since: Instant, word: &str) -> Value {
    loop {
        let (code, said) = status(harness).await;
        let problem = said["problems"].as_array().unwrap().iter().find(|one| text(one, "what").contains(word)).cloned();
        if let Some(problem) = problem {
            assert_eq!((code, &said["ok"]), (3, &false.into()), "{said}");
            assert!(!text(&problem, "cure").is_empty(), "{problem}");
            assert!(since.elapsed() < TOLD_WITHIN, "`{word}` was told after {:?}", since.elapsed());
            return said;
        }
        assert!(since.elapsed() < TOLD_WITHIN * 2, "`{word}` is not told: {code} {}", said["problems"]);
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn lane<'a>(said: &'a Value, name: &str) -> &'a Value {
    said["waiting"].as_array().unwrap().iter().find(|lane| lane["lane"] == name).expect("the lane")
}

async fn send(harness: &Harness, commands: usize) {
    use tokio::io::AsyncWriteExt as _;
    let mut send = command(harness, &["command", "send"]);
    let mut child =
        send.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    for _ in 0..commands {
        let line = serde_json::json!({"type": "PlaceOrder", "commandId": uuid::Uuid::new_v4(), "orderId": uuid::Uuid::new_v4(),
            "customerId": "customer-42", "currency": "USD",
            "items": [{"productId": uuid::Uuid::from_u128(7), "quantity": 1, "unitPrice": "1.00"}]});
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("a line is taken");
    }
    drop(stdin);
    assert!(child.wait().await.expect("it ends").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lives_who_owns_what_and_what_waits_for_nobody() {
    let harness = Harness::new("status_owners").await;
    let started = Instant::now();
    until_told(&harness, started, "no process lives").await;

    let processor = Process::run(&harness, &["processor"]);
    let others = Process::run(&harness, &["relay", "projections", "processes"]);
    let said = until_ok(&harness).await;
    let processes = said["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 2, "{said}");
    for (process, role, loops) in [(&processor, "processor", 1), (&others, "relay", 8)] {
        let row = processes.iter().find(|row| row["pid"] == process.id()).expect("its row");
        assert!(row["roles"].as_array().unwrap().iter().any(|one| one == role), "{row}");
        assert_eq!(row["owns"].as_object().unwrap().len(), loops, "{row}");
        assert_eq!(format!("http://{}", text(row, "admin")), process.admin_url().await);
        assert!(!text(row, "version").is_empty() && !text(row, "lastSeen").is_empty(), "{row}");
        let owner = format!("{}:{}", text(row, "host"), row["pid"]);
        let owned = said["partitions"].as_array().unwrap().iter().filter(|one| text(one, "owner") == owner);
        // Of two contexts: three lanes each; events and results each, six read tables, and four topics for `checkout`.
        assert_eq!(owned.count(), if role == "processor" { 2 * 18 } else { 2 * 12 + 6 * 6 + 4 * 6 });
    }

    // Killed, not stopped: its rows are left behind, and what it owned is nobody's.
    let killed = Instant::now();
    processor.kill().await;
    until_told(&harness, killed, "no process runs the processor").await;
    send(&harness, 7).await;
    let (code, said) = status(&harness).await;
    assert_eq!((code, &lane(&said, "normal")["commands"]), (3, &7.into()), "{said}");
    assert!(lane(&said, "normal")["oldestSeconds"].as_f64().is_some_and(|age| age < 60.0), "{said}");
    assert_eq!(lane(&said, "bulk")["commands"], 0);
    assert_eq!(said["lost"].as_array().unwrap().len(), 1, "{said}");
    let killed = Instant::now();
    others.kill().await;
    until_told(&harness, killed, "no process lives").await;

    let all = Process::run(&harness, &[]);
    let said = until_ok(&harness).await;
    assert_eq!(said["processes"].as_array().unwrap().len(), 1, "{said}");
    eventually("nothing waits", || async {
        let (_, said) = status(&harness).await;
        (lane(&said, "normal")["commands"] == 0 && said["projections"][0]["lagEvents"] == 0).then_some(())
    })
    .await;
    // Stopped in order, it takes its leave.
    assert_eq!(all.terminate().await, 0);
    let (_, said) = status(&harness).await;
    assert_eq!((said["processes"].as_array().unwrap().len(), said["lost"].as_array().unwrap().len()), (0, 2), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_overflow_is_counted_and_is_the_lanes_once_it_is_moved() {
    let harness = Harness::new("status_overflow").await;
    let overflow = harness.names().overflow();
    let producer: BaseProducer = client::producer(&harness.settings.kafka, 1).create().expect("a producer");
    let send = |partition| {
        producer
            .send(BaseRecord::<str, str>::to(&overflow).partition(partition).key("k").payload("{}"))
            .expect("queued");
        producer.flush(Duration::from_secs(10)).expect("delivered");
    };
    eventually("the new topics have leaders", || async {
        let (_, said) = status(&harness).await;
        (lane(&said, "overflow")["commands"] == 0).then_some(())
    })
    .await;
    [1, 1, 1, 4, 4].into_iter().for_each(&send);
    let (_, said) = status(&harness).await;
    assert_eq!((&lane(&said, "overflow")["commands"], text(lane(&said, "overflow"), "topic")), (&5.into(), &*overflow));
    assert!(lane(&said, "overflow")["oldestSeconds"].as_f64().is_some_and(|age| age < 60.0), "{said}");
    assert_eq!(lane(&said, "normal")["commands"], 0, "{said}");
    let screen = ended(&mut command(&harness, &["status"])).await.stdout;
    assert!(screen.lines().any(|line| line.contains("commands, overflow") && line.contains(" 5 ")), "{screen}");

    let api = Process::run(&harness, &["api"]);
    eventually("all is moved", || async {
        let (_, said) = status(&harness).await;
        (lane(&said, "overflow")["commands"] == 0 && lane(&said, "normal")["commands"] == 5).then_some(())
    })
    .await;
    assert_eq!(api.terminate().await, 0);
    // Behind what was moved, not from the first record on.
    send(4);
    let (_, said) = status(&harness).await;
    assert_eq!(lane(&said, "overflow")["commands"], 1, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_is_told_with_reason_and_cure_and_takes_nobody_out() {
    let harness = Harness::new("status_stands").await;
    let client = harness.client().await;
    let (lanes, events, results) = (harness.names().lanes(), harness.names().events(), harness.names().results());
    // A lane's partition beyond its end, and an outbox with a hole.
    client
        .batch_execute(&format!(
            "insert into throughline.offsets (partition, source_topic, group_id, next_offset)
             values (2, '{lane}', '{group}', 1000);
             with topic as (select id from throughline.topics where name = '{results}'),
                  moved as (update throughline.counters set last_seq = 2 where partition = 4 and topic = (select id from topic))
             insert into throughline.outbox (partition, topic, seq, key, type, message_id, subject, command_id,
                                             correlation_id, created_at, value)
             select 4, id, 2, gen_random_uuid(), 'x.y.Z', gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '', now(), ''
             from topic",
            lane = lanes[1],
            group = harness.names().processor_group(1)
        ))
        .await
        .expect("the faults are laid");
    let all = Process::run(&harness, &[]);
    let paused = ended(&mut command(&harness, &["projection", "pause", "order-details"])).await;
    assert_eq!(paused.code, 0, "{}", paused.stderr);
    let admin = all.admin_url().await;
    let ready = async || {
        let answer = reqwest::get(format!("{admin}/readyz?verbose")).await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
    };
    let beyond = format!("processor stands at {}/2", lanes[1]);
    let hole = format!("relay stands at {results}/4");
    for word in [&beyond, &hole] {
        eventually(word, || async {
            let (code, said) = status(&harness).await;
            let told = said["problems"].as_array().unwrap().iter().any(|one| text(one, "what").contains(word.as_str()));
            (code == 3 && told).then_some(())
        })
        .await;
    }
    eventually("ready", || async { (ready().await.0 == 200).then_some(()) }).await;

    // A record that nobody of ours wrote stops the projections, while they run.
    let producer: BaseProducer = client::producer(&harness.settings.kafka, 1).create().expect("a producer");
    producer.send(BaseRecord::<str, str>::to(&events).partition(0).key("k").payload("v")).expect("queued");
    producer.flush(Duration::from_secs(10)).expect("delivered");
    let since = Instant::now();
    let said = until_told(&harness, since, &format!("projection order-list stands at {events}/0")).await;
    let problems = said["problems"].as_array().unwrap();
    assert!(!problems.iter().any(|one| text(one, "what").contains("order-details")), "a pause is no problem: {said}");
    let projection =
        |name: &str| said["projections"].as_array().unwrap().iter().find(|one| one["name"] == name).cloned();
    assert_eq!(projection("order-details").expect("a row")["state"], "paused");
    assert_eq!(projection("order-list").expect("a row")["state"], "standing");
    for (loop_name, topic, partition) in
        [("processor", &lanes[1], 2), ("relay", &results, 4), ("projection order-list", &events, 0)]
    {
        let row =
            said["partitions"].as_array().unwrap().iter().find(|row| {
                row["loop"] == loop_name && row["topic"] == topic.as_str() && row["partition"] == partition
            });
        let row = row.expect("its row");
        assert_eq!(row["state"], "standing", "{row}");
        assert!(["since", "reason", "cure", "owner"].iter().all(|name| !text(row, name).is_empty()), "{row}");
    }

    eventually("four projections stand as well, and others go on; `checkout` puts the record aside", || async {
        let (code, verbose) = ready().await;
        assert_eq!((code, &verbose["degraded"]), (200, &true.into()), "{verbose}");
        let standing = verbose["partitions"].as_array().unwrap().iter().filter(|row| row["state"] == "standing");
        (standing.count() == 2 + 4).then_some(())
    })
    .await;
    let metrics = reqwest::get(format!("{admin}/metrics")).await.unwrap().text().await.unwrap();
    let gauge = format!(
        "throughline_partitions_standing{{loop=\"projection order-list\",topic=\"{events}\",partition=\"0\"}} 1"
    );
    assert!(metrics.contains(&gauge), "{metrics}");
    for line in [
        "throughline_partitions{loop=\"relay\",state=\"standing\"} 1",
        "throughline_build_info{version=",
        "# HELP throughline_partitions_standing ",
        "throughline_commands_waiting{lane=\"normal\",context=\"orders\"}",
        "throughline_commands_waiting{lane=\"normal\",context=\"payments\"}",
        "throughline_dead_letters{status=\"parked\"} ",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
    let families =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|line| line.split(' ').next().unwrap());
    for family in families {
        assert!(metrics.contains(&format!("# HELP {family} ")), "{family} has no HELP");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_leaps_makes_nobody_dead_for_longer_than_a_heartbeat() {
    let harness = Harness::new("status_clock").await;
    let client = harness.client().await;
    let process = Process::run(&harness, &["relay"]);
    let lives = async || {
        let (processes, seen) = throughline::presence::processes(&client).await.expect("rows");
        processes.iter().any(|one| one.lives && one.pid == process.id() as i32).then_some(seen.len())
    };
    let whole = || async { lives().await.filter(|partitions| *partitions == 2 * 12).map(drop) };
    eventually("it lives, with its partitions", whole).await;
    // Ahead, back, and so far that others took it for dead long ago and removed it.
    for leap in [
        "update throughline.processes set seen_at = seen_at - interval '5 minutes'",
        "update throughline.processes set seen_at = seen_at + interval '5 minutes'",
        "delete from throughline.processes",
    ] {
        client.batch_execute(leap).await.expect("the clock leaps");
        assert_eq!(lives().await, None, "{leap}");
        let leapt = Instant::now();
        eventually("it lives again", whole).await;
        assert!(leapt.elapsed() < Duration::from_secs(8), "{leap}: after {:?}", leapt.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_not_granted_is_told_with_its_reason_until_it_is() {
    let harness = Harness::new("status_pending").await;
    let (holder, lane) = (harness.client().await, harness.names().lanes()[1].clone());
    // Somebody holds the row that a claim of one partition has to change.
    holder
        .batch_execute(&format!(
            "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0;
             insert into throughline.offsets (partition, source_topic, group_id, next_offset)
             values (3, '{lane}', '{group}', 0);
             begin;
             update throughline.offsets set next_offset = 0 where source_topic = '{lane}' and partition = 3",
            group = harness.names().processor_group(1)
        ))
        .await
        .expect("a lock");
    let all = Process::run(&harness, &[]);
    let waits = format!("processor waits for its claim of {lane}/3: ");
    eventually(&waits, || async {
        let (code, said) = status(&harness).await;
        let problem = said["problems"].as_array().unwrap().iter().find(|one| text(one, "what").starts_with(&waits))?;
        assert_eq!((code, &said["ok"]), (3, &false.into()), "{said}");
        assert!(text(problem, "what").len() > waits.len() && text(problem, "cure").contains("it goes on by itself"));
        let rows = said["partitions"].as_array().unwrap();
        let row = rows.iter().find(|row| row["topic"] == lane.as_str() && row["partition"] == 3).expect("its row");
        assert_eq!(text(row, "state"), "pending", "{row}");
        Some(())
    })
    .await;
    holder.batch_execute("commit").await.expect("the lock is released");
    until_ok(&harness).await;
    assert_eq!(all.terminate().await, 0);
}
