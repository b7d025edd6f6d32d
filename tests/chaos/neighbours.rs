//! Kafka, PostgreSQL and the network between, and what they do to us; and operators who work meanwhile.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rdkafka::producer::Producer as _;
use throughline::app::dev::{PostgresStop, Services};
use throughline::settings::{DevRunner, DevSettings, Settings};
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

use crate::fleet::{Fleet, ended_at};
use crate::harness::way::Way;
use crate::harness::{Harness, odd};
use crate::process::{command, ended};

/// Records that nobody can read are produced with this order's key.
pub const ODD_ORDER: Uuid = Uuid::from_u128(0xbad);
pub const PARTITIONS: i32 = 4;

/// What goes wrong, once.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// One process of ours, by SIGKILL.
    Kill,
    /// One stands still for longer than its session and lease, and goes on.
    Zombie,
    ZombieProjection,
    /// One is stopped by its operator, and started again.
    Restart,
    Postgres(PostgresStop),
    BrokerKilled,
    /// Every connection to PostgreSQL.
    Cut,
    /// No byte passes, and nobody is told.
    Silent,
    ReadOnly,
    /// Answers to commits that happened.
    CommitsLost,
    /// A row that every append needs.
    HeldLock,
    Poison,
    /// The operator's n-th piece of work.
    Operate(usize),
}

/// Commands of an operator, each with where it dies; run again afterwards, whole.
const WORK: [(&[&str], &str); 8] = [
    (&["projection", "rebuild", "order-list", "--yes", "--force"], "projection.rebuild.after_chunk"),
    (&["projection", "rebuild", "order-details", "--yes", "--force"], "projection.rebuild.filled"),
    (&["projection", "rebuild", "customer-summary", "--yes", "--force"], "projection.rebuild.before_switch"),
    (&["projection", "rebuild", "order-history", "--yes", "--force"], "projection.rebuild.after_switch"),
    (&["projection", "reset", "daily-sales", "--to-earliest", "--yes"], ""),
    (&["dlq", "replay", "--yes"], "dlq.after_permit"),
    (&["dlq", "replay", "--yes"], "dlq.after_produce"),
    (&["events", "republish", "--to-topic", "chaos-copy", "--yes"], "republish.after_hand_over"),
];

pub struct Neighbours {
    pub harness: Harness,
    /// PostgreSQL, without the way that is cut.
    pub direct_url: String,
    services: Services,
    settings: DevSettings,
    way: AsyncMutex<Way>,
    counts: Mutex<BTreeMap<String, u64>>,
    /// Sites where operators' commands died.
    hit: Mutex<BTreeMap<String, u64>>,
    pub poison: Mutex<u64>,
}

impl Neighbours {
    pub async fn begin() -> Self {
        let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos-services");
        let settings = DevSettings { directory, runner: DevRunner::Local, ..Settings::default().dev };
        throughline::app::dev::reset(&settings).await.expect("nothing is left of an earlier run");
        let services = Services::start_or_find(&settings).await.expect("services start");
        let mut harness = Harness::on("chaos", services.kafka_brokers.clone(), services.database_url.clone()).await;
        let direct_url = harness.settings.database.url.expose().to_owned();
        let (way, url) = Way::new(&direct_url).await;
        harness.settings.database.url = url.as_str().into();
        (harness.settings.topics.event_partitions, harness.settings.topics.command_partitions) =
            (PARTITIONS, PARTITIONS);
        for arguments in [["db", "apply"], ["topics", "apply"]] {
            let applied = ended(&mut command(&harness, &arguments)).await;
            assert_eq!(applied.code, 0, "{}", applied.stderr);
        }
        let this = Self {
            harness,
            direct_url,
            services,
            settings,
            way: AsyncMutex::new(way),
            counts: Mutex::default(),
            hit: Mutex::default(),
            poison: Mutex::default(),
        };
        this.watch_checkpoints().await;
        this
    }

    /// The database itself notes each checkpoint that goes back without a reset (I8).
    async fn watch_checkpoints(&self) {
        let client = self.client().await;
        client
            .batch_execute(
                "create table public.went_back (projection text, partition int, before bigint, after bigint);
                 grant insert on public.went_back to public;
                 create function public.note_back() returns trigger language plpgsql security definer as $$
                 begin
                     insert into public.went_back values (new.projection, new.partition, old.seq, new.seq);
                     return new;
                 end $$;
                 create trigger note_back after update on throughline.checkpoints for each row
                     when (new.seq < old.seq and new.generation = 'read' and old.generation = 'read'
                           and new.epoch = old.epoch) execute function public.note_back()",
            )
            .await
            .expect("checkpoints are watched");
    }

    /// A connection that nobody cuts.
    pub async fn client(&self) -> tokio_postgres::Client {
        let (client, connection) =
            tokio_postgres::connect(&self.direct_url, tokio_postgres::NoTls).await.expect("PostgreSQL answers");
        tokio::spawn(connection);
        client
    }

    /// Everything of the plan, one after the other.
    pub async fn trouble(&self, fleet: &Fleet, random: &mut StdRng, span: Duration, is_sabotage: bool) {
        let began = Instant::now();
        for (at, fault) in if is_sabotage { plan_for_bugs(random, span) } else { plan(random, span) } {
            tokio::time::sleep((began + at).saturating_duration_since(Instant::now())).await;
            let name = format!("{fault:?}").split('(').next().unwrap_or_default().to_owned();
            println!("{:>6.1} s  {fault:?}", began.elapsed().as_secs_f64());
            *self.counts.lock().unwrap().entry(name).or_default() += 1;
            self.strike(fault, fleet, random).await;
        }
    }

    async fn strike(&self, fault: Fault, fleet: &Fleet, random: &mut StdRng) {
        let while_it_lasts = Duration::from_millis(random.random_range(2_000..4_000));
        match fault {
            Fault::Kill => fleet.any(random).kill(),
            Fault::Zombie => fleet.any(random).stand_still(while_it_lasts + Duration::from_secs(2)).await,
            Fault::ZombieProjection => fleet.of("projection", random).stand_still(Duration::from_secs(4)).await,
            Fault::Restart => fleet.any(random).terminate(),
            Fault::Postgres(how) => {
                self.services.stop_postgres(how).await.expect("PostgreSQL stops");
                self.services.start_postgres().await.expect("PostgreSQL starts");
            }
            Fault::BrokerKilled => {
                self.services.kill_kafka().await.expect("the broker dies");
                self.services.start_kafka().await.expect("the broker starts");
            }
            Fault::Cut => {
                let mut way = self.way.lock().await;
                way.cut().await;
                tokio::time::sleep(while_it_lasts).await;
                way.open().await;
            }
            Fault::Silent => {
                let way = self.way.lock().await;
                way.silence(true);
                tokio::time::sleep(while_it_lasts).await;
                way.silence(false);
            }
            Fault::ReadOnly => {
                self.read_only(true).await;
                tokio::time::sleep(while_it_lasts).await;
                self.read_only(false).await;
            }
            Fault::CommitsLost => self.way.lock().await.lose(5),
            Fault::HeldLock => {
                let client = self.client().await;
                client.batch_execute("begin; select * from throughline.counters for update").await.expect("locks");
                tokio::time::sleep(while_it_lasts).await;
            }
            Fault::Poison => self.poison(),
            Fault::Operate(work) => self.operate(work).await,
        }
    }

    async fn read_only(&self, on: bool) {
        let database = self.direct_url.rsplit('/').next().expect("a name").to_owned();
        let (client, connection) =
            tokio_postgres::connect(&self.services.database_url, tokio_postgres::NoTls).await.expect("connect");
        tokio::spawn(connection);
        let change = format!(
            "alter database {database} set default_transaction_read_only = {on};
             select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'"
        );
        client.batch_execute(&change).await.expect("the database is changed");
    }

    fn poison(&self) {
        let value = format!("{{\"type\":\"PlaceOrder\",\"orderId\":\"{ODD_ORDER}\"}}");
        let producer = odd::producer(&self.harness.settings.kafka, None);
        let records = odd::odd_records(ODD_ORDER.to_string().as_bytes(), value.as_bytes(), &["command-id"]);
        for (number, one) in records.iter().enumerate() {
            odd::produce(&producer, &self.harness.names().commands(), number as i32 % PARTITIONS, one);
        }
        producer.flush(Duration::from_secs(30)).expect("acknowledged");
        *self.poison.lock().unwrap() += records.len() as u64;
    }

    async fn operate(&self, work: usize) {
        let (arguments, site) = WORK[work % WORK.len()];
        if !site.is_empty() && ended_at(&mut command(&self.harness, arguments), site).await {
            *self.hit.lock().unwrap().entry(site.to_owned()).or_default() += 1;
        }
        // Whatever it says now, the checks see what came of it.
        let whole = ended(&mut command(&self.harness, arguments)).await;
        if whole.code != 0 {
            println!("          {arguments:?} ended with {}: {}", whole.code, whole.stderr.trim());
        }
    }

    /// Nothing is wrong from here on.
    pub async fn heal(&self) {
        self.way.lock().await.silence(false);
        self.client().await.batch_execute("select 1").await.expect("PostgreSQL answers");
    }

    /// Sites at which no operator's command died.
    pub fn missed(&self) -> Vec<String> {
        let hit = self.hit.lock().unwrap();
        // A letter to replay may not be there.
        let sites = WORK.iter().map(|(_, site)| *site).filter(|site| !site.is_empty() && !site.starts_with("dlq."));
        sites.filter(|site| !hit.contains_key(*site)).map(str::to_owned).collect()
    }

    pub fn table(&self) -> Vec<String> {
        let counts = self.counts.lock().unwrap();
        let hit = self.hit.lock().unwrap();
        let mut lines: Vec<String> = hit.iter().map(|(site, count)| format!("{count:>8}  died at {site}")).collect();
        lines.extend(counts.iter().map(|(name, count)| format!("{count:>8}  {name}")));
        lines.push(format!("{:>8}  records of poison", self.poison.lock().unwrap()));
        lines
    }

    pub async fn end(self) {
        let Self { services, settings, harness, .. } = self;
        drop(harness);
        services.stop().await.expect("the services stop");
        throughline::app::dev::reset(&settings).await.expect("nothing is left");
    }
}

/// Faults and when they come; as many as fit the span.
fn plan(random: &mut StdRng, span: Duration) -> Vec<(Duration, Fault)> {
    let share = |of_five_minutes: usize| (of_five_minutes as f64 * span.as_secs_f64() / 300.0).ceil() as usize;
    let mut faults: Vec<Fault> = Vec::new();
    let mut add = |count: usize, fault: Fault| faults.extend(std::iter::repeat_n(fault, count));
    add(share(60), Fault::Kill);
    add(share(8), Fault::Zombie);
    add(share(10), Fault::Restart);
    add(share(3), Fault::Postgres(PostgresStop::Kill));
    add(share(2), Fault::Postgres(PostgresStop::Fast));
    add(share(2), Fault::BrokerKilled);
    add(share(4), Fault::Cut);
    add(share(2), Fault::Silent);
    add(share(2), Fault::ReadOnly);
    add(share(3), Fault::CommitsLost);
    add(share(2), Fault::HeldLock);
    add(share(6), Fault::Poison);
    faults.extend((0..WORK.len()).map(Fault::Operate));
    faults.shuffle(random);
    let mut times: Vec<Duration> = faults.iter().map(|_| span.mul_f64(random.random_range(0.03..0.95))).collect();
    times.sort();
    times.into_iter().zip(faults).collect()
}

/// What brings deliberate bugs to light in a short time; no operator makes tables anew.
fn plan_for_bugs(random: &mut StdRng, span: Duration) -> Vec<(Duration, Fault)> {
    let mut faults = vec![Fault::ZombieProjection; 4];
    faults.extend([Fault::Kill; 14]);
    faults.extend([
        Fault::Postgres(PostgresStop::Kill),
        Fault::CommitsLost,
        Fault::CommitsLost,
        Fault::Cut,
        Fault::Poison,
    ]);
    faults.extend([Fault::Poison, Fault::BrokerKilled]);
    faults.shuffle(random);
    let mut times: Vec<Duration> = faults.iter().map(|_| span.mul_f64(random.random_range(0.03..0.95))).collect();
    times.sort();
    times.into_iter().zip(faults).collect()
}
