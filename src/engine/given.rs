//! Given/when/then for aggregates: the language of domain tests, in a context of ours or yours.

use super::aggregate::{Aggregate, Decision};

/// Past events, then a command, then what was decided.
///
/// The example of [`Aggregate`] shows both ends.
pub struct Given<A: Aggregate> {
    state: A,
}

/// Starts a scenario from the events that already happened.
pub fn given<A: Aggregate>(events: impl IntoIterator<Item = A::Event>) -> Given<A> {
    let mut state = A::default();
    for event in events {
        state.evolve(&event);
    }
    Given { state }
}

impl<A: Aggregate> Given<A> {
    /// Decides one command against that past.
    pub fn when(self, command: &A::Command) -> When<A> {
        When { decision: self.state.decide(command) }
    }
}

/// A decision about to be judged.
pub struct When<A: Aggregate> {
    decision: Decision<A::Event>,
}

impl<A: Aggregate> When<A> {
    /// Exactly these events were decided.
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) {
        let expected: Vec<_> = expected.into_iter().collect();
        match self.decision {
            Ok(events) => assert_eq!(events, expected),
            Err(refusal) => panic!("expected {expected:?}, but it was refused: {refusal}"),
        }
    }

    /// It was refused with this code, and nothing happened.
    #[track_caller]
    pub fn then_refused(self, code: &str) {
        match self.decision {
            Ok(events) => panic!("expected a refusal {code}, but it decided {events:?}"),
            Err(refusal) => assert_eq!(refusal.code, code, "{refusal}"),
        }
    }
}
