//! Whose fault: what names the data is the event's, by the policy; everything else is waited out, and heals.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reference::orders::domain::OrderEvent;
use throughline::engine::{Applied, Projection, ReadModel, Recorded};
use throughline::health::{PartitionState, Patience};
use throughline::settings::{FailurePolicy, Settings};
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::bed::{Bed, expired};
use super::faulty::{Fault, Faulty};
use super::fold::{assert_folded, assert_same, fold, rows};
use super::harness::way::Way;
use super::scenario::lives;

const NAME: &str = "order-list";
const ROLE: &str = "throughline_projection_order_list";

/// A table that refuses in every way.
const TRAP: &str = "
    create extension if not exists btree_gist;
    create table read.trap (
        id int primary key, name text not null, small smallint, money numeric(4, 2), short varchar(3),
        positive int check (positive > 0), parent int references read.trap,
        late int references read.trap deferrable initially deferred, doc jsonb,
        span int4range, exclude using gist (span with &&));
    create index trap_name on read.trap (name);
    insert into read.trap (id, name) values (1, 'one');
    create function read.refuse() returns trigger language plpgsql as $$ begin
        if new.id = 13 then raise exception 'thirteen'; end if;
        if new.id = 14 then raise exception 'fourteen' using errcode = 'MYOWN'; end if;
        if new.id = 15 then assert false, 'fifteen'; end if;
        return new;
    end $$;
    create trigger refuses before insert on read.trap for each row execute function read.refuse();
    create view read.positive as select * from read.trap where id < 100 with check option;
    grant all on read.trap, read.positive to public";

/// What each order's handler does, and the SQLSTATE that comes of it.
const TRAPS: [(&str, &str); 18] = [
    ("23502", "insert into trap (id, name) values (2, null)"),
    ("23514", "insert into trap (id, name, positive) values (2, 'two', 0)"),
    ("23505", "insert into trap (id, name) values (1, 'again')"),
    ("23503", "insert into trap (id, name, parent) values (2, 'two', 99)"),
    // Told at the commit.
    ("23503", "insert into trap (id, name, late) values (2, 'two', 99)"),
    ("23P01", "insert into trap (id, name, span) values (2, 'two', '[1,5)'), (3, 'three', '[2,6)')"),
    ("P0001", "insert into trap (id, name) values (13, 'x')"),
    ("MYOWN", "insert into trap (id, name) values (14, 'x')"),
    ("P0004", "insert into trap (id, name) values (15, 'x')"),
    ("44000", "insert into positive (id, name) values (100, 'x')"),
    ("22P02", "insert into trap (id, name) values ('seven'::text::int, 'x')"),
    ("22003", "insert into trap (id, name, small) values (2, 'two', 100000)"),
    ("22003", "insert into trap (id, name, money) values (2, 'two', 1000)"),
    ("22001", "insert into trap (id, name, short) values (2, 'two', 'three and more')"),
    ("22P05", r#"insert into trap (id, name, doc) values (2, 'two', '"\u0000"'::text::jsonb)"#),
    ("54000", "insert into trap (id, name) select 2, string_agg(md5(n::text), '') from generate_series(1, 3000) n"),
    (
        "21000",
        "insert into trap (id, name) values (7, 'a'), (7, 'b') on conflict (id) do update set name = excluded.name",
    ),
    ("22012", "insert into trap (id, name) values (1 / 0, 'x')"),
];

/// A projection whose handler runs a statement of its own for some orders.
struct Trapped {
    inner: Arc<dyn Projection<Event = OrderEvent>>,
    traps: BTreeMap<Uuid, &'static str>,
}

impl Projection for Trapped {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        self.inner.read_model()
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(async move {
            for event in batch.iter().filter(|event| event.version > 1) {
                if let Some(sql) = self.traps.get(&event.stream_id) {
                    tx.batch_execute(sql).await?;
                }
            }
            self.inner.apply(tx, batch).await
        })
    }
}

fn parking(settings: &mut Settings) {
    settings.projection.policies = BTreeMap::from([(NAME.to_owned(), FailurePolicy::Park)]);
    settings.projection.retry_wait_max_ms = 200;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_the_data_is_parked_and_nothing_else_notices() {
    let mut bed = Bed::with(|settings| {
        parking(settings);
        settings.projection.retries_max = 0;
    })
    .await;
    bed.owner.batch_execute(TRAP).await.expect("a trap");
    bed.emit(&lives(61, 60)).await;
    let mut victims: Vec<Uuid> = bed.log.iter().filter(|e| e.version == 2).map(|e| e.stream_id).collect();
    victims.truncate(TRAPS.len());
    assert_eq!(victims.len(), TRAPS.len(), "enough orders go on after their first event");
    let traps = victims.iter().copied().zip(TRAPS.map(|(_, sql)| sql)).collect();
    let projection = Trapped { inner: bed.projection(NAME), traps };
    let running = bed.start_with(Arc::new(projection), bed.settings.clone());
    bed.caught_up(NAME).await;
    running.stop().await;
    for ((code, sql), victim) in TRAPS.iter().zip(&victims) {
        let row = bed
            .owner
            .query_one(
                "select reason_code, reason from throughline.dead_letters where key = $1 order by seq limit 1",
                &[&victim.to_string().into_bytes()],
            )
            .await
            .unwrap_or_else(|error| panic!("{code} of {sql} is parked: {error}"));
        let (told, reason): (String, String) = (row.get(0), row.get(1));
        assert!(told == "DATABASE_REFUSED" && reason.contains(&format!("({code})")), "{sql}: {told}: {reason}");
    }
    let seen: Vec<_> = bed.log.iter().filter(|e| e.version == 1 || !victims.contains(&e.stream_id)).cloned().collect();
    assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &seen));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_handler_misses_is_parked_too() {
    let mut bed = Bed::with(parking).await;
    bed.emit(&lives(62, 40)).await;
    let (projection, stream, _) = broken(&bed, Fault::Missing);
    let running = bed.start_with(projection, bed.settings.clone());
    bed.caught_up(NAME).await;
    running.stop().await;
    let parked =
        bed.number("select count(*) from throughline.dead_letters where reason_code = 'DATABASE_REFUSED'").await;
    assert_eq!(parked, 1, "{stream}");
}

fn broken(bed: &Bed, fault: Fault) -> (Arc<Faulty>, Uuid, Arc<AtomicBool>) {
    let stream = bed.log.iter().find(|e| e.version == 2).expect("an order that goes on").stream_id;
    let broken = Arc::new(AtomicBool::new(true));
    let inner = bed.projection(NAME);
    (Arc::new(Faulty { inner, stream, from_version: 2, fault, broken: broken.clone(), version: 1 }), stream, broken)
}

/// The same with the other policy: its partition stands, told with reason and cure; the others go on. Mended, it
/// goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_stands_for_its_data_goes_on_when_that_is_mended() {
    let mut bed = Bed::new().await;
    bed.owner.batch_execute(TRAP).await.expect("a trap");
    bed.emit(&lives(63, 60)).await;
    let (projection, stream, broken) = broken(&bed, Fault::Sql(TRAPS[1].1));
    let poison = bed.log.iter().find(|e| e.stream_id == stream).expect("its event").partition;
    let running = bed.start_with(projection, bed.settings.clone());
    for other in (0..3).filter(|partition| *partition != poison) {
        let last = bed.log.iter().filter(|e| e.partition == other).count();
        bed.until(&format!(
            "select seq = {last} from throughline.checkpoints where projection = '{NAME}' and partition = {other}"
        ))
        .await;
    }
    let since = Instant::now();
    let told = loop {
        let reports = bed.health.partition_reports();
        if let Some(report) = reports.into_iter().find(|report| report.state == PartitionState::Standing) {
            break report;
        }
        expired(since, "it is told that the partition stands");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(told.partition, poison);
    assert!(told.reason.is_some_and(|reason| reason.contains("(23514)")) && told.cure.is_some());
    broken.store(false, Ordering::Release);
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
}

/// One spell: something about the database is not as it should be, then it is again.
struct Spell {
    name: &'static str,
    begin: String,
    end: String,
}

fn spells(bed: &Bed) -> Vec<Spell> {
    let (_, database) = bed.settings.database.url.expose().rsplit_once('/').expect("a database");
    let terminate = "select pg_terminate_backend(pid) from pg_stat_activity
                     where datname = current_database() and pid <> pg_backend_pid()";
    let mut spells = vec![
        Spell {
            name: "read only",
            begin: format!("alter database {database} set default_transaction_read_only = on; {terminate}"),
            // Whoever kept a session of that time would stay read only.
            end: format!("alter database {database} reset default_transaction_read_only"),
        },
        Spell {
            name: "a table is away",
            begin: "alter table read.order_list rename to gone".into(),
            end: "alter table read.gone rename to order_list".into(),
        },
        Spell {
            name: "a column is away",
            begin: "alter table read.order_list rename column status to gone".into(),
            end: "alter table read.order_list rename column gone to status".into(),
        },
        Spell {
            name: "rights are revoked",
            begin: format!("revoke all on read.order_list from {ROLE}"),
            end: format!("grant select, insert, update, delete on read.order_list to {ROLE}"),
        },
        Spell { name: "sessions are killed", begin: terminate.into(), end: terminate.into() },
    ];
    for code in ["40P01", "40001", "55P03", "57014", "53100", "53300", "58030", "XX000", "0A000", "26000", "3F000"] {
        spells.push(Spell {
            name: code,
            begin: format!("insert into read.mood values ('{code}')"),
            end: "delete from read.mood".into(),
        });
    }
    spells
}

/// Raises what is in the table of moods, if anything is.
const MOODS: &str = "
    create table read.mood (code text);
    create function read.moody() returns trigger language plpgsql security definer as $$
    declare mood text := (select code from read.mood limit 1);
    begin
        if mood is not null then raise exception 'a mood' using errcode = mood; end if;
        return new;
    end $$;
    create trigger moods before insert or update on read.order_list for each row execute function read.moody()";

/// Nothing of it is ever blamed on an event, though the policy would park; nobody restarts anything.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_worlds_is_waited_out_and_heals() {
    let mut bed = Bed::with(parking).await;
    bed.owner.batch_execute(MOODS).await.expect("moods");
    let running = bed.start(NAME);
    bed.emit(&lives(64, 10)).await;
    bed.caught_up(NAME).await;
    for (round, spell) in spells(&bed).into_iter().enumerate() {
        bed.owner.batch_execute(&spell.begin).await.unwrap_or_else(|error| panic!("{}: {error}", spell.name));
        bed.emit(&lives(70 + round as u64, 10)).await;
        // Longer than the tries that an event has.
        tokio::time::sleep(Duration::from_millis(400)).await;
        bed.owner.batch_execute(&spell.end).await.unwrap_or_else(|error| panic!("{}: {error}", spell.name));
        let since = Instant::now();
        bed.caught_up(NAME).await;
        eprintln!("{}: caught up {:?} after it was over", spell.name, since.elapsed());
        let parked = bed.number("select count(*) from throughline.dead_letters").await;
        assert_eq!(parked, 0, "{}", spell.name);
    }
    running.stop().await;
    assert_folded(&bed, NAME).await;
}

/// A lock that is held is nobody's fault: neither while a statement waits for it, nor when an operator cancels that.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_held_parks_nothing() {
    let mut bed = Bed::with(|settings| {
        parking(settings);
        settings.database.statement_timeout_ms = 300;
        settings.projection.apply_timeout_ms = 2_000;
    })
    .await;
    let running = bed.start(NAME);
    bed.emit(&lives(65, 20)).await;
    bed.caught_up(NAME).await;
    let holder = throughline::store::connect::connect(&bed.settings.database, &throughline::store::DatabaseRole::Owner)
        .await
        .expect("connects");
    let limits = "set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0";
    holder.batch_execute(limits).await.expect("patience");
    holder.batch_execute("begin; lock table read.order_list in access exclusive mode").await.expect("a lock");
    bed.emit(&lives(66, 20)).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        bed.owner
            .batch_execute(
                "select pg_cancel_backend(pid) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock'",
            )
            .await
            .expect("cancels");
    }
    holder.batch_execute("commit").await.expect("the lock is released");
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_eq!(bed.number("select count(*) from throughline.dead_letters").await, 0);
    assert_folded(&bed, NAME).await;
}

/// The network swallows everything while a handler runs: that is not the handler's slowness.
#[tokio::test(flavor = "multi_thread")]
async fn silence_is_noticed_in_time_and_blamed_on_nobody() {
    let mut bed = Bed::with(|settings| {
        parking(settings);
        settings.database.statement_timeout_ms = 500;
        settings.database.round_trip_timeout_ms = 1_500;
        settings.database.pool_wait_ms = 1_000;
        settings.projection.apply_timeout_ms = 1_000;
    })
    .await;
    let (way, url) = Way::new(bed.settings.database.url.expose()).await;
    let mut settings = (*bed.settings).clone();
    settings.database.url = url.as_str().into();
    let running = bed.start_with(bed.projection(NAME), Arc::new(settings));
    bed.emit(&lives(67, 20)).await;
    bed.caught_up(NAME).await;
    way.silence(true);
    let since = Instant::now();
    bed.emit(&lives(68, 20)).await;
    while bed.health.readiness().iter().all(|check| check.ok) {
        expired(since, "the silence is noticed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!("the silence is noticed after {:?}", since.elapsed());
    // Readiness believes a failure once it has lasted.
    let most = Duration::from_secs(6) + Patience::default().unready_after;
    assert!(since.elapsed() < most, "{:?}", since.elapsed());
    way.silence(false);
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_eq!(bed.number("select count(*) from throughline.dead_letters").await, 0);
    assert_folded(&bed, NAME).await;
}
