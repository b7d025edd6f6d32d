//! Composition: what a process is made of, and how it starts and stops. Knows every other room;
//! no other room knows it. Business rules never live here.

mod application;
pub mod asyncapi;
pub mod context;
pub mod dev;
pub mod install;
pub mod lifecycle;
pub mod maintenance;
pub mod roles;
pub mod telemetry;

pub use application::{App, AppError, check_name};
pub use context::{Context, Hosted, Messages, Opened};
