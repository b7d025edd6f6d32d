//! The pure core: a state, a rule that decides, a step that evolves.
//!
//! No clock, no random, no I/O: whatever a decision needs is handed in, so that a log of commands
//! decided twice gives the same events (design decision D12).

use std::fmt::Debug;

/// An aggregate: the consistency boundary of one stream of events.
///
/// `Default` is the state before the first event. The state is what snapshots keep, hence serde.
///
/// The processor folds a stream's events by `evolve`, asks `decide`, and appends what it answers, in one transaction;
/// a crash, or another owner, asks again. So both are functions: the same answer for the same state and command, for
/// ever, since old events are folded by today's `evolve`.
///
/// ```
/// use throughline::engine::{Aggregate, Decision, Refusal};
/// use throughline::testing::given;
///
/// #[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
/// struct Seat { taken: bool }
///
/// #[derive(Clone, Debug)]
/// struct Take;
///
/// #[derive(Clone, Debug, PartialEq)]
/// struct Taken;
///
/// impl Aggregate for Seat {
///     type Command = Take;
///     type Event = Taken;
///     const SNAPSHOT_VERSION: i16 = 1;
///
///     fn decide(&self, _: &Take) -> Decision<Taken> {
///         if self.taken { Err(Refusal::new("SEAT_TAKEN", "somebody sits there")) } else { Ok(vec![Taken]) }
///     }
///
///     fn evolve(&mut self, _: &Taken) {
///         self.taken = true;
///     }
/// }
///
/// given::<Seat>([]).when(&Take).then([Taken]);
/// given::<Seat>([Taken]).when(&Take).then_refused("SEAT_TAKEN");
/// ```
pub trait Aggregate:
    Default + Clone + Debug + Send + Sync + serde::Serialize + serde::de::DeserializeOwned + 'static
{
    /// What may be asked, already validated in shape.
    type Command: Clone + Debug + Send + Sync + 'static;
    /// What happened, newest shape only.
    type Event: Clone + Debug + PartialEq + Send + Sync + 'static;

    /// Raised whenever the serialized state changes shape: older snapshots are then ignored.
    const SNAPSHOT_VERSION: i16;

    /// Decides `command` against this state: events, or a typed refusal. Emits nothing else.
    fn decide(&self, command: &Self::Command) -> Decision<Self::Event>;

    /// Folds one event into the state. Total: an event that was decided is never rejected here.
    fn evolve(&mut self, event: &Self::Event);

    /// Bytes this state holds in memory, roughly; bounds the aggregate cache.
    fn weight(&self) -> usize {
        std::mem::size_of::<Self>()
    }
}

/// The answer of [`Aggregate::decide`].
pub type Decision<E> = Result<Vec<E>, Refusal>;

/// A domain answer of no. Not an error: it is recorded, answered, and never retried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct Refusal {
    /// Stable, upper snake case; callers match on it.
    pub code: &'static str,
    /// For people; may change between releases.
    pub reason: String,
}

impl Refusal {
    /// A refusal with a stable `code` and a sentence for people.
    pub fn new(code: &'static str, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}
