//! What an author's files begin with: `use throughline::prelude::*`.
//!
//! Names that nearly every context needs, and no more: what is rare is better read with its room.

pub use crate::app::{App, Context};
pub use crate::avro::{Published, Schemas, Upcasters};
pub use crate::engine::{Aggregate, Decision, Refusal};
pub use crate::plain::{HistoryTable, PlainContext, Routes, StateTable};
