//! Deciding a batch, without a database: what repeats, what coalesces, what is refused.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::account::{Account, Accounts, AsJson};
use super::batch::{Batch, Source};
use super::cache::Cached;
use super::decide::{Decided, decide};
use super::intake::{Ask, Intake};
use super::load::Loaded;
use super::retry::BatchFailure;
use super::{Payload, Scope};
use crate::kafka::{Record, TopicPartition};
use crate::store::Destination;

const PARTITIONS: i32 = 4;

type Commands = Batch<Payload<Accounts>>;

pub(super) fn open(account: Uuid, command: Uuid) -> Value {
    json!({"type": "Open", "commandId": command, "accountId": account, "owner": "c", "amount": 1_000})
}

fn pay(account: Uuid, command: Uuid, amount: i64) -> Value {
    json!({"type": "Pay", "commandId": command, "accountId": account, "amount": amount})
}

/// A batch of (source partition, command), keyed by their accounts, each partition from offset 0.
pub(super) fn batch_of(commands: &[(i32, Value)]) -> Commands {
    let written = |command: &Value| (command["accountId"].as_str().map(str::to_owned), command.to_string());
    let records: Vec<_> = commands.iter().map(|(partition, command)| (*partition, written(command))).collect();
    records_of(&records)
}

/// As [`batch_of`], of (source partition, (key, value)).
pub(super) fn records_of(records: &[(i32, (Option<String>, String))]) -> Commands {
    let intake = Intake { partitions: PARTITIONS, command_bytes_max: 10_000 };
    let mut batch = Batch { sources: Vec::new(), commands: Vec::new() };
    for (partition, (key, value)) in records {
        let place = TopicPartition { topic: "accounts-commands".into(), partition: *partition };
        let index = batch.sources.iter().position(|source: &Source| source.place == place).unwrap_or_else(|| {
            let place = place.clone();
            batch.sources.push(Source { lane: 1, place, epoch: 1, expected: 0, next: 0, out: false, lost: false });
            batch.sources.len() - 1
        });
        let offset = batch.sources[index].next;
        let key = key.clone().map(String::into_bytes);
        let record = Record::new(place, offset, key, Some(value.clone().into_bytes()));
        batch.sources[index].next += 1;
        let admitted = intake.admit::<Accounts>(record, index, &batch.sources[index], "accounts-commands");
        batch.commands.push(admitted);
    }
    batch
}

fn scope() -> Scope<Accounts> {
    let topic = |id: i16, name: &str| Destination { id, name: name.into(), partitions: PARTITIONS };
    Scope {
        events: topic(1, "accounts-events"),
        results: topic(2, "accounts-command-results"),
        groups: Vec::new(),
        codec: Arc::new(AsJson),
        type_prefix: "test.accounts.".into(),
        event_bytes_max: 1_000,
        topic_ids: Arc::default(),
    }
}

/// An empty store whose counters all stand at 100.
fn loaded(batch: &Commands) -> Loaded<Account> {
    let empty = || Cached { state: Account::default(), version: 0, snapshot_version: 0 };
    Loaded {
        now: Timestamp::UNIX_EPOCH,
        last_seq: (0..PARTITIONS).flat_map(|partition| [((partition, 1), 100), ((partition, 2), 100)]).collect(),
        streams: batch.commands.iter().map(|command| (command.stream_id, empty())).collect(),
        outcomes: HashMap::new(),
    }
}

fn decided(batch: &Commands) -> Decided<Account> {
    decide(&scope(), batch, loaded(batch)).expect("decided")
}

fn codes(decided: &Decided<Account>) -> Vec<&str> {
    decided.outcomes.iter().map(|outcome| outcome.code.as_deref().unwrap_or("ACCEPTED")).collect()
}

#[test]
fn commands_of_one_stream_see_each_other_and_take_dense_numbers() {
    let (account, id) = (Uuid::from_u128(1), Uuid::from_u128);
    let mut stale = pay(account, id(14), 100);
    stale["expectedVersion"] = json!(1);
    let batch = batch_of(&[
        (0, open(account, id(11))),
        (0, pay(account, id(12), 400)),
        (0, pay(account, id(13), 700)),
        (0, stale),
        (0, pay(account, id(15), 600)),
    ]);
    let decided = decided(&batch);
    assert_eq!(codes(&decided), ["ACCEPTED", "ACCEPTED", "TOO_MUCH", "VERSION_MISMATCH", "ACCEPTED"]);
    let places: Vec<_> = decided.events.iter().map(|event| (event.version, event.seq)).collect();
    assert_eq!(places, [(1, 101), (2, 102), (3, 103)]);
    assert_eq!(decided.results.iter().map(|result| result.seq).collect::<Vec<_>>(), [101, 102]);
    assert_eq!(decided.streams[&account].version, 3);
}

#[test]
fn a_repeated_id_has_one_outcome_and_another_payload_is_refused() {
    let (account, id) = (Uuid::from_u128(1), Uuid::from_u128(11));
    let batch = batch_of(&[(0, open(account, id)), (0, open(account, id)), (0, pay(account, id, 100))]);
    let decided = decided(&batch);
    assert_eq!(codes(&decided), ["ACCEPTED"]);
    assert_eq!((decided.events.len(), decided.results.len()), (1, 1));
    let result: Value = serde_json::from_slice(&decided.results[0].value).expect("json");
    assert_eq!(result["code"], "COMMAND_ID_REUSED");
    assert_eq!((decided.tally["DUPLICATE"], decided.tally["COMMAND_ID_REUSED"]), (1, 1));
}

#[test]
fn one_id_for_twelve_streams_has_twelve_effects_and_no_two_ids_are_equal() {
    let id = Uuid::from_u128(11);
    let account = |number: u128| Uuid::from_u128(number);
    let mut commands: Vec<_> = (1..=12).map(|number| (0, open(account(number), id))).collect();
    commands.extend((1..=12).map(|number| (1, open(account(number), id))));
    commands.push((0, pay(account(99), id, 100)));
    let batch = batch_of(&commands);
    let decided = decided(&batch);
    let accepted = decided.outcomes.iter().filter(|outcome| outcome.accepted).count();
    assert_eq!((accepted, decided.events.len(), decided.tally["DUPLICATE"]), (12, 12, 12));
    assert_eq!(decided.outcomes.last().expect("an outcome").code.as_deref(), Some("NOT_OPEN"));
    let ids: HashSet<Uuid> = decided.events.iter().map(|event| event.event_id).collect();
    assert_eq!(ids.len(), 12);
    // Accounts share partitions: there, too, the account tells one outcome from another.
    let partitions: HashSet<i32> = decided.outcomes.iter().map(|outcome| outcome.partition).collect();
    assert!(partitions.len() <= PARTITIONS as usize);
}

#[test]
fn an_outcome_in_another_stream_is_none_of_this_one() {
    let (id, mine) = (Uuid::from_u128(11), Uuid::from_u128(1));
    let batch = batch_of(&[(0, open(mine, id))]);
    // Of another account in the same partition, under the same id.
    let others = (2..).map(|other| batch_of(&[(0, pay(Uuid::from_u128(other), id, 100))]));
    let together = |other: &Commands| other.commands[0].destination == batch.commands[0].destination;
    let other = others.into_iter().find(together).expect("four partitions");
    let mut loaded = loaded(&batch);
    loaded.outcomes.insert(other.commands[0].scope(), self::decided(&other).outcomes.remove(0));
    let decided = decide(&scope(), &batch, loaded).expect("decided");
    assert_eq!((codes(&decided), decided.events.len()), (vec!["ACCEPTED"], 1));
}

#[test]
fn the_same_command_written_otherwise_is_a_repetition() {
    let (account, id) = (Uuid::from_u128(1), Uuid::from_u128(0xabc));
    let (command, key) = (open(account, id), Some(account.to_string()));
    let upper = command.to_string().replace(&id.to_string(), &id.to_string().to_uppercase());
    let batch = records_of(&[
        (0, (key.clone(), command.to_string())),
        (0, (key.clone(), format!("{command:#}"))),
        (0, (key.clone(), upper)),
        (0, (key.clone(), command.to_string().replace("1000", " 1000 "))),
        (0, (key, command.to_string().replace("1000", "1001"))),
    ]);
    let decided = decided(&batch);
    assert_eq!((decided.events.len(), decided.tally["DUPLICATE"], decided.tally["COMMAND_ID_REUSED"]), (1, 3, 1));
}

/// Outcomes of earlier releases keep the hash of the record's bytes: the same bytes are still the same command.
#[test]
fn an_outcome_of_before_is_known_by_the_records_bytes() {
    let (account, id) = (Uuid::from_u128(1), Uuid::from_u128(11));
    let spaced = format!("{:#}", open(account, id));
    let batch = records_of(&[
        (0, (Some(account.to_string()), spaced.clone())),
        (0, (Some(account.to_string()), open(account, id).to_string().replace("1000", "1001"))),
    ]);
    let mut outcome = decided(&batch).outcomes.remove(0);
    outcome.payload_hash = crate::engine::fingerprint(spaced.as_bytes());
    let mut loaded = loaded(&batch);
    loaded.outcomes.insert(batch.commands[0].scope(), outcome);
    let decided = decide(&scope(), &batch, loaded).expect("decided");
    assert_eq!((decided.tally["DUPLICATE"], decided.tally["COMMAND_ID_REUSED"]), (1, 1));
    assert!(decided.events.is_empty() && decided.outcomes.is_empty());
}

/// A record that tells no stream is kept, also where its id was used for another one.
#[test]
fn records_of_no_stream_are_kept_whatever_their_id() {
    let id = Uuid::from_u128(11);
    let nameless = |what: &str| (0, (None, format!("{{\"commandId\":\"{id}\",\"what\":\"{what}\"}}")));
    let batch = records_of(&[nameless("a"), nameless("b"), nameless("b")]);
    let decided = decided(&batch);
    assert_eq!(
        decided.parked.iter().map(|(index, code, _)| (*index, *code)).collect::<Vec<_>>(),
        [(0, "INVALID_COMMAND"), (1, "INVALID_COMMAND"), (2, "INVALID_COMMAND"),]
    );
}

#[test]
fn a_key_is_the_text_that_its_partition_follows_from() {
    let account = Uuid::from_u128(0x0198_c0de_7a3e_7000_8000_0000_0000_000a);
    let judged = |key: Option<String>| {
        let batch = records_of(&[(0, (key, open(account, Uuid::from_u128(11)).to_string()))]);
        let command = &batch.commands[0];
        assert_eq!((command.stream_id, command.command_id), (account, Uuid::from_u128(11)), "told whom it concerns");
        match &command.ask {
            Ask::Decide { .. } => None,
            Ask::Refuse { code, reason, .. } => Some(format!("{code}: {reason}")),
        }
    };
    let text = account.to_string();
    assert_eq!(judged(Some(text.clone())), None);
    for other in [text.to_uppercase(), text.replace('-', ""), format!("{{{text}}}"), format!("urn:uuid:{text}")] {
        let refused = judged(Some(other.clone())).unwrap_or_else(|| panic!("{other} is taken"));
        assert!(refused.starts_with("INVALID_COMMAND: the record's key must be the stream's id as"), "{refused}");
    }
    for other in [Some(String::new()), Some(Uuid::nil().to_string()), Some(format!("{text} ")), None] {
        assert!(judged(other.clone()).is_some_and(|refused| refused.starts_with("INVALID_COMMAND")), "{other:?}");
    }
}

#[test]
fn what_caused_an_event_is_the_command_where_nothing_else_is_named() {
    let id = Uuid::from_u128(11);
    let batch = batch_of(&[(0, open(Uuid::from_u128(1), id))]);
    assert_eq!(batch.commands[0].causation_id, id.to_string());
}

#[test]
fn a_source_that_is_out_takes_its_commands_along() {
    let id = Uuid::from_u128;
    let mut batch = batch_of(&[(0, open(id(1), id(11))), (1, open(id(2), id(12)))]);
    batch.sources[0].out = true;
    let decided = decided(&batch);
    assert_eq!(decided.outcomes.len(), 1);
    assert_eq!(decided.outcomes[0].command_id, id(12));
    assert_eq!(batch.moving().count(), 1);
}

#[test]
fn a_failed_command_keeps_its_place_and_is_parked() {
    let id = Uuid::from_u128;
    let mut batch = batch_of(&[(0, open(id(1), id(11))), (0, open(id(2), id(12)))]);
    batch.commands[0].fail("it broke".into());
    assert!(matches!(batch.commands[0].ask, Ask::Refuse { park: true, .. }));
    let decided = decided(&batch);
    assert_eq!(codes(&decided), ["COMMAND_FAILED", "ACCEPTED"]);
    assert_eq!(decided.parked.len(), 1);
}

#[test]
fn an_event_that_no_record_can_carry_names_its_command() {
    let id = Uuid::from_u128;
    let mut large = open(id(2), id(12));
    large["owner"] = "c".repeat(2_000).into();
    let batch = batch_of(&[(0, open(id(1), id(11))), (0, large)]);
    match decide(&scope(), &batch, loaded(&batch)) {
        Err(BatchFailure::Command(1, reason)) => assert!(reason.contains("topics.event_bytes_max"), "{reason}"),
        other => panic!("{:?}", other.map(|decided| codes(&decided).join(" "))),
    }
}
