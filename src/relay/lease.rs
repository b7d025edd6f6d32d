//! Who publishes which partition: leases with an epoch, shared fairly among the live relays.
//!
//! A task of its own with a connection of its own, so that neither a slow read nor a slow broker
//! delays a renewal. PostgreSQL is authoritative, and only its clock tells whether a lease ran out;
//! here a monotonic deadline, taken before the renewal was sent, tells when it could have. A lease that a clock
//! dated before it was set back is not believed (`throughline.holds`). Every move
//! is a compare-and-set on the epoch: who lost it learns so at its next statement.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::try_join;
use tokio::sync::{Notify, watch};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use tokio_util::sync::CancellationToken;

use super::status::Gauges;
use crate::health::{Heartbeat, Told};
use crate::settings::Settings;
use crate::store::{DatabaseRole, Line, StoreError, bounded, connect};

/// A partition of a destination topic, by the topic's small id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionKey {
    // First, so that a share holds the same partitions of every topic: load is even, and a
    // command's events and its result go the same way.
    pub partition: i32,
    /// `throughline.topics.id`.
    pub topic: i16,
}

/// A partition this process may publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub epoch: i64,
    /// The watermark when the lease was acquired.
    pub published: i64,
    /// Kafka's name of the topic.
    pub topic: Arc<str>,
    /// More than this relay's share: finish what is in flight, then release.
    pub hand_back: bool,
}

/// All leases of this process at one moment.
#[derive(Debug, Clone, Default)]
pub struct LeaseTable {
    pub held: BTreeMap<PartitionKey, Lease>,
    /// When the last renewal was sent; none before the first.
    pub renewed_at: Option<Instant>,
}

/// What the publishing loop and the keeper share.
pub struct Leases {
    pub owner: String,
    pub duration: Duration,
    table: watch::Sender<Arc<LeaseTable>>,
    /// Bounded by the number of partitions.
    releases: Mutex<BTreeSet<PartitionKey>>,
    released: Notify,
}

impl Leases {
    pub fn new(owner: String, duration: Duration) -> Arc<Self> {
        Arc::new(Self {
            owner,
            duration,
            table: watch::Sender::new(Arc::default()),
            releases: Mutex::default(),
            released: Notify::new(),
        })
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<LeaseTable>> {
        self.table.subscribe()
    }

    /// Gives a drained partition back at the keeper's next turn, which comes at once.
    pub fn release(&self, key: PartitionKey) {
        self.releases.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.released.notify_one();
    }

    /// Keeps the leases until `stop`; then gives all of them back. Whatever PostgreSQL answers meanwhile is
    /// waited out.
    pub async fn keep(self: Arc<Self>, settings: Arc<Settings>, heartbeat: Heartbeat, stop: CancellationToken) {
        let mut keeper =
            Keeper { leases: self.clone(), connection: None, table: LeaseTable::default(), gauges: Gauges::default() };
        let turn = self.duration / 3;
        let told = Told::new("relay leases cannot be renewed, and publishing pauses when they run out");
        loop {
            let turned = match keeper.connect(&settings).await {
                // What is left of the lease then is enough for another connection.
                Ok(()) => bounded(self.duration / 2, "renew the relay's leases", keeper.turn()).await,
                Err(error) => Err(error),
            };
            match turned {
                Ok(()) => {
                    heartbeat.ready();
                    told.well();
                }
                Err(error) => {
                    // What it holds is checked by epoch and by the clock: a new connection can only be told of less.
                    keeper.connection = None;
                    let reason = error.to_string();
                    heartbeat.not_ready(format!("leases cannot be renewed: {reason}"));
                    told.failed(&reason);
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.released.notified() => {}
                () = tokio::time::sleep(turn) => {}
            }
        }
        // Others need not wait for the leases to run out. If this fails they do wait.
        let released = bounded(self.duration, "hand the relay's leases back", keeper.release_all());
        if let Err(error) = released.await {
            tracing::warn!(%error, "relay leases were not handed back; they run out by themselves");
        }
    }
}

struct Connection {
    client: Line,
    enlist: Statement,
    renew: Statement,
    members: Statement,
    leases: Statement,
    acquire: Statement,
    release: Statement,
}

const ENLIST: &str = "
    insert into throughline.relay_members as m (owner, renewed_at, expires_at)
    values ($1, now(), now() + make_interval(secs => $2))
    on conflict (owner) do update set renewed_at = excluded.renewed_at, expires_at = excluded.expires_at";
const RENEW: &str = "
    update throughline.relay_leases l set renewed_at = now(), expires_at = now() + make_interval(secs => $2)
    from unnest($3::int[], $4::smallint[], $5::bigint[]) as held (partition, topic, epoch)
    where l.partition = held.partition and l.topic = held.topic and l.epoch = held.epoch and l.owner = $1
    returning l.partition, l.topic";
const MEMBERS: &str = "
    select owner from throughline.relay_members where throughline.holds(renewed_at, expires_at) order by owner";
const LEASES: &str = "
    select l.partition, l.topic, t.name, l.epoch,
           l.owner <> '' and throughline.holds(l.renewed_at, l.expires_at)
    from throughline.relay_leases l join throughline.topics t on t.id = l.topic order by l.partition, l.topic";
const ACQUIRE: &str = "
    with free as (
        select l.partition, l.topic from throughline.relay_leases l
        join unnest($3::int[], $4::smallint[], $5::bigint[]) as seen (partition, topic, epoch)
          on l.partition = seen.partition and l.topic = seen.topic and l.epoch = seen.epoch
        where l.owner = '' or not throughline.holds(l.renewed_at, l.expires_at)
        order by l.partition, l.topic
        for update of l skip locked)
    update throughline.relay_leases l
    set owner = $1, epoch = l.epoch + 1, renewed_at = now(), expires_at = now() + make_interval(secs => $2), updated_at = now(),
        halted = null
    from free where l.partition = free.partition and l.topic = free.topic
    returning l.partition, l.topic, l.epoch, l.published";
const RELEASE: &str = "
    update throughline.relay_leases l set owner = '', expires_at = '-infinity', updated_at = now()
    from unnest($2::int[], $3::smallint[], $4::bigint[]) as held (partition, topic, epoch)
    where l.partition = held.partition and l.topic = held.topic and l.epoch = held.epoch and l.owner = $1";

struct Keeper {
    leases: Arc<Leases>,
    connection: Option<Connection>,
    table: LeaseTable,
    gauges: Gauges,
}

impl Keeper {
    async fn connect(&mut self, settings: &Settings) -> Result<(), StoreError> {
        if self.connection.is_none() {
            let limit = settings.database.round_trip();
            self.connection = Some(bounded(limit, "prepare the relay's lease statements", prepare(settings)).await?);
        }
        Ok(())
    }

    /// One turn: give back, renew, see who lives, take or offer up to the fair share.
    async fn turn(&mut self) -> Result<(), StoreError> {
        self.release_requested().await?;
        let connection = self.connection.as_ref().expect("connected before a turn");
        let owner = self.leases.owner.as_str();
        let seconds = self.leases.duration.as_secs_f64();
        let (partitions, topics, epochs) = columns(&self.table.held);
        let enlist: [&(dyn ToSql + Sync); 2] = [&owner, &seconds];
        let renew: [&(dyn ToSql + Sync); 5] = [&owner, &seconds, &partitions, &topics, &epochs];
        let sent = Instant::now();
        // Polled together, hence pipelined: one round trip, executed in this order.
        let (_, renewed, members, rows) = try_join!(
            connection.client.execute(&connection.enlist, &enlist),
            connection.client.query(&connection.renew, &renew),
            connection.client.query(&connection.members, &[]),
            connection.client.query(&connection.leases, &[]),
        )
        .map_err(StoreError::at("renew the relay's leases"))?;
        let renewed: BTreeSet<PartitionKey> = renewed.iter().map(key).collect();
        let mut held = std::mem::take(&mut self.table.held);
        let before = held.len();
        held.retain(|key, lease| {
            let kept = renewed.contains(key);
            if !kept {
                tracing::debug!(topic = %lease.topic, partition = key.partition, epoch = lease.epoch, "lost a lease");
            }
            kept
        });
        let lost = before - held.len();
        if lost > 0 {
            metrics::counter!("throughline_relay_lease_changes_total", "change" => "lost").increment(lost as u64);
            tracing::warn!(lost, "lost relay leases: another relay took them over while this one did not renew");
        }
        self.table = LeaseTable { held, renewed_at: Some(sent) };

        let members: Vec<String> = members.iter().map(|row| row.get(0)).collect();
        let share = fair_share(rows.len(), &members, owner);
        if self.table.held.len() < share {
            self.acquire(&rows, share).await?;
        }
        let held = self.table.held.len();
        for (index, lease) in self.table.held.values_mut().enumerate() {
            lease.hand_back = index >= share && held > share;
        }
        self.publish_table();
        let connection = self.connection.as_ref().expect("connected before a turn");
        self.gauges.sample(&connection.client, &self.leases.owner).await
    }

    async fn acquire(&mut self, rows: &[Row], share: usize) -> Result<(), StoreError> {
        let connection = self.connection.as_ref().expect("connected before a turn");
        let room = share - self.table.held.len();
        let free: BTreeMap<PartitionKey, (i64, Arc<str>)> = rows
            .iter()
            .filter(|row| !row.get::<_, bool>(4) && !self.table.held.contains_key(&key(row)))
            .take(room)
            .map(|row| (key(row), (row.get(3), row.get::<_, &str>(2).into())))
            .collect();
        if free.is_empty() {
            return Ok(());
        }
        let partitions: Vec<i32> = free.keys().map(|key| key.partition).collect();
        let topics: Vec<i16> = free.keys().map(|key| key.topic).collect();
        let epochs: Vec<i64> = free.values().map(|(epoch, _)| *epoch).collect();
        let seconds = self.leases.duration.as_secs_f64();
        let acquired = connection
            .client
            .query(&connection.acquire, &[&self.leases.owner, &seconds, &partitions, &topics, &epochs])
            .await
            .map_err(StoreError::at("acquire relay leases"))?;
        for row in &acquired {
            let key = key(row);
            let topic = free[&key].1.clone();
            let lease = Lease { epoch: row.get(2), published: row.get(3), topic, hand_back: false };
            tracing::debug!(topic = %lease.topic, partition = key.partition, epoch = lease.epoch,
                published = lease.published, "acquired a relay lease");
            self.table.held.insert(key, lease);
        }
        metrics::counter!("throughline_relay_lease_changes_total", "change" => "acquired")
            .increment(acquired.len() as u64);
        tracing::info!(acquired = acquired.len(), held = self.table.held.len(), share, "acquired relay leases");
        crate::crash_point!("relay.after_acquire");
        Ok(())
    }

    async fn release_requested(&mut self) -> Result<(), StoreError> {
        let wanted = std::mem::take(&mut *self.leases.releases.lock().unwrap_or_else(PoisonError::into_inner));
        let going: BTreeMap<_, _> =
            self.table.held.iter().filter(|(key, _)| wanted.contains(key)).map(|(k, l)| (*k, l.clone())).collect();
        // Forgotten before they are given back: if that fails they run out unrenewed.
        self.table.held.retain(|key, _| !going.contains_key(key));
        self.publish_table();
        self.release(&going).await
    }

    async fn release_all(&mut self) -> Result<(), StoreError> {
        let going = std::mem::take(&mut self.table.held);
        self.publish_table();
        self.release(&going).await?;
        if let Some(connection) = &self.connection {
            connection
                .client
                .execute("delete from throughline.relay_members where owner = $1", &[&self.leases.owner])
                .await
                .map_err(StoreError::at("leave the relays"))?;
        }
        Ok(())
    }

    async fn release(&self, going: &BTreeMap<PartitionKey, Lease>) -> Result<(), StoreError> {
        let Some(connection) = self.connection.as_ref().filter(|_| !going.is_empty()) else { return Ok(()) };
        let (partitions, topics, epochs) = columns(going);
        connection
            .client
            .execute(&connection.release, &[&self.leases.owner, &partitions, &topics, &epochs])
            .await
            .map_err(StoreError::at("release relay leases"))?;
        metrics::counter!("throughline_relay_lease_changes_total", "change" => "released")
            .increment(going.len() as u64);
        tracing::info!(partitions = going.len(), "released relay leases");
        Ok(())
    }

    fn publish_table(&self) {
        self.leases.table.send_replace(Arc::new(self.table.clone()));
    }
}

async fn prepare(settings: &Settings) -> Result<Connection, StoreError> {
    let client = connect::connect_with(&settings.database, &DatabaseRole::Relay, "").await?;
    let at = StoreError::at("prepare the relay's lease statements");
    let (enlist, renew, members, leases, acquire, release) = try_join!(
        client.prepare(ENLIST),
        client.prepare(RENEW),
        client.prepare(MEMBERS),
        client.prepare(LEASES),
        client.prepare(ACQUIRE),
        client.prepare(RELEASE),
    )
    .map_err(at)?;
    // Relays that ended without leaving, also before the clock was set back; an hour is far beyond any lease.
    client
        .execute(
            "delete from throughline.relay_members
             where greatest(now() - expires_at, renewed_at - now()) > interval '1 hour'",
            &[],
        )
        .await
        .map_err(StoreError::at("forget relays of the past"))?;
    Ok(Connection { client, enlist, renew, members, leases, acquire, release })
}

fn key(row: &Row) -> PartitionKey {
    PartitionKey { topic: row.get(1), partition: row.get(0) }
}

fn columns(held: &BTreeMap<PartitionKey, Lease>) -> (Vec<i32>, Vec<i16>, Vec<i64>) {
    (
        held.keys().map(|key| key.partition).collect(),
        held.keys().map(|key| key.topic).collect(),
        held.values().map(|lease| lease.epoch).collect(),
    )
}

/// Partitions for `owner` out of `total`: everybody the same, the remainder one each by name, so that
/// all relays that see the same members come to shares that add up.
fn fair_share(total: usize, members: &[String], owner: &str) -> usize {
    let Some(rank) = members.iter().position(|member| member == owner) else { return 0 };
    total / members.len() + usize::from(rank < total % members.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_fair_and_add_up() {
        for total in 0..20 {
            for count in 1..8 {
                let members: Vec<String> = (0..count).map(|n| format!("relay-{n}")).collect();
                let shares: Vec<usize> = members.iter().map(|owner| fair_share(total, &members, owner)).collect();
                assert_eq!(shares.iter().sum::<usize>(), total);
                assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
            }
        }
        assert_eq!(fair_share(6, &["a".to_owned()], "stranger"), 0);
    }
}
