//! Journeys through the real binary: what users and operators do, end to end.

#[path = "../harness/mod.rs"]
mod harness;

mod chaos;
mod malformed;
mod one_order;
mod process;
mod replay;
mod takeover;
mod trouble;
