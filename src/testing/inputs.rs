//! Given/when/then for process managers: what one instance was told, then one more, then what it wants done.

use uuid::Uuid;

use crate::engine::{Action, Input, ProcessManager};

/// The instance of every scenario.
const INSTANCE: Uuid = Uuid::from_u128(1);

/// An instance with a past.
pub struct GivenInputs<'a, P: ProcessManager> {
    manager: &'a P,
    state: P::State,
}

/// Starts a scenario from the inputs that came already.
///
/// ```
/// use std::time::Duration;
/// use throughline::engine::{Action, Input, ProcessManager};
/// use throughline::testing::given_inputs;
///
/// #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
/// enum Told { Ordered, Answered }
///
/// struct Reminder;
///
/// impl ProcessManager for Reminder {
///     const NAME: &'static str = "reminder";
///     type Event = Told;
///     type State = bool;
///
///     fn handle(&self, _: uuid::Uuid, answered: &mut bool, input: &Input<Told>) -> Vec<Action> {
///         match input {
///             Input::Event(Told::Ordered) => vec![Action::set_deadline("answer", Duration::from_secs(60))],
///             Input::Event(Told::Answered) => { *answered = true; vec![Action::clear_deadline("answer")] }
///             Input::Deadline(_) | Input::Outcome(_) => vec![],
///         }
///     }
/// }
///
/// given_inputs(&Reminder, [Input::Event(Told::Ordered)])
///     .when(Input::Event(Told::Answered))
///     .then([Action::clear_deadline("answer")]);
/// ```
///
/// # Panics
/// As [`GivenInputs::when`].
#[track_caller]
pub fn given_inputs<P: ProcessManager>(
    manager: &P,
    inputs: impl IntoIterator<Item = Input<P::Event>>,
) -> GivenInputs<'_, P> {
    let mut given = GivenInputs { manager, state: P::State::default() };
    for input in inputs {
        given = GivenInputs { state: given.when(input).state, manager };
    }
    given
}

impl<P: ProcessManager> GivenInputs<'_, P> {
    /// Tells one input more.
    ///
    /// # Panics
    /// A command that its context would not take; a state or an input that is not read back from its JSON, as after
    /// a restart; an answer that is another one for the same state and input, as after a reset.
    #[track_caller]
    pub fn when(self, input: Input<P::Event>) -> Decided<P> {
        let (state, input): (P::State, Input<P::Event>) = (kept(&self.state), kept(&input));
        let decide = || {
            let mut state = state.clone();
            let actions = self.manager.handle(INSTANCE, &mut state, &input);
            (state, actions)
        };
        let ((state, actions), (again, repeated)) = (decide(), decide());
        assert_eq!(actions, repeated, "two answers to {input:?}");
        assert_eq!(json(&state), json(&again), "two states after {input:?}");
        for action in &actions {
            if let Action::Send(sending) = action
                && let Err(reason) = (sending.check)(&sending.value(Uuid::from_u128(2)))
            {
                panic!("{} takes no such command as {}: {reason}", sending.context, sending.body);
            }
        }
        Decided { state, actions }
    }
}

/// What an instance wants done, about to be judged.
pub struct Decided<P: ProcessManager> {
    /// What it remembers from now on.
    pub state: P::State,
    /// What it wants done, in order.
    pub actions: Vec<Action>,
}

impl<P: ProcessManager> Decided<P> {
    /// Exactly these.
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = Action>) {
        assert_eq!(self.actions, expected.into_iter().collect::<Vec<_>>());
    }
}

#[track_caller]
fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_else(|error| panic!("no JSON is made of it: {error}"))
}

/// A value as it comes back from the database.
#[track_caller]
fn kept<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let kept = json(value);
    serde_json::from_value(kept.clone()).unwrap_or_else(|error| panic!("{kept} is not read back: {error}"))
}
