//! Admission: how many commands may wait to be decided, and what the next one is told.
//!
//! A lane's queue is what Kafka holds beyond the processors' offsets (sampled), plus what was
//! accepted since that sample, plus what is on its way to Kafka: an overestimate at any moment, so
//! the bound holds. All of it is known by partition: what stands in one, or is not acknowledged there,
//! leaves room for the commands of others. Commands of a partition whose overflow is not drained go on
//! to overflow, whatever the load, so that a stream's commands are never overtaken by later ones; where
//! overflow is the policy, Kafka is asked for that before each command, so that it holds across servers.
//! The bound is exact within one server; several servers see each other's commands at the next sample.

mod looks;
mod overflow;
mod overflowed;
mod queue;
mod sampler;
mod unmovable;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use looks::Looks;
pub use overflow::{OverflowError, drain};
pub use overflowed::LANE_HEADER;
pub use queue::Depths;
use queue::{Held, Part, Queue, Room, Spill};
pub use sampler::{Sampler, SamplerError};

use super::problem::{KAFKA_UNAVAILABLE, Problem, QUEUE_FULL, STARTING};
use crate::engine::destination_partition;
use crate::kafka::Lane;
use crate::settings::{AdmissionPolicy, HttpSettings, Settings};

/// The admission of one server.
#[derive(Debug)]
pub struct Admission {
    limits: [Limit; 3],
    overflow_commands_max: u64,
    /// Commands and bytes on their way to Kafka, at most.
    in_flight_max: (u64, u64),
    wait: Duration,
    retry_after_max_s: u64,
    state: Mutex<State>,
    room: Notify,
    looks: Looks,
}

#[derive(Debug, Clone, Copy)]
struct Limit {
    policy: AdmissionPolicy,
    commands_max: u64,
}

#[derive(Debug)]
struct State {
    lanes: [Queue; 3],
    spills: Vec<Spill>,
    on_their_way: Room,
    /// Nothing is accepted before the queue and the overflow were looked at once.
    sampled: bool,
}

/// Where an admitted command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight to this partition of its lane.
    Lane { lane: Lane, partition: i32 },
    /// To this partition of the overflow topic, to be moved to the lane later.
    Overflow { lane: Lane, partition: i32 },
}

/// The right to hand one command over. Held until Kafka acknowledged it; dropped else.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    way: Way,
    bytes: u64,
}

/// Why there is no permit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    NotSampled,
    Commands,
    /// As much of its partition is on its way as may be.
    Room,
    Overflow,
    /// Nobody leads its partition.
    Leaderless,
    /// What is in overflow before it could not be found out.
    Unknown,
}

impl Admission {
    /// The limits of `settings`, with nothing sampled yet.
    pub fn new(settings: &Settings) -> Arc<Self> {
        let http: &HttpSettings = &settings.http;
        let partitions = usize::try_from(settings.topics.command_partitions).unwrap_or(1);
        let in_flight_max = (http.concurrent_requests_max as u64, http.admission.in_flight_bytes_max as u64);
        Arc::new(Self {
            limits: limits(http),
            overflow_commands_max: http.admission.overflow_commands_max,
            in_flight_max,
            wait: Duration::from_millis(http.admission.wait_ms),
            retry_after_max_s: http.admission.retry_after_max_s.max(1),
            state: Mutex::new(State {
                lanes: std::array::from_fn(|_| Queue::of(partitions)),
                spills: vec![Spill::default(); partitions],
                on_their_way: Room::new(in_flight_max.0, in_flight_max.1, 4 * partitions),
                sampled: false,
            }),
            room: Notify::new(),
            looks: Looks::default(),
        })
    }

    /// Admits a command of `bytes` bytes, at once or (policy `wait`, or before the first sample)
    /// within the configured wait.
    pub async fn admit(self: &Arc<Self>, lane: Lane, stream_id: Uuid, bytes: usize) -> Result<Permit, Problem> {
        let deadline = Instant::now() + self.wait;
        if self.looks_first(stream_id) && !self.looks.fresh(deadline).await {
            return Err(self.refuse(lane, stream_id, Full::Unknown));
        }
        loop {
            // Registered before the look, so that no room made meanwhile is missed.
            let room = self.room.notified();
            let full = match self.reserve(lane, stream_id, bytes as u64) {
                Ok(way) => return Ok(Permit { admission: self.clone(), way, bytes: bytes as u64 }),
                Err(full) => full,
            };
            let waits = match full {
                Full::NotSampled => true,
                Full::Leaderless | Full::Unknown => false,
                Full::Commands | Full::Room | Full::Overflow => {
                    self.limits[lane.index()].policy == AdmissionPolicy::Wait
                }
            };
            if !waits || tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(self.refuse(lane, stream_id, full));
            }
        }
    }

    /// Whether another server may have put a command before this one into overflow, unknown to us.
    fn looks_first(&self, stream_id: Uuid) -> bool {
        let overflows = self.limits.iter().any(|limit| limit.policy == AdmissionPolicy::Overflow);
        overflows && {
            let state = self.lock();
            state.spills[place(stream_id, state.spills.len())].pending() == 0
        }
    }

    fn reserve(&self, lane: Lane, stream_id: Uuid, bytes: u64) -> Result<Way, Full> {
        let limit = self.limits[lane.index()];
        let overflows = self.limits.iter().any(|limit| limit.policy == AdmissionPolicy::Overflow);
        let mut state = self.lock();
        let State { lanes, spills, on_their_way, sampled } = &mut *state;
        if !*sampled {
            return Err(Full::NotSampled);
        }
        let spilled = place(stream_id, spills.len());
        let pending = spills[spilled].pending();
        if pending == 0 && overflows && !spills[spilled].is_known {
            return Err(Full::Unknown);
        }
        let queue = &mut lanes[lane.index()];
        let partition = place(stream_id, queue.parts.len());
        if pending == 0 && queue.depth_for(Some(partition), limit.commands_max) < limit.commands_max {
            let part: &mut Part = &mut queue.parts[partition];
            if part.is_leaderless {
                return Err(Full::Leaderless);
            }
            if !on_their_way.take(&mut part.in_flight, bytes) {
                return Err(Full::Room);
            }
            return Ok(Way::Lane { lane, partition: partition as i32 });
        }
        // A backlog from an earlier configuration is respected as well: order first.
        if pending == 0 && limit.policy != AdmissionPolicy::Overflow {
            return Err(Full::Commands);
        }
        if spills.iter().map(Spill::pending).sum::<u64>() >= self.overflow_commands_max {
            return Err(Full::Overflow);
        }
        if !on_their_way.take(&mut spills[spilled].in_flight, bytes) {
            return Err(Full::Room);
        }
        Ok(Way::Overflow { lane, partition: spilled as i32 })
    }

    /// Room for the drainer: up to `most` commands of `lane`, while the lane is below half its
    /// limit, so that draining does not fill what it drains into. Counted as on their way.
    fn reserve_drained(&self, lane: Lane, most: usize) -> usize {
        let half = (self.limits[lane.index()].commands_max / 2).max(1);
        let mut state = self.lock();
        if !state.sampled {
            return 0;
        }
        let queue = &mut state.lanes[lane.index()];
        let granted = half.saturating_sub(queue.depth_for(None, half)).min(most as u64);
        queue.moved.in_flight.commands += granted;
        granted as usize
    }

    /// Gives back what [`Admission::reserve_drained`] granted; `delivered` of it is in the lane now.
    fn release_drained(&self, lane: Lane, granted: u64, delivered: u64) {
        let mut state = self.lock();
        let queue = &mut state.lanes[lane.index()];
        queue.moved.in_flight.commands -= granted;
        queue.moved.accepted_total += delivered;
    }

    /// Whether a command of this partition of overflow can be moved to its lane: topics that have as many
    /// partitions hold a stream in the same one, and of others nothing is known beforehand.
    fn is_led(&self, lane: Lane, partition: i32) -> bool {
        let state = self.lock();
        let parts = &state.lanes[lane.index()].parts;
        parts.len() != state.spills.len() || parts.get(partition as usize).is_none_or(|part| !part.is_leaderless)
    }

    /// Overflow was moved up to these offsets, by partition.
    fn drained(&self, ends: &std::collections::BTreeMap<i32, i64>) {
        let mut state = self.lock();
        for (partition, end) in ends {
            if let Some(spill) = usize::try_from(*partition).ok().and_then(|at| state.spills.get_mut(at)) {
                spill.drained = spill.drained.max(*end);
                spill.end = spill.end.max(*end);
            }
        }
    }

    fn refuse(&self, lane: Lane, stream_id: Uuid, full: Full) -> Problem {
        let (depth, partition, seconds) = {
            let state = self.lock();
            let (queue, limit) = (&state.lanes[lane.index()], self.limits[lane.index()].commands_max);
            let partition = place(stream_id, queue.parts.len());
            let seconds = queue.seconds_until(limit, self.retry_after_max_s);
            (queue.depth_for(Some(partition), limit), partition, seconds)
        };
        let lane = lane.name();
        let (reason, kind, detail, seconds) = match full {
            Full::NotSampled => ("starting", STARTING, "how many commands wait was not measured yet".to_owned(), 1),
            Full::Room => {
                let detail =
                    format!("as much as may be of partition {partition} of lane {lane} is on its way to Kafka");
                ("in_flight", QUEUE_FULL, detail, 1)
            }
            Full::Commands => ("commands", QUEUE_FULL, format!("{depth} commands of lane {lane} wait"), seconds),
            Full::Overflow => ("overflow", QUEUE_FULL, "the overflow topic is full, too".to_owned(), seconds),
            Full::Leaderless => {
                let detail = format!("no broker leads partition {partition} of lane {lane}; streams of others go on");
                ("leaderless", KAFKA_UNAVAILABLE, detail, 1)
            }
            Full::Unknown => {
                let detail = "Kafka does not tell whether commands of this stream wait in overflow".to_owned();
                ("overflow_unknown", KAFKA_UNAVAILABLE, detail, 1)
            }
        };
        metrics::counter!("throughline_admission_rejected_total", "lane" => lane, "reason" => reason).increment(1);
        Problem::new(kind, detail).retry_after(seconds)
    }

    /// The queues as they stand, for metrics and checks.
    pub fn depths(&self) -> Depths {
        let state = self.lock();
        Depths {
            lanes: state.lanes.each_ref().map(Queue::depth),
            drained_per_second: state.lanes.each_ref().map(|queue| queue.drained_per_second),
            overflow: state.spills.iter().map(Spill::pending).sum(),
            in_flight_bytes: state.on_their_way.bytes() as usize,
            sampled: state.sampled,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Where the command goes.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Kafka acknowledged the command at `offset`.
    pub fn accepted(self, offset: i64) {
        let mut state = self.admission.lock();
        match self.way {
            Way::Lane { lane, partition } => {
                state.lanes[lane.index()].parts[partition as usize].accepted_total += 1;
            }
            Way::Overflow { partition, .. } => {
                let spill = &mut state.spills[partition as usize];
                spill.end = spill.end.max(offset + 1);
            }
        }
        // The drop that follows takes it out of what is on its way.
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        let State { lanes, spills, on_their_way, .. } = &mut *state;
        let held: &mut Held = match self.way {
            Way::Lane { lane, partition } => &mut lanes[lane.index()].parts[partition as usize].in_flight,
            Way::Overflow { partition, .. } => &mut spills[partition as usize].in_flight,
        };
        on_their_way.give(held, self.bytes);
    }
}

impl State {
    /// Divides what may be on its way anew, when topics have grown.
    fn divide(&mut self, (commands_max, bytes_max): (u64, u64)) {
        let parts = self.lanes.iter_mut().flat_map(|queue| queue.parts.iter_mut().map(|part| &mut part.in_flight));
        let held: Vec<&mut Held> = parts.chain(self.spills.iter_mut().map(|spill| &mut spill.in_flight)).collect();
        self.on_their_way = Room::new(commands_max, bytes_max, held.len());
        for held in held {
            let now = std::mem::take(held);
            self.on_their_way.count(held, now);
        }
    }
}

/// The partition of a stream, of so many.
fn place(stream_id: Uuid, partitions: usize) -> usize {
    destination_partition(stream_id, partitions.max(1) as i32) as usize
}

fn limits(http: &HttpSettings) -> [Limit; 3] {
    let of = |lane: Lane| {
        let other = match lane {
            Lane::Priority => Some(&http.admission.priority),
            Lane::Normal => None,
            Lane::Bulk => Some(&http.admission.bulk),
        };
        Limit {
            policy: other.and_then(|lane| lane.policy).unwrap_or(http.admission.policy),
            commands_max: other.and_then(|lane| lane.queue_commands_max).unwrap_or(http.admission.queue_commands_max),
        }
    };
    Lane::ALL.map(of)
}

#[cfg(test)]
mod tests;
