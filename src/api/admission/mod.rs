//! Admission: how many commands may wait to be decided, and what the next one is told.
//!
//! A lane's queue is what Kafka holds beyond the processors' offsets (sampled), plus what was
//! accepted since that sample, plus what is on its way to Kafka: an overestimate at any moment, so
//! the bound holds. Commands of a partition whose overflow is not drained go on to overflow,
//! whatever the load, so that an order's commands are never overtaken by later ones.
//! The bound is exact within one server; several servers see each other's commands at the next sample.

mod overflow;
mod queue;
mod sampler;
mod unmovable;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

pub use overflow::{LANE_HEADER, OverflowError, drain};
pub use queue::Depths;
use queue::{Queue, Spill};
pub use sampler::{Sampler, SamplerError};

use super::lane::Lane;
use super::problem::{Problem, QUEUE_FULL};
use crate::engine::destination_partition;
use crate::settings::{AdmissionPolicy, HttpSettings, Settings};

/// The admission of one server.
#[derive(Debug)]
pub struct Admission {
    limits: [Limit; 3],
    overflow_commands_max: u64,
    bytes_max: usize,
    wait: Duration,
    retry_after_max_s: u64,
    state: Mutex<State>,
    bytes: AtomicUsize,
    room: Notify,
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
    /// Nothing is accepted before the queue and the overflow were looked at once.
    sampled: bool,
}

/// Where an admitted command goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight to its lane.
    Lane(Lane),
    /// To this partition of the overflow topic, to be moved to the lane later.
    Overflow { lane: Lane, partition: i32 },
}

/// The right to hand one command over. Held until Kafka acknowledged it; dropped else.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    way: Way,
    bytes: usize,
}

/// Why there is no permit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    NotSampled,
    Commands,
    Bytes,
    Overflow,
}

impl Admission {
    /// The limits of `settings`, with nothing sampled yet.
    pub fn new(settings: &Settings) -> Arc<Self> {
        let http: &HttpSettings = &settings.http;
        let partitions = usize::try_from(settings.topics.command_partitions).unwrap_or(1);
        Arc::new(Self {
            limits: limits(http),
            overflow_commands_max: http.admission.overflow_commands_max,
            bytes_max: http.admission.in_flight_bytes_max,
            wait: Duration::from_millis(http.admission.wait_ms),
            retry_after_max_s: http.admission.retry_after_max_s.max(1),
            state: Mutex::new(State {
                lanes: [Queue::default(); 3],
                spills: vec![Spill::default(); partitions],
                sampled: false,
            }),
            bytes: AtomicUsize::new(0),
            room: Notify::new(),
        })
    }

    /// Admits a command of `bytes` bytes, at once or (policy `wait`, or before the first sample)
    /// within the configured wait.
    pub async fn admit(self: &Arc<Self>, lane: Lane, stream_id: Uuid, bytes: usize) -> Result<Permit, Problem> {
        let deadline = Instant::now() + self.wait;
        loop {
            // Registered before the look, so that no room made meanwhile is missed.
            let room = self.room.notified();
            let full = match self.try_admit(lane, stream_id, bytes) {
                Ok(permit) => return Ok(permit),
                Err(full) => full,
            };
            let waits = full == Full::NotSampled || self.limits[lane.index()].policy == AdmissionPolicy::Wait;
            if !waits || tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(self.refuse(lane, full));
            }
        }
    }

    fn try_admit(self: &Arc<Self>, lane: Lane, stream_id: Uuid, bytes: usize) -> Result<Permit, Full> {
        self.reserve_bytes(bytes)?;
        let way = self.reserve(lane, stream_id);
        match way {
            Ok(way) => Ok(Permit { admission: self.clone(), way, bytes }),
            Err(full) => {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                Err(full)
            }
        }
    }

    fn reserve_bytes(&self, bytes: usize) -> Result<(), Full> {
        let fits = |held: usize| Some(held + bytes).filter(|sum| *sum <= self.bytes_max);
        match self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(_) => Err(Full::Bytes),
        }
    }

    fn reserve(&self, lane: Lane, stream_id: Uuid) -> Result<Way, Full> {
        let limit = self.limits[lane.index()];
        let mut state = self.lock();
        if !state.sampled {
            return Err(Full::NotSampled);
        }
        let partition = destination_partition(stream_id, state.spills.len() as i32);
        let pending = state.spills[partition as usize].pending();
        let queue = &mut state.lanes[lane.index()];
        if pending == 0 && queue.depth() < limit.commands_max {
            queue.in_flight += 1;
            return Ok(Way::Lane(lane));
        }
        // A backlog from an earlier configuration is respected as well: order first.
        if pending == 0 && limit.policy != AdmissionPolicy::Overflow {
            return Err(Full::Commands);
        }
        if state.spills.iter().map(Spill::pending).sum::<u64>() >= self.overflow_commands_max {
            return Err(Full::Overflow);
        }
        state.spills[partition as usize].in_flight += 1;
        Ok(Way::Overflow { lane, partition })
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
        let granted = half.saturating_sub(queue.depth()).min(most as u64);
        queue.in_flight += granted;
        granted as usize
    }

    /// Gives back what [`Admission::reserve_drained`] granted; `delivered` of it is in the lane now.
    fn release_drained(&self, lane: Lane, granted: u64, delivered: u64) {
        let mut state = self.lock();
        let queue = &mut state.lanes[lane.index()];
        queue.in_flight -= granted;
        queue.accepted_total += delivered;
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

    fn refuse(&self, lane: Lane, full: Full) -> Problem {
        let (depth, seconds) = {
            let state = self.lock();
            let queue = &state.lanes[lane.index()];
            (queue.depth(), queue.seconds_until(self.limits[lane.index()].commands_max, self.retry_after_max_s))
        };
        let (reason, detail, seconds) = match full {
            Full::NotSampled => ("starting", "the queue was not measured yet".to_owned(), 1),
            Full::Bytes => ("bytes", "too many bytes are on their way to Kafka".to_owned(), 1),
            Full::Commands => ("commands", format!("{depth} commands of lane {} wait", lane.name()), seconds),
            Full::Overflow => ("overflow", "the overflow topic is full, too".to_owned(), seconds),
        };
        let labels = [("lane", lane.name()), ("reason", reason)];
        metrics::counter!("throughline_admission_rejected_total", &labels).increment(1);
        Problem::new(QUEUE_FULL, detail).retry_after(seconds)
    }

    /// The queues as they stand, for metrics and checks.
    pub fn depths(&self) -> Depths {
        let state = self.lock();
        Depths {
            lanes: state.lanes.each_ref().map(Queue::depth),
            drained_per_second: state.lanes.each_ref().map(|queue| queue.drained_per_second),
            overflow: state.spills.iter().map(Spill::pending).sum(),
            in_flight_bytes: self.bytes.load(Ordering::Relaxed),
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
            Way::Lane(lane) => state.lanes[lane.index()].accepted_total += 1,
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
        self.admission.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        let mut state = self.admission.lock();
        match self.way {
            Way::Lane(lane) => state.lanes[lane.index()].in_flight -= 1,
            Way::Overflow { partition, .. } => state.spills[partition as usize].in_flight -= 1,
        }
    }
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
