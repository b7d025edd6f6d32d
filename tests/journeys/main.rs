//! Journeys through the real binary: what users and operators do, end to end.

#[path = "../harness/mod.rs"]
mod harness;

mod api_kill;
mod backpressure;
mod burst;
mod chaos;
mod descriptors;
mod events_cli;
mod ids_cli;
mod malformed;
mod neighbours;
mod one_order;
mod outages;
mod process;
mod python;
mod python_client;
mod readme;
mod replay;
mod republish;
mod rolling_upgrade;
mod scaling;
mod schemathesis;
mod status;
mod stopping;
mod takeover;
mod topic_anew;
mod trouble;
mod verify;
mod what_if;
mod world;
mod zombie;
