//! Throughline: event-sourced CQRS on Kafka and PostgreSQL.
//!
//! ```text
//!  any Kafka client ─┐                                    ┌─> projection ──> read tables ──> HTTP GET
//!                    ▼                                    │   (own group, own checkpoint)
//!  HTTP POST ──> bank-commands ──> processor ──> PostgreSQL ──> relay ──> bank-events ──> anyone
//!   (202/201)     (three lanes)       (group)      events, outbox,          (Avro, keyed,
//!                                                  outcomes, offsets         dense seq)
//!                                                  in one transaction
//! ```
//!
//! # Rooms
//! None knows a bounded context: those stand outside. `tests/tidy.rs` holds the last column.
//!
//! | room | what it is for | may import |
//! |---|---|---|
//! | [`engine`] | the vocabulary of a bounded context: aggregate, command, event, projection; and of a process manager | nothing of ours |
//! | [`plain`] | contexts of plain Rust types, by serde | `engine`, `avro`, `api`, `store` |
//! | [`settings`] | every setting, its default and unit | nothing of ours |
//! | [`avro`] | schema catalogue, codec, upcasting, registry API | `engine`, `settings`, `store` |
//! | [`store`] | PostgreSQL: connections, migrations, what several loops ask | `settings`, `crash` |
//! | [`kafka`] | clients, the consumer thread, topics, headers | `settings`, `engine`, `crash`, `health`, `panics` |
//! | [`processor`] | commands topic -> decide -> append | `engine`, `settings`, `store`, `kafka`, `avro`, `crash`, `health`, `panics` |
//! | [`relay`] | outbox -> Kafka | `engine`, `settings`, `store`, `kafka`, `avro`, `crash`, `health` |
//! | [`projection`] | events topic -> read tables; reset, rebuild, dead letters | `engine`, `settings`, `store`, `kafka`, `avro`, `crash`, `health`, `panics` |
//! | [`process`] | process managers: events, outcomes, deadlines -> commands, deadlines | `engine`, `settings`, `store`, `kafka`, `avro`, `crash`, `health`, `panics`, `projection` |
//! | [`audit`] | what is promised, held against what is stored and published | `settings`, `store`, `kafka`, `processor`, `relay`, `projection`, `process`, `health` |
//! | [`api`] | HTTP server, admission, problems, health | `engine`, `settings`, `store`, `kafka`, `avro`, `crash`, `health`, `presence` |
//! | [`app`] | composition, lifecycle, installation, development services | everything |
//! | [`cli`] | one file a subcommand | everything |
//! | [`testing`] | the test kit of a context's author | everything |
//! | [`prelude`] | what an author's files begin with | everything |
//! | [`presence`] | which processes live and what they do with their partitions, told to PostgreSQL | `settings`, `store`, `health` |
//! | [`status`] | who lives, what waits, what stands, what is away: asked and judged | `settings`, `store`, `health`, `kafka`, `presence`, `relay`, `projection`, `process`, `audit` |
//! | [`crash`] | named places to die, for tests of recovery | nothing of ours |
//! | [`panics`] | panics contained, told once and counted | nothing of ours |
//! | [`health`] | which loops live and are ready; the loops tell | nothing of ours |
//!
//! # Invariants
//! 1. One outcome per command id and stream of a context; a command delivered twice acts once: its id, its
//!    events and the offset it came from move in one PostgreSQL transaction. No two events share an id.
//! 2. Per destination partition, `seq` is dense and commit order is `seq` order; what is committed is
//!    published in that order, without a hole.
//! 3. A read table equals the fold of its events; its rows and its checkpoint move in one transaction.
//! 4. Events are never changed or removed; the database refuses.
//! 5. The domain never asks the time, an id or the world; it is told.
//! 6. Kafka's committed offsets follow PostgreSQL, never the other way, but for an operator's reset.
//! 7. Deliberately absent: distributed transactions, an ORM, global state, promises of exactly once
//!    on the wire.

// Rooms explain themselves by their parts, of which some are private: those who carry on read them, too.
#![allow(rustdoc::private_intra_doc_links)]

pub mod api;
pub mod app;
pub mod audit;
pub mod avro;
pub mod cli;
pub mod crash;
pub mod engine;
pub mod health;
pub mod kafka;
pub mod panics;
pub mod plain;
pub mod prelude;
pub mod presence;
pub mod process;
pub mod processor;
pub mod projection;
pub mod relay;
pub mod settings;
pub mod status;
pub mod store;
pub mod testing;

pub use app::App;
/// Crates whose types stand in our signatures.
pub use {apache_avro, jiff, serde_json, tokio_postgres, uuid};
