//! The test kit: a context's rules, its wire forms and its whole product, held by tests of its author's own.
//!
//! [`given`] speaks of an aggregate's rules alone, [`given_inputs`] of a process manager's, [`conforms`] of everything
//! that needs no services; [`project`] of a read table on a real PostgreSQL, and a [`Stage`] of the whole product,
//! which [`survives`] kills at each point; an [`OwnDatabase`] is for tests that run a binary. What is wrong panics, as in any test. Nothing that runs in
//! production calls it.

mod conformance;
mod inputs;
mod past;
mod project;
mod services;
mod stage;
mod survival;

pub use conformance::conforms;
pub use inputs::{Decided, GivenInputs, given_inputs};
pub use past::written_in;
pub use project::{Projected, project};
pub use services::OwnDatabase;
pub use stage::{Answer, Stage};
pub use survival::survives;

pub use crate::engine::given::{Given, When, given};
