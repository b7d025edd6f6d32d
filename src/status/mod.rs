//! The night's questions, answered at once: who lives and owns what, what waits, what stands and why, what is away.
//!
//! Asks PostgreSQL and Kafka side by side, each within a bound, and tells what it got: a part that is away is
//! an answer, too. [`judge`] is pure and says what needs a person. Reads only; decides nothing.

mod judge;
#[cfg(test)]
mod judge_tests;
mod kafka;
mod managers;
mod store;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

pub use judge::Problem;
pub use kafka::KafkaView;
pub use managers::{Manager, ManagerRow, ManagerView};
pub use store::{ProjectionView, StoreView};

use crate::health::PartitionState;
use crate::kafka::Lane;
use crate::kafka::topics::TopicNames;
use crate::presence::Process;
use crate::settings::Settings;

/// PostgreSQL has this long to answer everything.
const STORE_WAIT: Duration = Duration::from_secs(4);

/// What is asked about.
#[derive(Debug, Clone)]
pub struct Subject {
    pub settings: Settings,
    /// The topics of each context.
    pub contexts: Vec<TopicNames>,
    pub projections: Vec<Projected>,
    pub managers: Vec<Manager>,
    /// Work that waits, and does not move for longer than this, has stalled.
    pub stalled_after: Duration,
}

/// A projection of this program.
#[derive(Debug, Clone)]
pub struct Projected {
    pub name: String,
    /// The events topic.
    pub topic: String,
    /// Shape of the tables that this program makes.
    pub version: i32,
}

/// Everything that is known at one moment.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Nothing needs a person.
    pub ok: bool,
    pub processes: Vec<Live>,
    /// Processes that fell silent without taking their leave, within the last hour.
    pub lost: Vec<Live>,
    pub waiting: Vec<Waiting>,
    pub outbox: Option<Outbox>,
    pub partitions: Vec<PartitionRow>,
    pub projections: Vec<ProjectionRow>,
    pub process_managers: Vec<ManagerRow>,
    /// Open ones.
    pub dead_letters: Option<i64>,
    /// How far the audit has proven each partition of an events topic, by `TOPIC-PARTITION`.
    pub verified_seq: BTreeMap<String, i64>,
    /// What does not answer.
    pub away: Vec<String>,
    pub problems: Vec<Problem>,
}

/// A process.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Live {
    pub host: String,
    pub pid: i32,
    pub roles: Vec<String>,
    pub admin: Option<String>,
    pub version: String,
    pub started_at: Timestamp,
    pub last_seen: Timestamp,
    /// Partitions by loop.
    pub owns: BTreeMap<String, usize>,
}

/// Commands accepted and not decided, of one lane, or in overflow and of no lane yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    pub lane: &'static str,
    pub topic: String,
    /// None where it cannot be known now.
    pub commands: Option<i64>,
    pub oldest_seconds: Option<f64>,
}

/// What is committed and not published.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outbox {
    pub records: i64,
    pub oldest_seconds: Option<f64>,
}

/// One partition of one loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionRow {
    #[serde(rename = "loop")]
    pub loop_name: String,
    pub topic: String,
    pub partition: i32,
    /// A name of [`PartitionState`], or `unowned`, `paused`, or `unknown`.
    pub state: String,
    /// `host:pid`.
    pub owner: Option<String>,
    pub since: Option<Timestamp>,
    pub reason: Option<String>,
    pub cure: Option<String>,
    /// What waits in it; none where that cannot be known now.
    pub waiting: Option<i64>,
    /// Of the oldest of it.
    pub oldest_seconds: Option<f64>,
    /// Since it last moved.
    #[serde(skip)]
    pub idle_seconds: Option<f64>,
}

/// One projection.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectionRow {
    pub name: String,
    pub lag_events: i64,
    pub lag_seconds: f64,
    /// `running`, `paused`, `standing` (in part), `unowned`, `waits for rebuild`, `not installed`.
    pub state: String,
}

/// The state of a partition that no living process has told of.
pub const UNOWNED: &str = "unowned";
/// The state of every partition while PostgreSQL, where it is told, does not answer.
pub const UNKNOWN: &str = "unknown";
/// The state of the partitions of a projection that an operator paused.
pub const PAUSED: &str = "paused";
/// Where commands wait that no lane had room for.
const OVERFLOW: &str = "overflow";

/// Asks, and judges. Answers whatever is away.
pub async fn report(subject: &Subject) -> Report {
    let (store, cluster) = futures_util::join!(
        async {
            let late = |_| Err(format!("no answer within {} s", STORE_WAIT.as_secs()));
            tokio::time::timeout(STORE_WAIT, store::look(subject)).await.unwrap_or_else(late)
        },
        kafka::look(subject)
    );
    let next = store.as_ref().ok().map(|store| store.next_offsets());
    let cluster = kafka::count_waiting(subject, cluster, next).await;
    assemble(subject, store, &cluster)
}

fn assemble(subject: &Subject, store: Result<StoreView, String>, cluster: &KafkaView) -> Report {
    let store = store.as_ref();
    let partitions = partitions(subject, store.ok(), cluster);
    let (alive, lost): (Vec<&Process>, Vec<&Process>) =
        store.map_or_else(|_| Default::default(), |store| store.processes.iter().partition(|process| process.lives));
    let live = |process: &&Process| Live {
        host: process.host.clone(),
        pid: process.pid,
        roles: process.roles.clone(),
        admin: process.admin.clone(),
        version: process.version.clone(),
        started_at: process.started_at,
        last_seen: process.last_seen,
        owns: owns(&partitions, &process.owner()),
    };
    let mut report = Report {
        ok: true,
        processes: alive.iter().map(live).collect(),
        lost: lost.iter().map(live).collect(),
        waiting: waiting(subject, &partitions, cluster),
        outbox: store.ok().map(|store| store.outbox()),
        projections: projections(subject, store.ok(), &partitions),
        process_managers: managers::rows(subject, store.ok(), &partitions),
        dead_letters: store.ok().map(|store| store.dead_letters),
        verified_seq: store.ok().map(verified).unwrap_or_default(),
        away: Vec::new(),
        problems: Vec::new(),
        partitions,
    };
    report.away = judge::away(subject, store.err().map(String::as_str), store.ok(), cluster);
    report.problems = judge::problems(subject, &report, store.ok(), cluster);
    report.ok = report.problems.is_empty();
    report
}

fn verified(store: &StoreView) -> BTreeMap<String, i64> {
    store.proven.iter().map(|one| (format!("{}-{}", one.topic, one.partition), one.seq)).collect()
}

fn owns(partitions: &[PartitionRow], owner: &str) -> BTreeMap<String, usize> {
    let mut owns = BTreeMap::new();
    for row in partitions.iter().filter(|row| row.owner.as_deref() == Some(owner)) {
        *owns.entry(row.loop_name.clone()).or_default() += 1;
    }
    owns
}

/// Every partition that there should be, with whoever has it.
fn partitions(subject: &Subject, store: Option<&StoreView>, cluster: &KafkaView) -> Vec<PartitionRow> {
    let topics = &subject.settings.topics;
    let mut rows = Vec::new();
    let mut expect = |loop_name: &str, topic: &str, partitions: i32| {
        rows.extend((0..partitions).map(|partition| PartitionRow {
            loop_name: loop_name.to_owned(),
            topic: topic.to_owned(),
            partition,
            state: UNOWNED.to_owned(),
            owner: None,
            since: None,
            reason: None,
            cure: None,
            waiting: None,
            oldest_seconds: None,
            idle_seconds: None,
        }));
    };
    for names in &subject.contexts {
        names.lanes().iter().for_each(|lane| expect(judge::PROCESSOR, lane, topics.command_partitions));
        [names.events(), names.results()].iter().for_each(|topic| expect(judge::RELAY, topic, topics.event_partitions));
        expect(judge::AUDIT, &names.events(), topics.event_partitions);
    }
    for projection in &subject.projections {
        expect(&judge::loop_of(&projection.name), &projection.topic, topics.event_partitions);
    }
    for manager in &subject.managers {
        let name = judge::loop_of_manager(&manager.name);
        manager.topics.iter().for_each(|topic| expect(&name, topic, topics.event_partitions));
    }
    for row in &mut rows {
        fill(row, subject, store, cluster);
    }
    // Whether it is audited is everybody's own choice.
    rows.retain(|row| row.loop_name != judge::AUDIT || row.owner.is_some());
    rows
}

fn fill(row: &mut PartitionRow, subject: &Subject, store: Option<&StoreView>, cluster: &KafkaView) {
    let Some(store) = store else {
        row.state = UNKNOWN.to_owned();
        return;
    };
    if let Some((seen, owner)) = store.owner_of(&row.loop_name, &row.topic, row.partition) {
        (row.state, row.owner, row.since) = (seen.state.clone(), Some(owner), Some(seen.since));
        (row.reason, row.cure) = (seen.reason.clone(), seen.cure.clone());
    }
    if row.loop_name == judge::AUDIT {
        return;
    }
    if let Some(view) = store.managers.iter().find(|view| judge::loop_of_manager(&view.name) == row.loop_name) {
        view.tell(row);
        return;
    }
    let projection = subject.projections.iter().find(|one| judge::loop_of(&one.name) == row.loop_name);
    match projection.and_then(|one| store.projections.iter().find(|view| view.name == one.name)) {
        Some(view) => {
            if view.paused && row.owner.is_none() {
                row.state = PAUSED.to_owned();
            }
            if let Some(lag) = view.lags.iter().find(|lag| lag.partition == row.partition) {
                (row.waiting, row.oldest_seconds) = (Some(lag.events), (lag.events > 0).then_some(lag.seconds));
            }
            row.idle_seconds = view.idle_seconds.get(&row.partition).copied();
        }
        None if row.loop_name == judge::PROCESSOR => {
            let place = (row.topic.clone(), row.partition);
            let waiting = cluster.waiting.get(&place);
            row.waiting = waiting.map(|waiting| waiting.records);
            row.oldest_seconds = waiting.and_then(|waiting| waiting.oldest_seconds);
            row.idle_seconds = store.offsets.get(&place).map(|offset| offset.idle_seconds);
        }
        None => {
            let published = store.published.iter().find(|one| one.topic == row.topic && one.partition == row.partition);
            if let Some(published) = published {
                (row.waiting, row.oldest_seconds) = (Some(published.depth), published.oldest_age_seconds);
            }
            row.idle_seconds = store.marked_seconds.get(&(row.topic.clone(), row.partition)).copied();
        }
    }
}

fn waiting(subject: &Subject, partitions: &[PartitionRow], cluster: &KafkaView) -> Vec<Waiting> {
    let lanes = subject.contexts.iter().flat_map(|names| Lane::ALL.map(Lane::name).into_iter().zip(names.lanes()));
    let lanes = lanes.map(|(lane, topic)| {
        let rows = || partitions.iter().filter(|row| row.loop_name == judge::PROCESSOR && row.topic == topic);
        let commands = rows().map(|row| row.waiting).sum();
        let oldest_seconds = rows().filter_map(|row| row.oldest_seconds).reduce(f64::max);
        Waiting { lane, topic, commands, oldest_seconds }
    });
    let overflow = subject.contexts.iter().map(|names| {
        let topic = names.overflow();
        let parts = || cluster.waiting.iter().filter(|((of, _), _)| *of == topic).map(|(_, waiting)| waiting);
        let commands = parts().map(|part| part.records).reduce(|sum, records| sum + records);
        let oldest_seconds = parts().filter_map(|part| part.oldest_seconds).reduce(f64::max);
        Waiting { lane: OVERFLOW, topic, commands, oldest_seconds }
    });
    lanes.chain(overflow).collect()
}

fn projections(subject: &Subject, store: Option<&StoreView>, partitions: &[PartitionRow]) -> Vec<ProjectionRow> {
    let Some(store) = store else { return Vec::new() };
    let row = |projection: &Projected| {
        let view = store.projections.iter().find(|view| view.name == projection.name)?;
        let rows = || partitions.iter().filter(|row| row.loop_name == judge::loop_of(&projection.name));
        let any = |state: &str| rows().any(|row| row.state == state);
        let state = match view.version {
            None => "not installed",
            Some(version) if version != projection.version => "waits for rebuild",
            Some(_) if view.paused => PAUSED,
            Some(_) if any(PartitionState::Standing.name()) => PartitionState::Standing.name(),
            Some(_) if rows().all(|row| row.state == UNOWNED) => UNOWNED,
            Some(_) => PartitionState::Running.name(),
        };
        Some(ProjectionRow {
            name: projection.name.clone(),
            lag_events: view.lags.iter().map(|lag| lag.events).sum(),
            lag_seconds: view.lags.iter().map(|lag| lag.seconds).fold(0.0, f64::max),
            state: state.to_owned(),
        })
    };
    subject.projections.iter().filter_map(row).collect()
}
