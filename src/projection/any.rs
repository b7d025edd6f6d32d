//! A projection whatever its events are: what the command line does with one, by its name.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_postgres::Client;

use super::audit::{self, Audited, Unaudited};
use super::offsets::{PlannedReset, ResetTarget, reset_offsets};
use super::rebuild::{Progress, RebuildMode, RebuildReport, rebuild};
use super::replay::{ReplayedKey, replay};
use super::switch::{RollbackReport, rollback};
use super::{ProjectionLoopError, Projector, state};
use crate::engine::ReadModel;
use crate::store::{Pace, StoreError};

/// The end of an operation.
pub type Done<'a, T> = BoxFuture<'a, Result<T, ProjectionLoopError>>;

/// A [`Projector`] with its event type erased; implemented once, for each of them.
pub trait AnyProjector: Send + Sync {
    /// What it builds.
    fn read_model(&self) -> ReadModel;
    /// Its consumer group.
    fn group(&self) -> &str;
    /// The events topic that it reads.
    fn topic(&self) -> &str;
    /// As [`state::status`].
    fn status<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<state::Status, StoreError>>;
    /// As [`reset_offsets`].
    fn reset<'a>(&'a self, target: &'a ResetTarget, dry_run: bool) -> Done<'a, Vec<PlannedReset>>;
    /// As [`rebuild`].
    fn rebuild<'a>(&'a self, progress: &'a Arc<Progress>, mode: RebuildMode) -> Done<'a, RebuildReport>;
    /// As [`rollback`].
    fn rollback(&self, dry_run: bool) -> Done<'_, RollbackReport>;
    /// As [`replay`].
    fn replay<'a>(&'a self, keys: Option<&'a [Vec<u8>]>, dry_run: bool) -> Done<'a, Vec<ReplayedKey>>;
    /// Holds `partitions` of its tables against their events; `told` hears of each.
    fn audit<'a>(
        &'a self,
        partitions: &'a [i32],
        pace: &'a Pace,
        told: &'a (dyn Fn(Audited) + Send + Sync),
    ) -> Done<'a, Result<(), Unaudited>>;
}

impl dyn AnyProjector + '_ {
    /// The projection's name.
    pub fn name(&self) -> &'static str {
        self.read_model().name
    }
}

impl<E: Send + Sync + 'static> AnyProjector for Projector<E> {
    fn read_model(&self) -> ReadModel {
        self.projection.read_model()
    }

    fn group(&self) -> &str {
        &self.group
    }

    fn topic(&self) -> &str {
        &self.topic
    }

    fn status<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<state::Status, StoreError>> {
        Box::pin(state::status(client, self))
    }

    fn reset<'a>(&'a self, target: &'a ResetTarget, dry_run: bool) -> Done<'a, Vec<PlannedReset>> {
        Box::pin(reset_offsets(self, target, dry_run))
    }

    fn rebuild<'a>(&'a self, progress: &'a Arc<Progress>, mode: RebuildMode) -> Done<'a, RebuildReport> {
        Box::pin(rebuild(self, progress, mode))
    }

    fn rollback(&self, dry_run: bool) -> Done<'_, RollbackReport> {
        Box::pin(rollback(self, dry_run))
    }

    fn replay<'a>(&'a self, keys: Option<&'a [Vec<u8>]>, dry_run: bool) -> Done<'a, Vec<ReplayedKey>> {
        Box::pin(replay(self, keys, dry_run))
    }

    fn audit<'a>(
        &'a self,
        partitions: &'a [i32],
        pace: &'a Pace,
        told: &'a (dyn Fn(Audited) + Send + Sync),
    ) -> Done<'a, Result<(), Unaudited>> {
        Box::pin(audit::audit(self, partitions, pace, told))
    }
}
