//! Topics: which there are, how they are shaped, created and checked.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;

use super::voice::Quiet;
use super::{KafkaError, client};
use crate::settings::{KafkaSettings, TopicSettings};

/// Names of one context's topics and consumer groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicNames {
    context: String,
    /// `topics.prefix` and the context: `bank`, or `staging-bank`.
    base: String,
}

impl TopicNames {
    /// The names of `context` under the configured prefix.
    pub fn new(context: &str, settings: &TopicSettings) -> Self {
        Self { context: context.to_owned(), base: format!("{}{context}", settings.prefix) }
    }

    /// The context whose they are.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// The lanes of the commands, by falling priority.
    pub fn lanes(&self) -> [String; 3] {
        ["-priority", "", "-bulk"].map(|lane| format!("{}-commands{lane}", self.base))
    }

    /// The lane of commands that name none.
    pub fn commands(&self) -> String {
        format!("{}-commands", self.base)
    }

    /// Where accepted commands wait that found the queue full.
    pub fn overflow(&self) -> String {
        format!("{}-commands-overflow", self.base)
    }

    pub fn events(&self) -> String {
        format!("{}-events", self.base)
    }

    pub fn results(&self) -> String {
        format!("{}-command-results", self.base)
    }

    /// Group of the processors of one lane (0 priority, 1 normal, 2 bulk). A lane has its own, so
    /// that its lag reads by itself and its back-pressure is its own.
    pub fn processor_group(&self, lane: usize) -> String {
        format!("{}-processor{}", self.base, ["-priority", "", "-bulk"][lane])
    }

    /// Group that moves overflowed commands to their lanes.
    pub fn overflow_group(&self) -> String {
        format!("{}-overflow", self.base)
    }

    /// Group of one projection.
    pub fn projection_group(&self, projection: &str) -> String {
        format!("{}-projection-{projection}", self.base)
    }
}

/// One topic as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    /// At least.
    pub partitions: i32,
    /// Whether partitions beyond these are used: commands are read from all there are, where an event's
    /// partition follows from the number that the store has.
    pub grows: bool,
    pub replication: i32,
    pub config: Vec<(&'static str, String)>,
}

/// A name that Kafka takes.
///
/// # Errors
/// What names it takes.
pub fn checked_name(name: &str) -> Result<String, String> {
    let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 249 || [".", ".."].contains(&name) || !name.bytes().all(taken) {
        return Err("a topic's name is 1 to 249 letters, digits, dots, hyphens and underscores, and not . or ..".into());
    }
    Ok(name.to_owned())
}

const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
/// Left free beside an event's value for its key, its headers and the batch around it.
const KEY_AND_HEADERS_BYTES: u32 = 48_588;
/// What a topic must take in any case: Kafka's own default, which a full batch of ours comes near.
const BATCH_BYTES: u32 = 1_048_588;

/// Every topic of a context.
pub fn specs(names: &TopicNames, settings: &TopicSettings) -> Vec<TopicSpec> {
    let in_sync = if settings.replication >= 3 { "2" } else { "1" };
    let durable = || vec![("cleanup.policy", "delete".to_owned()), ("min.insync.replicas", in_sync.to_owned())];
    let mut specs = Vec::new();
    let hours = u64::from(settings.command_retention_hours);
    for name in names.lanes().into_iter().chain([names.overflow()]) {
        let mut config = durable();
        config.push(("retention.ms", (hours * 3_600_000).to_string()));
        config.push((MAX_MESSAGE_BYTES, settings.command_record_bytes_max.to_string()));
        specs.push(TopicSpec {
            name,
            partitions: settings.command_partitions,
            grows: true,
            replication: settings.replication,
            config,
        });
    }
    // Events are kept for ever: replay and new consumers depend on it.
    for (name, retention) in [(names.events(), "-1".to_owned()), (names.results(), (hours * 3_600_000).to_string())] {
        let mut config = durable();
        config.push(("retention.ms", retention));
        config.push(("retention.bytes", "-1".to_owned()));
        let room = settings.event_bytes_max.saturating_add(KEY_AND_HEADERS_BYTES).max(BATCH_BYTES);
        config.push((MAX_MESSAGE_BYTES, room.to_string()));
        specs.push(TopicSpec {
            name,
            partitions: settings.event_partitions,
            grows: false,
            replication: settings.replication,
            config,
        });
    }
    specs
}

/// What is wrong with one topic.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mismatch {
    pub topic: String,
    /// For people, with the next step.
    pub problem: String,
    /// Told, and no hindrance.
    pub is_note: bool,
}

impl Mismatch {
    fn new(spec: &TopicSpec, problem: impl Into<String>) -> Self {
        Self { topic: spec.name.clone(), problem: problem.into(), is_note: false }
    }
}

/// What is to be said of a topic with so many partitions. A topic can grow and never shrink, so only fewer
/// than wanted is wrong.
fn judge_partitions(spec: &TopicSpec, found: i32) -> Option<Mismatch> {
    let wanted = spec.partitions;
    match found.cmp(&wanted) {
        Ordering::Equal => None,
        Ordering::Less => Some(Mismatch::new(
            spec,
            format!(
                "has {found} partitions, {wanted} are needed; add them with Kafka's own tool: kafka-topics --alter --topic \
                 {} --partitions {wanted}",
                spec.name
            ),
        )),
        Ordering::Greater => {
            let use_of_them = match spec.grows {
                true => "all of them are read; topics.command_partitions may follow",
                false => "those beyond the store's number stay unused, since growth would re-hash keys",
            };
            let problem = format!("has {found} partitions, the settings and the store say {wanted}: {use_of_them}");
            Some(Mismatch { is_note: true, ..Mismatch::new(spec, problem) })
        }
    }
}

/// Creates the topics that are missing. Returns their names. Existing ones are left as they are:
/// [`check`] tells whether they fit.
pub async fn apply(settings: &KafkaSettings, specs: &[TopicSpec]) -> Result<Vec<String>, KafkaError> {
    let admin = admin(settings)?;
    let wait = Duration::from_millis(u64::from(settings.request_timeout_ms));
    let options = AdminOptions::new().request_timeout(Some(wait)).operation_timeout(Some(wait));
    let new: Vec<NewTopic<'_>> = specs
        .iter()
        .map(|spec| {
            let topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(spec.replication));
            spec.config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let results = admin.create_topics(&new, &options).await.map_err(|error| connect_error(settings, &error))?;
    let mut created = Vec::new();
    for result in results {
        match result {
            Ok(name) => created.push(name),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                return Err(KafkaError::Topic(format!(
                    "cannot create topic {name}: {code}. Check topics.replication and the user's rights."
                )));
            }
        }
    }
    until_visible(settings, &admin, specs, wait).await?;
    Ok(created)
}

/// Between two looks for topics that were created.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Waits until the broker shows the topics: a busy one tells of a new topic later than it creates
/// it, and whoever looks in between takes it for missing. What [`check`] finds after `wait` stands.
async fn until_visible(
    settings: &KafkaSettings,
    admin: &AdminClient<Quiet>,
    specs: &[TopicSpec],
    wait: Duration,
) -> Result<(), KafkaError> {
    let deadline = Instant::now() + wait;
    loop {
        let metadata = admin.inner().fetch_metadata(None, wait).map_err(|error| connect_error(settings, &error))?;
        let shows = |spec: &TopicSpec| {
            metadata.topics().iter().any(|topic| topic.name() == spec.name && !topic.partitions().is_empty())
        };
        if specs.iter().all(shows) || Instant::now() >= deadline {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Holds the topics against their specification.
pub async fn check(settings: &KafkaSettings, specs: &[TopicSpec]) -> Result<Vec<Mismatch>, KafkaError> {
    let admin = admin(settings)?;
    let wait = Duration::from_millis(u64::from(settings.request_timeout_ms));
    let mut mismatches = Vec::new();
    let mut present = Vec::new();
    {
        let metadata = admin.inner().fetch_metadata(None, wait).map_err(|error| connect_error(settings, &error))?;
        for spec in specs {
            let found =
                metadata.topics().iter().find(|topic| topic.name() == spec.name && !topic.partitions().is_empty());
            match found {
                None => mismatches.push(Mismatch::new(spec, "does not exist; run `throughline topics apply`")),
                Some(topic) => {
                    mismatches.extend(judge_partitions(spec, topic.partitions().len() as i32));
                    let replicas = topic.partitions().iter().map(|one| (one.id(), one.replicas().len()));
                    mismatches.extend(too_few_replicas(spec, replicas));
                    present.push(spec);
                }
            }
        }
    }
    if present.is_empty() {
        // Kafka's client refuses to ask about nothing.
        return Ok(mismatches);
    }
    let resources: Vec<_> = present.iter().map(|spec| ResourceSpecifier::Topic(&spec.name)).collect();
    let options = AdminOptions::new().request_timeout(Some(wait));
    let configs =
        admin.describe_configs(&resources, &options).await.map_err(|error| connect_error(settings, &error))?;
    for (spec, config) in present.iter().zip(configs) {
        let config = config.map_err(|code| {
            KafkaError::Topic(format!("cannot read the configuration of topic {}: {code}", spec.name))
        })?;
        for (key, wanted) in &spec.config {
            let found = config.get(key).and_then(|entry| entry.value.clone()).unwrap_or_default();
            if !fits(key, &found, wanted) {
                let problem =
                    format!("has {key}={found}, wanted {wanted}; change it with Kafka's own kafka-configs tool");
                mismatches.push(Mismatch::new(spec, problem));
            }
        }
    }
    Ok(mismatches)
}

/// Fewer copies than asked for are what a lost disk would tell of too late. More harm nobody.
fn too_few_replicas(spec: &TopicSpec, found: impl Iterator<Item = (i32, usize)>) -> Option<Mismatch> {
    let wanted = usize::try_from(spec.replication).unwrap_or(1);
    let mut few: Vec<(i32, usize)> = found.filter(|(_, copies)| *copies < wanted).collect();
    few.sort_unstable();
    let least = few.iter().map(|(_, copies)| *copies).min()?;
    let partitions = few.iter().map(|(partition, _)| partition.to_string()).collect::<Vec<_>>().join(", ");
    let problem = format!(
        "has {least} of {wanted} replicas on partition(s) {partitions}. Add them with Kafka's own \
         kafka-reassign-partitions tool, or set topics.replication to what there is"
    );
    Some(Mismatch::new(spec, problem))
}

/// A topic that takes larger records than ours harms nobody.
fn fits(key: &str, found: &str, wanted: &str) -> bool {
    let bytes = |text: &str| text.parse::<u64>().ok();
    found == wanted || (key == MAX_MESSAGE_BYTES && bytes(found) >= bytes(wanted))
}

/// Partitions of a topic; none when it does not exist.
pub async fn partition_count(settings: &KafkaSettings, topic: &str) -> Result<Option<i32>, KafkaError> {
    let admin = admin(settings)?;
    let wait = Duration::from_millis(u64::from(settings.request_timeout_ms));
    // All topics: asking for one by name could create it.
    let metadata = admin.inner().fetch_metadata(None, wait).map_err(|error| connect_error(settings, &error))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && !found.partitions().is_empty());
    Ok(found.map(|found| found.partitions().len() as i32))
}

fn admin(settings: &KafkaSettings) -> Result<AdminClient<Quiet>, KafkaError> {
    client::pass_through(client::base(settings), settings, |_| true)
        .create_with_context(Quiet)
        .map_err(|error| KafkaError::Settings(error.to_string()))
}

fn connect_error(settings: &KafkaSettings, error: &rdkafka::error::KafkaError) -> KafkaError {
    KafkaError::Connect { brokers: settings.brokers.clone(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_kafka_takes() {
        for name in ["bank-events", "A.b_c-9", &"x".repeat(249)] {
            assert_eq!(checked_name(name).as_deref(), Ok(name));
        }
        for name in ["", ".", "..", "bad topic!", "ä", "a/b", &"x".repeat(250)] {
            assert!(checked_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_topic_may_take_larger_records_and_not_smaller_ones() {
        assert!(fits(MAX_MESSAGE_BYTES, "8388608", "1048588"));
        assert!(!fits(MAX_MESSAGE_BYTES, "100000", "1048588"));
        assert!(!fits("retention.ms", "8388608", "1048588"));
    }

    #[test]
    fn fewer_replicas_than_asked_for_are_told_and_more_are_fine() {
        let settings = TopicSettings { replication: 3, ..TopicSettings::default() };
        let spec = &specs(&TopicNames::new("bank", &settings), &settings)[0];
        let told = |found: &[(i32, usize)]| too_few_replicas(spec, found.iter().copied()).map(|found| found.problem);
        assert_eq!(told(&[(0, 3), (1, 4), (2, 5)]), None);
        let few = told(&[(2, 1), (0, 3), (1, 2)]).unwrap();
        assert!(few.starts_with("has 1 of 3 replicas on partition(s) 1, 2. "), "{few}");
        assert!(few.contains("kafka-reassign-partitions") && few.contains("topics.replication"), "{few}");
    }

    #[test]
    fn only_fewer_partitions_than_needed_are_wrong() {
        let settings = TopicSettings::default();
        for spec in specs(&TopicNames::new("bank", &settings), &settings) {
            assert_eq!(judge_partitions(&spec, 6), None);
            let fewer = judge_partitions(&spec, 5).expect("too few");
            assert!(!fewer.is_note && fewer.problem.contains("--partitions 6"), "{fewer:?}");
            let more = judge_partitions(&spec, 9).expect("more");
            assert_eq!((more.is_note, more.problem.contains("all of them are read")), (true, spec.grows), "{more:?}");
        }
    }

    #[test]
    fn the_events_topic_takes_the_largest_event_and_never_less_than_a_batch() {
        for (event_bytes_max, room) in [(100, "1048588"), (1_000_000, "1048588"), (2_000_000, "2048588")] {
            let settings = TopicSettings { event_bytes_max, ..TopicSettings::default() };
            let specs = specs(&TopicNames::new("bank", &settings), &settings);
            let events = specs.iter().find(|spec| spec.name == "bank-events").expect("events");
            assert!(events.config.contains(&(MAX_MESSAGE_BYTES, room.to_owned())), "{events:?}");
        }
    }
}
