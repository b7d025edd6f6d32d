//! Operator resets: each form, on a stopped group, ends in the documented rows.
//!
//! Every form of Kafka's tool becomes a commit of an offset with empty metadata; one test uses the
//! tool itself. Rows are spoiled before, so that doing nothing would be noticed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use throughline::projection::{ResetTarget, reset_offsets};
use throughline::settings::Settings;

use super::bed::{Bed, PARTITIONS, Stored};
use super::fold::{assert_folded, assert_same, fold, rows};
use super::harness::way::Way;
use super::scenario::lives;

const NAME: &str = "daily-sales";

async fn settled(bed: &mut Bed) {
    bed.emit(&lives(11, 120)).await;
    let running = bed.start(NAME);
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(bed, NAME).await;
}

async fn spoil(bed: &Bed, partition: i32) {
    bed.owner
        .execute("update read.daily_sales_by_partition set orders = orders + 7 where partition = $1", &[&partition])
        .await
        .expect("spoils");
}

pub async fn run_until_caught_up(bed: &Bed) {
    let epochs = bed.epochs(NAME).await;
    let running = bed.start(NAME);
    // A reset is carried out where a partition is claimed; before that nothing looks behind.
    bed.claimed_since(NAME, epochs).await;
    bed.caught_up(NAME).await;
    running.stop().await;
}

pub async fn resets(bed: &Bed, direction: &str) -> i64 {
    bed.number(&format!("select count(*) from throughline.projection_resets where direction = '{direction}'")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn to_earliest_replays_everything() {
    let mut bed = Bed::new().await;
    settled(&mut bed).await;
    for partition in 0..PARTITIONS {
        spoil(&bed, partition).await;
    }
    bed.reset(NAME, &[(0, 0), (1, 0), (2, 0)]).await;
    bed.emit(&lives(12, 30)).await;
    run_until_caught_up(&bed).await;
    assert_folded(&bed, NAME).await;
    assert_eq!(resets(&bed, "backward").await, 3);
    // The reset is answered: the next start is no reset.
    run_until_caught_up(&bed).await;
    assert_eq!(resets(&bed, "backward").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn to_an_offset_of_one_partition_refills_that_one() {
    let mut bed = Bed::new().await;
    settled(&mut bed).await;
    let (_, end) = bed.watermarks(1);
    for (partition, offset) in [(1, end / 2), (1, end - 1), (1, 1)] {
        spoil(&bed, partition).await;
        bed.reset(NAME, &[(partition, offset)]).await;
        run_until_caught_up(&bed).await;
        assert_folded(&bed, NAME).await;
    }
    assert_eq!(resets(&bed, "backward").await, 3);
    assert_eq!(bed.number("select count(*) from throughline.projection_resets where partition <> 1").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn shift_by_and_datetime_are_offsets_too() {
    let mut bed = Bed::new().await;
    settled(&mut bed).await;
    // --shift-by -10, and the offset of a time, where a duplicate tail shifted offsets from numbers.
    let tail: Vec<Stored> = bed.log[bed.log.len() - 20..].to_vec();
    bed.publish(&tail).await;
    run_until_caught_up_with_offsets(&bed).await;
    spoil(&bed, 0).await;
    spoil(&bed, 2).await;
    bed.reset(NAME, &[(0, bed.watermarks(0).1 - 10), (2, bed.watermarks(2).1 / 3)]).await;
    run_until_caught_up(&bed).await;
    assert_folded(&bed, NAME).await;
}

pub async fn run_until_caught_up_with_offsets(bed: &Bed) {
    let running = bed.start(NAME);
    for partition in 0..PARTITIONS {
        let end = bed.watermarks(partition).1;
        bed.until(&format!(
            "select next_offset = {end} from throughline.checkpoints
             where projection = '{NAME}' and partition = {partition} and generation = 'read'"
        ))
        .await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_latest_skips_and_keeps_the_rows() {
    let mut bed = Bed::new().await;
    settled(&mut bed).await;
    let before = bed.log.clone();
    let skipped = bed.emit(&lives(13, 40)).await;
    let ends: Vec<_> = (0..PARTITIONS).map(|partition| (partition, bed.watermarks(partition).1)).collect();
    bed.reset(NAME, &ends).await;
    run_until_caught_up(&bed).await;
    assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &before));
    assert_eq!(resets(&bed, "forward").await, i64::from(PARTITIONS));
    // What comes afterwards is applied.
    let after = bed.emit(&lives(14, 40)).await;
    run_until_caught_up(&bed).await;
    let seen: Vec<_> = before.iter().chain(&after).cloned().collect();
    assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &seen));
    assert!(!skipped.is_empty());
    // And going back takes the skipped ones in again.
    bed.reset(NAME, &[(0, 0), (1, 0), (2, 0)]).await;
    run_until_caught_up(&bed).await;
    assert_folded(&bed, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_forward_of_one_partition_is_exact() {
    let mut bed = Bed::new().await;
    settled(&mut bed).await;
    let before = bed.log.clone();
    let new = bed.emit(&lives(15, 60)).await;
    let from = before.iter().filter(|e| e.partition == 1).count() as i64;
    bed.reset(NAME, &[(1, from + 12)]).await;
    run_until_caught_up(&bed).await;
    let kept = |e: &&Stored| e.partition != 1 || e.seq > from + 12;
    let seen: Vec<_> = before.iter().chain(new.iter().filter(kept)).cloned().collect();
    assert_same(&rows(&bed, NAME, "read").await, &fold(&bed, NAME, &seen));
    let range = bed
        .owner
        .query_one("select from_seq, to_seq from throughline.projection_resets", &[])
        .await
        .map(|row| (row.get::<_, i64>(0), row.get::<_, i64>(1)))
        .expect("one row");
    assert_eq!(range, (from, from + 12));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_offsets_are_no_reset() {
    let mut bed = Bed::new().await;
    settled(&mut bed).await;
    let admin: AdminClient<DefaultClientContext> =
        throughline::kafka::client::base(&bed.settings.kafka).create().expect("an admin client");
    let group = bed.names.projection_group(NAME);
    admin.delete_groups(&[&group], &AdminOptions::new()).await.expect("asked")[0].clone().expect("deleted");
    assert_eq!(bed.committed(NAME), HashMap::new());
    bed.emit(&lives(16, 30)).await;
    run_until_caught_up(&bed).await;
    assert_folded(&bed, NAME).await;
    assert_eq!(bed.number("select count(*) from throughline.projection_resets").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_command_resets_a_running_projection() {
    let mut bed = Bed::new().await;
    bed.emit(&lives(17, 80)).await;
    let running = bed.start(NAME);
    bed.caught_up(NAME).await;
    spoil(&bed, 0).await;
    let projector = bed.projector(NAME);
    let planned = reset_offsets(&projector, &ResetTarget::Earliest, true).await.expect("a plan");
    assert!(planned.iter().all(|one| one.to_offset == 0 && one.effect().starts_with("rows cleared")));
    assert_eq!(resets(&bed, "backward").await, 0, "a dry run changes nothing");
    reset_offsets(&projector, &ResetTarget::Earliest, false).await.expect("resets");
    bed.until("select count(*) = 3 from throughline.projection_resets").await;
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
}

/// `KAFKA_BIN` holds Kafka's own tools where development services run; else the other tests stand
/// for this one, since every form ends in the same commit.
#[tokio::test(flavor = "multi_thread")]
async fn kafkas_own_tool_resets() {
    let Some(tools) = std::env::var_os("KAFKA_BIN") else { return };
    let mut bed = Bed::new().await;
    settled(&mut bed).await;
    let (topic, group) = (bed.names.events(), bed.names.projection_group(NAME));
    let middle = bed.log[bed.log.len() / 2].recorded_at.strftime("%Y-%m-%dT%H:%M:%S.000").to_string();
    let one = format!("{topic}:1");
    let forms: [&[&str]; 6] = [
        &["--reset-offsets", "--to-earliest", "--execute", "--topic", &topic],
        &["--reset-offsets", "--to-offset", "5", "--execute", "--topic", &one],
        &["--reset-offsets", "--shift-by", "-7", "--execute", "--topic", &topic],
        &["--reset-offsets", "--to-datetime", &middle, "--execute", "--topic", &topic],
        &["--reset-offsets", "--to-current", "--execute", "--topic", &topic],
        &["--delete-offsets", "--topic", &topic],
    ];
    for form in forms {
        let rewinds = !form.contains(&"--to-current") && !form.contains(&"--delete-offsets");
        if rewinds {
            spoil(&bed, 1).await;
        }
        let tool = std::path::Path::new(&tools).join("kafka-consumer-groups");
        let output = std::process::Command::new(tool)
            .args(["--bootstrap-server", &bed.settings.kafka.brokers, "--group", &group])
            .args(form)
            .output()
            .expect("the tool runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("Error"), "{form:?}: {text}");
        run_until_caught_up(&bed).await;
        assert_folded(&bed, NAME).await;
    }
}

/// The network swallows the answer while a reset is carried out, and tells nobody: the server ends the session that
/// idles in a transaction, and the claim is made anew, though nothing ever comes on its connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_whose_session_is_gone_without_a_word_is_carried_out_anew() {
    let mut bed = Bed::new().await;
    settled(&mut bed).await;
    spoil(&bed, 1).await;
    bed.reset(NAME, &[(1, 0)]).await;
    let (way, url) = Way::new(bed.settings.database.url.expose()).await;
    let mut settings = Settings::clone(&bed.settings);
    settings.database.url = url.as_str().into();
    settings.database.statement_timeout_ms = 1_000;
    settings.database.round_trip_timeout_ms = 2_000;
    settings.database.idle_in_transaction_timeout_ms = 1_000;
    let epochs = bed.epochs(NAME).await;
    let held = bed.owner.batch_execute("begin; lock table read.daily_sales_by_partition in share mode");
    held.await.expect("nothing of it is deleted");
    let running = bed.start_with(bed.projection(NAME), Arc::new(settings));
    let waits = "select exists (select from pg_locks l join pg_class c on c.oid = l.relation
                 where not l.granted and c.relname = 'daily_sales_by_partition')";
    bed.until(waits).await;
    way.silence(true);
    bed.owner.batch_execute("rollback").await.expect("it may be deleted");
    // The server has answered, and nobody hears it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    way.silence(false);
    bed.claimed_since(NAME, epochs).await;
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
}
