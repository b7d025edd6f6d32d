//! Projections on the real Kafka and PostgreSQL: the loop, resets, failures, rebuilds, rights.

mod bed;
mod failures;
mod faulty;
mod fold;
mod follow;
mod rebuilds;
mod resets;
mod rights;
mod scenario;
