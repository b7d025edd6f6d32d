//! Rebuild: a new generation beside the live one, from the event store, switched in one transaction.
//!
//! Phases: discard leftovers -> tables -> fill in parallel up to where the live generation stands ->
//! indexes -> compare -> catch up -> hand over. Compared is at the (partition, seq) of one snapshot,
//! while the live generation goes on. In the last phase the live checkpoints are held: the new
//! generation is brought to exactly the same (partition, seq), schemas and checkpoints move. Killed
//! anywhere before that commits, nothing has happened: the next run discards what is left.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::task::JoinSet;
use tokio_postgres::{Client, IsolationLevel};

use super::checkpoint::{self, Checkpoint};
use super::digest::Difference;
use super::fill::Filled;
use super::switch::{self, Generations};
use super::{LIVE, NEXT, ProjectionLoopError, Projector, digest, fill, gaps, hand_over, install};
use crate::settings::FailurePolicy;
use crate::store::StoreError;

/// How far a rebuild is; read it from another task.
#[derive(Debug, Default)]
pub struct Progress {
    /// Events to apply, as known so far.
    pub total: AtomicU64,
    /// Events applied.
    pub done: AtomicU64,
}

/// What a rebuild did, or with `dry_run` would do.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RebuildReport {
    /// Events applied; with `dry_run`, to be applied.
    pub events: u64,
    /// Seconds until everything was switched.
    pub seconds: f64,
    /// Seconds of it that filled tables and made indexes.
    pub fill_seconds: f64,
    /// Version of the generation that was live; none when there was none.
    pub from_version: Option<i32>,
    pub to_version: i32,
    /// Whether the generations were comparable: same version, both there.
    pub compared: bool,
    /// Where the old live generation differed from the rebuilt one, and why, as far as that is known.
    pub differences: Vec<String>,
    /// Differences without a known reason.
    pub unexplained: usize,
    /// Whether the rebuilt tables are live now.
    pub switched: bool,
}

/// How far a rebuild may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebuildMode {
    /// Only tell what would happen.
    DryRun,
    /// Switch, unless the tables differ without a known reason.
    Checked,
    /// Switch, whatever differs.
    Forced,
}

/// Passes that catch up before the hand-over, at most; what is left then is applied in it.
const CATCH_UP_PASSES: usize = 20;
/// With fewer events than this to go, the hand-over holds the live projection up and applies them.
const HAND_OVER_EVENTS: i64 = 2_000;

/// Rebuilds the tables of a projection and switches to them. Reads go on throughout. Tables that are not
/// switched to stay in `read_next` until the next rebuild.
pub async fn rebuild<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    progress: &Arc<Progress>,
    mode: RebuildMode,
) -> Result<RebuildReport, ProjectionLoopError> {
    let started = Instant::now();
    let mut owner = switch::exclusive(projector).await?;
    let partitions = fill::partitions(projector, &owner).await?;
    let live = checkpoint::load(&owner, projector.name(), LIVE).await?;
    progress.total.store(live.iter().map(|row| row.seq.unsigned_abs()).sum(), Ordering::Relaxed);
    if mode == RebuildMode::DryRun {
        return describe(projector, &mut owner, progress).await;
    }
    let run = prepare(projector, &mut owner, partitions).await?;
    catch_up(projector, &owner, &run, progress).await?;
    make_indexes(projector, &mut owner).await?;
    let fill_seconds = started.elapsed().as_secs_f64();
    crate::crash_point!("projection.rebuild.filled");
    let compared = compare(projector, &owner, &run, progress).await?;
    let mut report = RebuildReport {
        events: 0,
        seconds: 0.0,
        fill_seconds,
        from_version: None,
        to_version: projector.projection.read_model().version,
        compared: compared.is_some(),
        unexplained: compared.as_deref().unwrap_or_default().iter().filter(|one| one.reason.is_none()).count(),
        differences: compared.unwrap_or_default().iter().map(ToString::to_string).collect(),
        switched: false,
    };
    report.switched = report.unexplained == 0 || mode == RebuildMode::Forced;
    report.from_version = if report.switched {
        switch_over(projector, &mut owner, &run, progress).await?
    } else {
        Some(report.to_version)
    };
    report.events = progress.done.load(Ordering::Relaxed);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Catches up with the live generation and hands over. Returns the version that was live.
async fn switch_over<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &mut Client,
    run: &Run,
    progress: &Arc<Progress>,
) -> Result<Option<i32>, ProjectionLoopError> {
    for _ in 0..CATCH_UP_PASSES {
        if catch_up(projector, owner, run, progress).await? < HAND_OVER_EVENTS {
            break;
        }
    }
    let mut tries = 0;
    loop {
        match hand_over::hand_over(projector, owner, run.resets, progress).await {
            Err(error) if switch::try_again(&error, &mut tries).await => {}
            outcome => return outcome,
        }
    }
}

async fn describe<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &mut Client,
    progress: &Arc<Progress>,
) -> Result<RebuildReport, ProjectionLoopError> {
    let tx = owner.transaction().await.map_err(StoreError::at("begin a dry run"))?;
    let generations = Generations::load(&tx, projector.name()).await?;
    Ok(RebuildReport {
        events: progress.total.load(Ordering::Relaxed),
        seconds: 0.0,
        fill_seconds: 0.0,
        from_version: generations.map(|found| found.version),
        to_version: projector.projection.read_model().version,
        compared: false,
        differences: Vec::new(),
        unexplained: 0,
        switched: false,
    })
}

/// One run.
struct Run {
    /// A worker of a run that was given up cannot write under it.
    epoch: i64,
    /// The last reset before it: a later one makes it start over.
    resets: i64,
}

/// Discards leftovers, makes empty tables and their checkpoints.
async fn prepare<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &mut Client,
    partitions: i32,
) -> Result<Run, ProjectionLoopError> {
    let name = projector.name();
    install::install(owner, projector.projection.read_model()).await?;
    let tx = owner.transaction().await.map_err(StoreError::at("begin a rebuild"))?;
    // Held for a moment: no reset is half carried out when the last one is looked up.
    checkpoint::lock(&tx, name, LIVE).await?;
    let resets = hand_over::last_reset(&tx, name).await?;
    let relations = hand_over::owned(&install::relations(projector.projection.read_model()));
    switch::discard(&tx, &relations, NEXT).await?;
    let role = projector.role().name().unwrap_or_default();
    install::create_tables(&tx, projector.projection.read_model(), NEXT, &role).await?;
    tx.execute("delete from throughline.checkpoints where projection = $1 and generation = 'read_next'", &[&name])
        .await
        .map_err(StoreError::at("discard checkpoints of an unfinished rebuild"))?;
    let epoch = jiff::Timestamp::now().as_microsecond();
    tx.execute(
        "insert into throughline.checkpoints (partition, projection, generation, epoch)
         select p, $1, 'read_next', $3 from generate_series(0, $2 - 1) p",
        &[&name, &partitions, &epoch],
    )
    .await
    .map_err(StoreError::at("create checkpoints of a rebuild"))?;
    tx.commit().await.map_err(StoreError::at("commit the start of a rebuild"))?;
    Ok(Run { epoch, resets })
}

async fn make_indexes<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &mut Client,
) -> Result<(), ProjectionLoopError> {
    let tx = owner.transaction().await.map_err(StoreError::at("begin the indexes of a rebuild"))?;
    install::create_indexes(&tx, projector.projection.read_model(), NEXT).await?;
    let analyze: String =
        projector.projection.read_model().tables.iter().map(|table| format!("analyze {NEXT}.{table};")).collect();
    tx.batch_execute(&analyze).await.map_err(StoreError::at("analyze rebuilt tables"))?;
    tx.commit().await.map_err(StoreError::at("commit the indexes of a rebuild"))?;
    Ok(())
}

/// Brings the new generation to where the live one stands now. Returns how many events that took.
async fn catch_up<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &Client,
    run: &Run,
    progress: &Arc<Progress>,
) -> Result<i64, ProjectionLoopError> {
    let live = checkpoint::load(owner, projector.name(), LIVE).await?;
    fill_to(projector, owner, &live, run.epoch, progress).await
}

/// Where the new generation differs from the live one, at the (partition, seq) of one snapshot; none
/// where they are of different versions. The live generation goes on meanwhile.
async fn compare<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &Client,
    run: &Run,
    progress: &Arc<Progress>,
) -> Result<Option<Vec<Difference>>, ProjectionLoopError> {
    let (name, tables) = (projector.name(), projector.projection.read_model().tables);
    let mut onlooker = switch::unhurried(projector).await?;
    let snapshot = onlooker
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(StoreError::at("take a snapshot to compare with"))?;
    if switch::live_version(&snapshot, name).await? != Some(projector.projection.read_model().version) {
        return Ok(None);
    }
    let live = checkpoint::load(&snapshot, name, LIVE).await?;
    fill_to(projector, owner, &live, run.epoch, progress).await?;
    let (live, next) =
        futures_util::try_join!(digest::digests(&snapshot, tables, LIVE), digest::digests(owner, tables, NEXT))?;
    let (old, new) = futures_util::try_join!(gaps::load(&snapshot, name, LIVE), gaps::load(owner, name, NEXT))?;
    Ok(Some(digest::differences(&live, &next, |partition| gaps::reason(&old, &new, partition))))
}

/// Brings every partition of the new generation to where `live` stands, some at a time. Returns how
/// many events that took.
async fn fill_to<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &Client,
    live: &[Checkpoint],
    epoch: i64,
    progress: &Arc<Progress>,
) -> Result<i64, ProjectionLoopError> {
    progress.total.store(live.iter().map(|row| row.seq.unsigned_abs()).sum(), Ordering::Relaxed);
    let next = checkpoint::load(owner, projector.name(), NEXT).await?;
    let mut spans: VecDeque<(i32, i64, i64)> = VecDeque::new();
    for row in &next {
        let upto = hand_over::seq_of(live, row.partition);
        match upto.cmp(&row.seq) {
            std::cmp::Ordering::Less => return Err(hand_over::was_reset(projector, row.partition)),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => spans.push_back((row.partition, row.seq, upto)),
        }
    }
    let events = spans.iter().map(|(_, after, upto)| upto - after).sum();
    let workers = projector.settings.projection.rebuild_workers.clamp(1, spans.len().max(1));
    let queue = Arc::new(Mutex::new(spans));
    // Tasks of their own, so that decoding uses every core; dropping the set ends them.
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(fill_worker(projector.clone(), queue.clone(), epoch, progress.clone()));
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.unwrap_or_else(|panic| {
            Err(ProjectionLoopError::refused(projector.name(), format!("its handler panicked: {panic}")))
        })?;
    }
    Ok(events)
}

async fn fill_worker<E: Send + Sync + 'static>(
    projector: Projector<E>,
    queue: Arc<Mutex<VecDeque<(i32, i64, i64)>>>,
    epoch: i64,
    progress: Arc<Progress>,
) -> Result<(), ProjectionLoopError> {
    let take = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    let mut client = None;
    while let Some((partition, mut reached, upto)) = take() {
        let client = match &mut client {
            Some(client) => client,
            empty => {
                let client = projector.connect(NEXT).await?;
                switch::take_time(&client).await?;
                empty.insert(client)
            }
        };
        while reached < upto {
            let (last, applied) = fill_span(&projector, client, epoch, (partition, reached, upto)).await?;
            reached = last;
            progress.done.fetch_add(applied as u64, Ordering::Relaxed);
            crate::crash_point!("projection.rebuild.after_chunk");
        }
    }
    Ok(())
}

/// One chunk and its checkpoint, in one transaction.
async fn fill_span<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    client: &mut Client,
    epoch: i64,
    (partition, reached, upto): (i32, i64, i64),
) -> Result<(i64, usize), ProjectionLoopError> {
    let tx = client.transaction().await.map_err(StoreError::at("begin a chunk of a rebuild"))?;
    let Filled { last, applied, .. } =
        fill::fill_chunk(projector, &tx, NEXT, FailurePolicy::Halt, (partition, reached, upto)).await?;
    let moved = tx
        .execute(
            "update throughline.checkpoints set seq = $5, updated_at = now()
             where projection = $1 and generation = 'read_next' and partition = $2 and epoch = $3 and seq = $4",
            &[&projector.name(), &partition, &epoch, &reached, &last],
        )
        .await
        .map_err(StoreError::at("move a checkpoint of a rebuild"))?;
    if moved == 0 {
        return Err(ProjectionLoopError::refused(projector.name(), "another rebuild took over; this one stops"));
    }
    tx.commit().await.map_err(StoreError::at("commit a chunk of a rebuild"))?;
    Ok((last, applied))
}
