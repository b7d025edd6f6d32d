//! `throughline verify` and the role `audit`: they hold beside what runs, and tell each thing that was tampered with.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::{kcat, place_order};
use crate::process::{Process, command, ended};

const ORDERS: u128 = 60;

/// Everything that the program has, on two partitions each.
async fn installed(name: &str) -> Harness {
    let mut harness = Harness::bare(name).await;
    (harness.settings.topics.event_partitions, harness.settings.topics.command_partitions) = (2, 2);
    for arguments in [["db", "apply"], ["topics", "apply"]] {
        let applied = ended(&mut command(&harness, &arguments)).await;
        assert_eq!(applied.code, 0, "{}", applied.stderr);
    }
    harness
}

/// Sends orders: placed, some by card and so through the process manager, half of the others paid, and some refused.
async fn orders(harness: &Harness, first: u128) {
    let lines = (first..first + ORDERS).flat_map(|number| {
        let order = Uuid::from_u128(number);
        let id = |part: u128| Uuid::from_u128(number * 1_000 + part);
        let mut placed = place_order(order, id(1));
        if number % 3 == 0 {
            placed["payment"] = json!({"token": "tok_approve"});
        }
        let paid = json!({"type": "RecordPayment", "commandId": id(2), "orderId": order, "paymentId": id(3),
                          "amount": if number % 2 == 0 { "39.98" } else { "99.00" }, "currency": "USD"});
        [placed.to_string() + "\n", paid.to_string() + "\n"]
    });
    let lines: String = lines.collect();
    let mut send = command(harness, &["command", "send", "-"]);
    let mut send = send.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    send.stdin.take().expect("piped").write_all(lines.as_bytes()).await.expect("it reads");
    assert!(send.wait().await.expect("it ends").success());
}

/// Waits until everything that was sent is decided, published and shown.
async fn drained(harness: &Harness, orders: i64) {
    let client = harness.client().await;
    eventually("all is decided, published and shown", || async {
        let row = client
            .query_one(
                "select (select count(*) from read.order_list) = $1
                    and (select count(*) from read.order_list where order_id::text ~ '' and status = 'paid') >= $1 / 3
                    and not exists (select from throughline.counters c join throughline.relay_leases l
                                    using (partition, topic) where c.last_seq > l.published)
                    and not exists (select from throughline.process_commands where sent_at is null)
                    and not exists (
                        select from throughline.checkpoints k join throughline.topics t on t.name like '%orders-events'
                        join throughline.counters c on c.topic = t.id and c.partition = k.partition
                        where k.projection like 'order%' and c.last_seq > k.seq)",
                &[&orders],
            )
            .await
            .expect("an answer");
        row.get::<_, bool>(0).then_some(())
    })
    .await;
}

async fn verify(harness: &Harness, arguments: &[&str]) -> (i32, Value, String) {
    let mut verify = command(harness, &[&["verify", "--output", "json"], arguments].concat());
    let answer = ended(&mut verify).await;
    let report = serde_json::from_str(&answer.stdout).unwrap_or_else(|_| panic!("{}", answer.stderr));
    (answer.code, report, answer.stderr)
}

/// The checks that do not hold, with their first difference.
fn differences(report: &Value) -> Vec<(String, String)> {
    let checks = report["checks"].as_array().expect("checks").iter().filter(|check| check["holds"] == false);
    checks.map(|check| (check["name"].as_str().expect("a name").to_owned(), check["differences"].to_string())).collect()
}

async fn run(client: &Client, statement: &str) {
    client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

/// What somebody does behind our back, how it is undone, the check that tells it, and what it says.
const TAMPERED: [(&str, &str, &str, &str); 11] = [
    (
        "update read.order_list set total = total + 1 where order_id = '00000000-0000-0000-0000-000000000002'",
        "update read.order_list set total = total - 1 where order_id = '00000000-0000-0000-0000-000000000002'",
        "read-tables",
        "000000000002",
    ),
    (
        "create table public.row as select * from read.order_history where version = 2;
         delete from read.order_history where version = 2",
        "insert into read.order_history select * from public.row; drop table public.row",
        "read-tables",
        "order_history lacks",
    ),
    (
        "update throughline.events set payload = set_byte(payload, 7, get_byte(payload, 7) # 1) where version = 1
            and stream_id = '00000000-0000-0000-0000-000000000003'",
        "update throughline.events set payload = set_byte(payload, 7, get_byte(payload, 7) # 1) where version = 1
            and stream_id = '00000000-0000-0000-0000-000000000003'",
        "topic",
        "differs from byte 7 on",
    ),
    (
        "update throughline.events set event_id = '00000000-0000-0000-0000-0000000000ff' where version = 1
            and stream_id = '00000000-0000-0000-0000-000000000003';",
        "update throughline.events e set event_id = o.message_id from throughline.outbox o where e.version = 1
            and e.stream_id = '00000000-0000-0000-0000-000000000003' and o.partition = e.partition and o.topic = e.topic
            and o.seq = e.seq",
        "topic",
        "another event",
    ),
    (
        "create table public.row as select * from throughline.events e where seq = 2
            and exists (select from throughline.counters c where (c.partition, c.topic) = (e.partition, e.topic) and last_seq > 2)
            limit 1;
         delete from throughline.events e using public.row r where (e.partition, e.topic, e.seq) = (r.partition, r.topic, r.seq)",
        "insert into throughline.events select * from public.row; drop table public.row",
        "sequences",
        "lacks the event",
    ),
    (
        "update throughline.events set version = 77 where version = 2 and stream_id = '00000000-0000-0000-0000-000000000002'",
        "update throughline.events set version = 2 where version = 77 and stream_id = '00000000-0000-0000-0000-000000000002'",
        "versions",
        "version 76 does not come before it",
    ),
    (
        "update throughline.commands set accepted = false where command_id = '00000000-0000-0000-0000-0000000003e9'",
        "update throughline.commands set accepted = true where command_id = '00000000-0000-0000-0000-0000000003e9'",
        "outcomes",
        "is refused by its outcome",
    ),
    (
        "update throughline.commands set code = 'ORDER_SHIPPED' where command_id = '00000000-0000-0000-0000-0000000003ea'",
        "update throughline.commands set code = 'PAYMENT_EXCEEDS_TOTAL'
            where command_id = '00000000-0000-0000-0000-0000000003ea'",
        "results",
        "PAYMENT_EXCEEDS_TOTAL",
    ),
    (
        "create table public.row as select * from throughline.commands
            where command_id = '00000000-0000-0000-0000-0000000003ea';
         delete from throughline.commands where command_id = '00000000-0000-0000-0000-0000000003ea'",
        "insert into throughline.commands select * from public.row; drop table public.row",
        "results",
        "has no outcome in the store",
    ),
    (
        "update throughline.relay_leases set published = published - 1
            where (partition, topic) = (select partition, topic from throughline.events where version = 1 limit 1);
         create table public.row as select o.* from throughline.outbox o join throughline.relay_leases l
            using (partition, topic) where o.seq > l.published;
         delete from throughline.outbox o using public.row r where (o.partition, o.topic, o.seq) = (r.partition, r.topic, r.seq)",
        "insert into throughline.outbox select * from public.row; drop table public.row;
         update throughline.relay_leases l set published = c.last_seq from throughline.counters c
            where (c.partition, c.topic) = (l.partition, l.topic)",
        "outbox",
        "the outbox has 0 rows",
    ),
    (
        "create table public.row as select * from throughline.process_instances limit 1;
         update throughline.process_instances set state = '{}' where instance = (select instance from public.row)",
        "update throughline.process_instances i set state = r.state from public.row r where r.instance = i.instance;
         drop table public.row",
        "processes",
        "its state is {}",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_tampered_with_is_told_by_its_check() {
    let harness = installed("verify").await;
    let running = Process::run(&harness, &["processor", "relay", "projections", "processes"]);
    orders(&harness, 1).await;
    drained(&harness, ORDERS as i64).await;

    // Beside what runs, and while more comes.
    let (code, report, told) = verify(&harness, &["--full"]).await;
    assert_eq!((code, differences(&report)), (0, vec![]), "{told}");
    let (sampled, ()) = tokio::join!(verify(&harness, &[]), orders(&harness, 1_000));
    assert_eq!((sampled.0, differences(&sampled.1)), (0, vec![]), "{}", sampled.2);
    drained(&harness, 2 * ORDERS as i64).await;
    let (code, report, told) = verify(&harness, &["--full"]).await;
    assert_eq!((code, &report["holds"], &report["full"]), (0, &json!(true), &json!(true)), "{told}");
    let checks = report["checks"].as_array().expect("checks");
    for name in ["sequences", "versions", "outcomes", "outbox", "topic", "results", "read-tables", "processes"] {
        let checked: u64 =
            checks.iter().filter(|check| check["name"] == name).map(|c| c["checked"].as_u64().unwrap()).sum();
        assert!(checked > 0 || name == "outbox", "{name}: {report:#}");
    }
    let proven = &report["provenUpTo"][harness.names().events()];
    let events: i64 = proven.as_object().expect("by partition").values().map(|seq| seq.as_i64().unwrap()).sum();
    assert!(events >= 2 * ORDERS as i64, "{report:#}");

    assert_eq!(running.terminate().await, 0);
    let client = harness.client().await;
    // Nobody but a superuser gets past these.
    run(&client, "set session_replication_role = replica; set search_path = public").await;
    for (tampered, undone, check, says) in TAMPERED {
        run(&client, tampered).await;
        let (code, report, told) = verify(&harness, &["--full"]).await;
        let found = differences(&report);
        let is_told = found.iter().any(|(name, what)| name == check && what.contains(says));
        assert!(code == 3 && is_told && told.contains(says), "{check} {says}: {code} {found:#?} {told}");
        assert_eq!(report["holds"], false);
        run(&client, undone).await;
    }
    let (code, report, told) = verify(&harness, &["--full"]).await;
    assert_eq!((code, differences(&report)), (0, vec![]), "{told}");

    kcat(&harness, &harness.names().events(), "x", "not ours", &[]);
    let (code, report, _) = verify(&harness, &[]).await;
    assert_eq!(code, 3, "{report:#}");
    assert!(differences(&report)[0].1.contains("the relay did not write it"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_was_interrupted_goes_on() {
    let harness = installed("verify_resumed").await;
    let running = Process::run(&harness, &["processor", "relay", "projections", "processes"]);
    orders(&harness, 1).await;
    drained(&harness, ORDERS as i64).await;
    assert_eq!(running.terminate().await, 0);

    let places = std::env::temp_dir().join(format!("throughline-places-{}.json", Uuid::now_v7()));
    let path = places.to_str().expect("text");
    let slow = Process::start(command(&harness, &["verify", "--full", "--rate", "40", "--resume", path]));
    eventually("a place", || async { places.exists().then_some(()) }).await;
    // It is killed, not asked.
    slow.kill().await;
    let kept: Value = serde_json::from_slice(&std::fs::read(&places).expect("places")).expect("JSON");
    assert!(kept["places"].as_object().is_some_and(|places| !places.is_empty()), "{kept}");

    let (code, report, told) = verify(&harness, &["--full", "--resume", path]).await;
    assert_eq!((code, differences(&report)), (0, vec![]), "{told}");
    let (_, whole, _) = verify(&harness, &["--full"]).await;
    let checked = |report: &Value| -> Vec<(String, u64)> {
        let checks = report["checks"].as_array().expect("checks").iter();
        let mut of: Vec<_> =
            checks.map(|one| (format!("{} {}", one["name"], one["of"]), one["checked"].as_u64().unwrap())).collect();
        of.sort();
        of
    };
    assert_eq!(checked(&report), checked(&whole), "together they looked at everything once");
    assert!(!places.exists(), "nothing is left to go on from");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_proves_what_is_new_and_stands_before_what_is_not_as_promised() {
    let harness = installed("audit").await;
    let running = Process::run(&harness, &["processor", "relay", "projections", "processes"]);
    let auditor = Process::run(&harness, &["audit"]);
    orders(&harness, 1).await;
    drained(&harness, ORDERS as i64).await;
    let client = harness.client().await;
    let topic = harness.names().events();
    let proven = async || {
        let statement = "
            select coalesce(sum(c.last_seq), 0)::bigint = (select coalesce(sum(seq), 0)::bigint from throughline.audits a
                 where a.topic = (select id from throughline.topics where name = $1)) and sum(c.last_seq) > 0
            from throughline.counters c where c.topic = (select id from throughline.topics where name = $1)";
        let row = client.query_one(statement, &[&topic]).await.expect("an answer");
        row.get::<_, bool>(0).then_some(())
    };
    eventually("everything is proven", proven).await;
    let status = async || {
        let answer = ended(&mut command(&harness, &["status", "--output", "json"])).await;
        (answer.code, serde_json::from_str::<Value>(&answer.stdout).expect("JSON"))
    };
    let (_, told) = status().await;
    let verified = told["verifiedSeq"].as_object().expect("by partition");
    let sum: i64 = verified.iter().filter(|(at, _)| at.starts_with(&topic)).map(|(_, seq)| seq.as_i64().unwrap()).sum();
    assert!(sum >= ORDERS as i64, "{told:#}");

    // Somebody changes what is not proven yet: on the topic's side of it, and on the outcomes'.
    run(&client, "set session_replication_role = replica").await;
    let byte = "update throughline.events set payload = set_byte(payload, 7, get_byte(payload, 7) # 1)
                where version = 1 and stream_id = '00000000-0000-0000-0000-000000000400'";
    let verdict = "update throughline.commands set accepted = not accepted
                   where stream_id = '00000000-0000-0000-0000-0000000007e0' and version = 1";
    let spoils = [(1_000, byte, "differs from byte 7 on"), (2_000, verdict, "is refused by its outcome")];
    for (round, (first, spoil, says)) in (2..).zip(spoils) {
        auditor.pause();
        orders(&harness, first).await;
        drained(&harness, round * ORDERS as i64).await;
        run(&client, spoil).await;
        auditor.wake();
        let problem = eventually("the audit stands", || async {
            let (code, told) = status().await;
            let problems = told["problems"].to_string();
            (code == 3 && problems.contains(says)).then_some(problems)
        })
        .await;
        assert!(problem.contains("throughline verify --full"), "{problem}");
        run(&client, spoil).await;
        eventually("mended, it goes on by itself", proven).await;
        eventually("nothing stands", || async {
            let (_, told) = status().await;
            (!told["problems"].to_string().contains(says)).then_some(())
        })
        .await;
    }
    assert_eq!(auditor.terminate().await, 0);
    assert_eq!(running.terminate().await, 0);
}
