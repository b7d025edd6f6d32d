//! Where publishing starts: Kafka's tails, read beside the loop and held against the store.
//!
//! First who leads each partition, which any broker tells; then each leader by itself. So a partition
//! without a leader, or with one that does not answer, is waited for by nobody else. PostgreSQL is
//! authoritative for what exists, Kafka for what was published.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::RelayError;
use super::lease::PartitionKey;
use super::partition::{Alarm, Phase, start_after};
use super::publishing_loop::PublishingLoop;
use super::tail::{self, Tail, TailRequest};
use crate::kafka::KafkaError;
use crate::kafka::client::Inquirer;
use crate::kafka::watermarks::BrokerId;

/// A tail that could not be read is asked for again after this long, and after twice as long each time up to
/// the second.
const TAIL_RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// The look-ups under way: one for leaders, and one at each leader.
#[derive(Default)]
pub(super) struct Alignment {
    look: Option<Look>,
    asked: BTreeMap<BrokerId, Asked>,
}

/// A partition under the epoch of the moment.
type Held = (PartitionKey, i64);
type Leaders = Result<(Inquirer, Vec<Result<BrokerId, KafkaError>>), KafkaError>;

struct Look {
    held: Vec<Held>,
    leaders: JoinHandle<Leaders>,
}

struct Asked {
    held: Vec<Held>,
    tails: JoinHandle<Result<Vec<Result<Tail, KafkaError>>, KafkaError>>,
}

impl PublishingLoop {
    /// Reads the tails of the partitions that need it, beside the loop, and applies them.
    pub(super) async fn align(&mut self) -> Result<(), RelayError> {
        if let Some(look) = self.alignment.look.take_if(|look| look.leaders.is_finished()) {
            self.ask_leaders(look).await?;
        }
        let finished = self.alignment.asked.iter().find(|(_, asked)| asked.tails.is_finished()).map(|(id, _)| *id);
        if let Some(asked) = finished.and_then(|leader| self.alignment.asked.remove(&leader)) {
            self.apply_tails(asked).await?;
        }
        if self.alignment.look.is_none() && !self.spell.is_waiting() {
            self.look_for_leaders();
        }
        Ok(())
    }

    fn look_for_leaders(&mut self) {
        let now = Instant::now();
        let (mut held, mut targets) = (Vec::new(), Vec::new());
        for (key, ours) in &mut self.partitions {
            let (Phase::Unaligned { from } | Phase::Halted { until: from }) = ours.state else { continue };
            if from <= now && !ours.hand_back {
                ours.state = Phase::Aligning;
                held.push((*key, ours.epoch));
                targets.push(ours.target.clone());
            }
        }
        if held.is_empty() {
            return;
        }
        let (kafka, progress) = (self.settings.kafka.clone(), self.progress.clone());
        let leaders = tokio::task::spawn_blocking(move || {
            let leaders = tail::leaders(&kafka, &targets);
            progress.notify_one();
            leaders
        });
        self.alignment.look = Some(Look { held, leaders });
    }

    /// Asks each leader for its tails, unless it is being asked already.
    async fn ask_leaders(&mut self, look: Look) -> Result<(), RelayError> {
        let (consumer, leaders) = look.leaders.await??;
        let mut groups: BTreeMap<BrokerId, Vec<Held>> = BTreeMap::new();
        for (held, leader) in look.held.into_iter().zip(leaders) {
            match leader {
                Ok(leader) if !self.alignment.asked.contains_key(&leader) => {
                    groups.entry(leader).or_default().push(held);
                }
                // Its turn comes with the next answer of that leader.
                Ok(_) => self.align_later(held, None),
                Err(error) => self.miss_tail(held, &error),
            }
        }
        let look_back = self.settings.relay.in_flight_max as i64 + 1_000;
        // The client that looked serves the first of them.
        let mut at_hand = Some(consumer);
        for (leader, held) in groups {
            let request = |(key, _): &Held| {
                let ours = self.partitions.get(key)?;
                Some(TailRequest { target: ours.target.clone(), published: ours.acknowledged.seq(), look_back })
            };
            let (held, requests): (Vec<_>, Vec<_>) =
                held.into_iter().filter_map(|held| Some((held, request(&held)?))).unzip();
            let (kafka, progress, consumer) = (self.settings.kafka.clone(), self.progress.clone(), at_hand.take());
            let tails = tokio::task::spawn_blocking(move || {
                let tails = match consumer.map_or_else(|| tail::client_of(&kafka), Ok) {
                    Ok(consumer) => Ok(tail::read_of_leader(&consumer, &kafka, &requests)),
                    Err(error) => Err(error),
                };
                progress.notify_one();
                tails
            });
            self.alignment.asked.insert(leader, Asked { held, tails });
        }
        Ok(())
    }

    async fn apply_tails(&mut self, asked: Asked) -> Result<(), RelayError> {
        let tails = asked.tails.await??;
        let reader = self.reader.as_ref().expect("a turn connects before it aligns");
        let keys: Vec<PartitionKey> = asked.held.iter().map(|(key, _)| *key).collect();
        // Read after the tails: what Kafka holds was committed before.
        let standings = match reader.standings(&keys).await {
            Ok(standings) => standings,
            Err(error) => {
                asked.held.into_iter().for_each(|held| self.align_later(held, None));
                return Err(error.into());
            }
        };
        for (held, tail) in asked.held.into_iter().zip(tails) {
            let tail = match tail {
                Ok(tail) => tail,
                Err(error) => {
                    self.miss_tail(held, &error);
                    continue;
                }
            };
            let (key, epoch) = held;
            let Some(ours) = self.partitions.get_mut(&key).filter(|o| o.epoch == epoch && o.state == Phase::Aligning)
            else {
                continue;
            };
            let standing = standings.get(&key).copied().unwrap_or_default();
            let published = ours.take_published(standing.published);
            let accepted =
                self.settings.relay.accept_lost_records_of.split(',').any(|name| name.trim() == &*ours.target.topic);
            match start_after(published, standing.last_seq, tail, accepted) {
                Ok(start) => {
                    ours.stream(start);
                    if start.after > published {
                        metrics::counter!("throughline_relay_duplicates_avoided_total")
                            .increment((start.after - published) as u64);
                        tracing::info!(target = %ours.target, published, seq = start.after,
                            "Kafka was ahead of the watermark");
                    }
                }
                Err(text) => self.halt(key, Alarm { text, seq: None }),
            }
        }
        self.pace.read_at(Instant::now());
        self.clear_alarms().await
    }

    /// A tail that could not be read: what only an operator changes is an alarm, the rest is waited for.
    fn miss_tail(&mut self, held: (PartitionKey, i64), error: &KafkaError) {
        if is_missing(error) {
            let text = format!("{error}. Run `throughline topics apply`, or check the relay's rights");
            if self.partitions.get(&held.0).is_some_and(|o| o.epoch == held.1 && o.state == Phase::Aligning) {
                self.halt(held.0, Alarm { text, seq: None });
            }
            return;
        }
        self.align_later(held, Some(error));
    }

    fn align_later(&mut self, (key, epoch): Held, error: Option<&KafkaError>) {
        let Some(ours) = self.partitions.get_mut(&key).filter(|o| o.epoch == epoch && o.state == Phase::Aligning)
        else {
            return;
        };
        let wait = error.map_or(TAIL_RETRY.0, |_| ours.tail_retry.clamp(TAIL_RETRY.0, TAIL_RETRY.1));
        ours.state = Phase::Unaligned { from: Instant::now() + wait };
        if let Some(error) = error {
            tracing::debug!(target = %ours.target, %error, "Kafka's tail cannot be read; tried again");
            ours.unread = Some(error.to_string());
            ours.tail_retry = wait * 2;
        }
    }
}

fn is_missing(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(error, KafkaError::Request { source, .. } if matches!(source.rdkafka_error_code(),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::TopicAuthorizationFailed)))
}
