//! Aggregate states kept between batches, bounded by bytes.
//!
//! A state is never trusted by itself: the load asks for events after its version while the
//! counter's lock is held, so a state that fell behind is caught up and a stale one does no harm. A state that is
//! ahead of the store would: a standby that was promoted may lack the tail. So what is cached is what one session
//! has seen, and ends with it.

use quick_cache::Weighter;
use quick_cache::unsync::Cache;
use uuid::Uuid;

use crate::engine::Aggregate;

/// A state at a version.
#[derive(Debug, Clone)]
pub(super) struct Cached<A> {
    pub state: A,
    pub version: i64,
    /// Version of the newest snapshot known; 0 without one.
    pub snapshot_version: i64,
}

/// Bytes of an entry beside its state: key, versions, the cache's own links.
const ENTRY_BYTES: usize = 96;

#[derive(Debug, Clone)]
struct ByBytes;

impl<A: Aggregate> Weighter<Uuid, Cached<A>> for ByBytes {
    fn weight(&self, _: &Uuid, cached: &Cached<A>) -> u64 {
        (cached.state.weight() + ENTRY_BYTES) as u64
    }
}

/// The cache of one worker.
pub(super) struct States<A: Aggregate> {
    cache: Cache<Uuid, Cached<A>, ByBytes>,
}

impl<A: Aggregate> States<A> {
    /// Holds `bytes_max` bytes at most, roughly.
    pub fn new(bytes_max: u64) -> Self {
        let entry = (std::mem::size_of::<A>() + ENTRY_BYTES) as u64;
        let entries = usize::try_from(bytes_max / entry).unwrap_or(usize::MAX);
        Self { cache: Cache::with_weighter(entries, bytes_max, ByBytes) }
    }

    /// Takes a state out: a batch that fails must not leave its changes behind.
    pub fn take(&mut self, stream_id: &Uuid) -> Option<Cached<A>> {
        self.cache.remove(stream_id).map(|(_, cached)| cached)
    }

    /// Puts a committed state back.
    pub fn put(&mut self, stream_id: Uuid, cached: Cached<A>) {
        self.cache.insert(stream_id, cached);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.cache.clear();
    }

    /// Bytes held, roughly.
    pub fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}
