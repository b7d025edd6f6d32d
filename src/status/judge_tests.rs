//! What wakes somebody and what does not, on made-up views.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::kafka::WaitingRecords;
use super::store::NextOffset;
use super::*;
use crate::presence::Seen;
use crate::projection::state::Lag;

const LIST: &str = "balances";

fn subject() -> Subject {
    let settings = Settings::default();
    let names = TopicNames::new("bank", &settings.topics);
    let projections = vec![Projected { name: LIST.into(), topic: names.events(), version: 1 }];
    Subject {
        settings,
        contexts: vec![names],
        projections,
        managers: Vec::new(),
        stalled_after: Duration::from_secs(15),
    }
}

/// One process that has everything and runs it.
fn well() -> StoreView {
    let subject = subject();
    let (names, topics) = (&subject.contexts[0], &subject.settings.topics);
    let process = Process {
        id: Uuid::from_u128(1),
        host: "h".into(),
        pid: 7,
        roles: ["processor", "relay", "projection:balances"].map(str::to_owned).to_vec(),
        admin: None,
        version: "1".into(),
        started_at: Timestamp::UNIX_EPOCH,
        last_seen: Timestamp::UNIX_EPOCH,
        lives: true,
    };
    let lanes = names.lanes().map(|topic| ("processor", topic, topics.command_partitions));
    let relayed = [names.events(), names.results()].map(|topic| ("relay", topic, topics.event_partitions));
    let projected = ("projection balances", names.events(), topics.event_partitions);
    let all = lanes.into_iter().chain(relayed).chain([projected]);
    let seen = all.flat_map(|(loop_name, topic, partitions)| {
        (0..partitions).map(move |partition| Seen {
            process: Uuid::from_u128(1),
            loop_name: loop_name.into(),
            topic: topic.clone(),
            partition,
            state: "running".into(),
            since: Timestamp::UNIX_EPOCH,
            reason: None,
            cure: None,
        })
    });
    let view = ProjectionView { name: LIST.into(), version: Some(1), ..ProjectionView::default() };
    StoreView { seen: seen.collect(), processes: vec![process], projections: vec![view], ..StoreView::default() }
}

fn whats(store: Result<StoreView, String>, cluster: &KafkaView) -> Vec<String> {
    let report = assemble(&subject(), store, cluster);
    assert_eq!(report.ok, report.problems.is_empty());
    assert!(report.problems.iter().all(|one| !one.cure.is_empty()));
    report.problems.into_iter().map(|one| one.what).collect()
}

/// Commands that wait in one partition, and since when nothing moved there.
fn waiting(store: &mut StoreView, oldest_seconds: f64, idle_seconds: f64) -> KafkaView {
    let place = (subject().contexts[0].commands(), 2);
    store.offsets.insert(place.clone(), NextOffset { offset: 5, idle_seconds });
    let records = WaitingRecords { records: 40, oldest_seconds: Some(oldest_seconds) };
    KafkaView { waiting: std::iter::once((place, records)).collect(), ..KafkaView::default() }
}

#[test]
fn what_waits_and_moves_wakes_nobody() {
    let none = KafkaView::default();
    assert_eq!(whats(Ok(well()), &none), [""; 0]);
    let mut busy = well();
    let cluster = waiting(&mut busy, 3_600.0, 0.2);
    assert_eq!(whats(Ok(busy), &cluster), [""; 0], "an old backlog that is worked on");
    let mut fresh = well();
    let cluster = waiting(&mut fresh, 2.0, 3_600.0);
    assert_eq!(whats(Ok(fresh), &cluster), [""; 0], "the first commands after a quiet hour");
}

#[test]
fn what_waits_and_cannot_move_wakes_somebody() {
    let mut stuck = well();
    let cluster = waiting(&mut stuck, 20.0, 20.0);
    let told = whats(Ok(stuck.clone()), &cluster);
    assert!(told.len() == 1 && told[0].contains("has not moved bank-commands/2 for 15 s, where 40 wait"), "{told:?}");
    // Nobody's: its owner was killed, and another process has not taken it over.
    stuck.seen.retain(|seen| seen.partition != 2);
    let told = whats(Ok(stuck), &cluster);
    assert!(told.len() == 1 && told[0].contains("nobody has bank-commands/2"), "{told:?}");
    // Without anything in it that is a rebalance.
    let mut joining = well();
    joining.seen.retain(|seen| seen.partition != 2);
    assert_eq!(whats(Ok(joining), &KafkaView::default()), [""; 0]);
}

#[test]
fn a_pause_is_told_and_wakes_nobody_whatever_waits() {
    let mut store = well();
    store.projections[0].paused = true;
    store.projections[0].lags = vec![Lag { partition: 1, events: 9, seconds: 90.0, seq: 0, next_offset: 0 }];
    store.projections[0].idle_seconds = BTreeMap::from([(1, 90.0)]).into_iter().collect();
    store.seen.retain(|seen| seen.loop_name != "projection balances");
    store.processes[0].roles.retain(|role| !role.starts_with("projection"));
    assert_eq!(whats(Ok(store.clone()), &KafkaView::default()), [""; 0]);
    let report = assemble(&subject(), Ok(store.clone()), &KafkaView::default());
    assert_eq!((report.projections[0].state.as_str(), report.projections[0].lag_events), (PAUSED, 9));
    store.projections[0].paused = false;
    let told = whats(Ok(store), &KafkaView::default());
    assert!(told.len() == 1 && told[0].contains("no process runs projection balances"), "{told:?}");
}

#[test]
fn partitions_that_stand_for_one_reason_are_one_problem() {
    let mut store = well();
    for seen in store.seen.iter_mut().filter(|seen| seen.loop_name == "relay" && seen.partition < 4) {
        (seen.state, seen.reason, seen.cure) = ("standing".into(), Some("no leader".into()), Some("start it".into()));
    }
    let told = whats(Ok(store), &KafkaView::default());
    assert!(told.len() == 1 && told[0].starts_with("relay stands at") && told[0].contains("and 2 more"), "{told:?}");
}

#[test]
fn who_cannot_be_asked_is_a_problem_and_no_reason_to_call_anybody_dead() {
    let away = KafkaView { away: Some("refused".into()), ..KafkaView::default() };
    let told = whats(Err("refused".into()), &away);
    assert!(told.len() == 2 && told[0].starts_with("PostgreSQL") && told[1].starts_with("Kafka"), "{told:?}");
    let mut dead = well();
    (dead.processes[0].lives, dead.seen) = (false, Vec::new());
    assert!(whats(Ok(dead.clone()), &KafkaView::default())[0].contains("no process lives"));
    dead.read_only = true;
    let told = whats(Ok(dead), &KafkaView::default());
    assert!(told.len() == 1 && told[0].contains("takes no writes"), "no heartbeat was taken: {told:?}");
    let silent = BTreeMap::from([("b:9093".to_owned(), "timed out".to_owned())]);
    let frozen = KafkaView { silent, leaderless: vec![("t".into(), 1)], ..KafkaView::default() };
    let told = whats(Ok(well()), &frozen);
    assert!(told.len() == 2 && told[0].contains("b:9093") && told[1].contains("t/1"), "{told:?}");
}
