//! Bounds against hostile bytes. Whoever decodes Avro goes through these; settings cannot lift them.

use std::sync::Once;

/// The largest event, framed: what Kafka takes in one record by default, less its overhead.
pub const MAX_EVENT_BYTES: usize = 1_000_000;

/// The most elements of one array. Far above any bound of the domain, far below what hurts.
pub const MAX_ELEMENTS: usize = 100_000;

/// The deepest nesting of records and arrays.
pub const MAX_DEPTH: usize = 16;

/// The most that the reference decoder allocates at once.
pub const MAX_ALLOCATION_BYTES: usize = 4 * 1024 * 1024;

/// Sets apache-avro's process-wide allocation limit (512 MiB unless told). It takes effect once,
/// so this has to run before anything is decoded: [`super::Catalogue::new`] sees to it.
pub fn apply() {
    static APPLIED: Once = Once::new();
    APPLIED.call_once(|| {
        let in_force = apache_avro::util::max_allocation_bytes(MAX_ALLOCATION_BYTES);
        if in_force > MAX_ALLOCATION_BYTES {
            tracing::warn!(in_force, wanted = MAX_ALLOCATION_BYTES, "Avro's allocation limit was set before us");
        }
    });
}
