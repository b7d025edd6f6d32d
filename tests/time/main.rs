//! Time and space: clocks that are set, time partitions beside readers, retention, and the parts of the event
//! store.

#[expect(dead_code, reason = "the processor's tests use all of it")]
#[path = "../processor/floor.rs"]
mod floor;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../outbox/mod.rs"]
mod outbox;

mod events;
mod held;
mod leaps;
mod server;
mod spans;
mod telling;
