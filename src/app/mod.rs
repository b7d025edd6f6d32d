//! What knows every room: roles, lifecycle, telemetry, development services.

pub mod dev;
