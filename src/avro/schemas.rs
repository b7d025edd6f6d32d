//! What a context ever published, as its author hands it over: the authority is its schema files.

use super::catalogue::Published;
use super::upcast::Upcasters;

/// The schemas of a context with the steps between their versions.
#[derive(Debug, Clone, Copy)]
pub struct Schemas {
    /// Every version of every type.
    pub published: &'static [Published<'static>],
    /// From each version to the next.
    pub upcasters: fn() -> Upcasters,
    /// Text of the lock file: fingerprints of all that was published.
    pub lock: &'static str,
}
