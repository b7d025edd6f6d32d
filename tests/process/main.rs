//! Process managers on real services: killed at every step, taken over, parked, reset; deadlines across restarts.

#[path = "../harness/mod.rs"]
mod harness;

mod bed;
mod courier;
mod deadlines;
mod kills;
mod operators;
mod payments;
mod shop;
