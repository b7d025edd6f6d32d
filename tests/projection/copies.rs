//! Rows written by COPY equal rows written as arrays: type by type, and table by table.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::date;
use rust_decimal::Decimal;
use throughline::engine::Rows;
use throughline::projection::{Projector, RebuildMode, rebuild};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::bed::Bed;
use super::fold::assert_folded;
use super::scenario::{Dice, lives};

const ALL: [&str; 5] = ["order-list", "order-details", "customer-summary", "daily-sales", "order-history"];
/// More than this and it is COPY.
const MANY: usize = 1_000;

async fn write(bed: &mut Bed, table: &str, numbers: &[i64]) {
    let tx = bed.owner.transaction().await.expect("begins");
    let odd = |n: &i64| n % 2 == 1;
    Rows::of(numbers)
        .column("id", Type::INT8_ARRAY, |n| *n)
        .column("small", Type::INT4_ARRAY, |n| (!odd(n)).then_some(*n as i32))
        .column("word", Type::TEXT_ARRAY, |n| (n % 3 > 0).then(|| "ü".repeat(*n as usize % 40)))
        .column("amount", Type::NUMERIC_ARRAY, |n| odd(n).then(|| Decimal::new(n * 1_000_003 - 500_000, 4)))
        .column("who", Type::UUID_ARRAY, |n| Uuid::from_u128(*n as u128))
        .column("at", Type::TIMESTAMPTZ_ARRAY, |n| {
            Timestamp::from_microsecond(1_700_000_000_000_001 * (n % 2)).unwrap()
        })
        .column("day", Type::DATE_ARRAY, |n| date(2000 + (n % 50) as i16, 2, 29 - (n % 2) as i8 - 1))
        .column("value", Type::JSONB_ARRAY, |n| serde_json::json!({"n": n, "text": "\"quoted\"\n", "none": null}))
        .insert_into(&tx, table)
        .await
        .expect("writes");
    tx.commit().await.expect("commits");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_and_null_goes_either_way() {
    let mut bed = Bed::new().await;
    for table in ["by_copy", "by_arrays"] {
        bed.owner
            .batch_execute(&format!(
                "create table {table} (id bigint primary key, small int, word text, amount numeric, who uuid,
                                       at timestamptz, day date, value jsonb,
                                       way text not null default lower(split_part(trim(current_query()), ' ', 1)))"
            ))
            .await
            .expect("a table");
    }
    let numbers: Vec<i64> = (0..2_500).collect();
    write(&mut bed, "by_copy", &numbers).await;
    for some in numbers.chunks(MANY - 1) {
        write(&mut bed, "by_arrays", some).await;
    }
    write(&mut bed, "by_arrays", &[]).await;
    assert_eq!(bed.number("select count(*) from by_copy where way = 'copy'").await, 2_500);
    assert_eq!(bed.number("select count(*) from by_arrays where way = 'insert'").await, 2_500);
    let columns = "id, small, word, amount, who, at, day, value";
    let differing = format!(
        "select count(*) from ((select {columns} from by_copy except select {columns} from by_arrays)
                               union all (select {columns} from by_arrays except select {columns} from by_copy)) d"
    );
    assert_eq!(bed.number(&differing).await, 0);
    // A value that does not fit its column is told, and nothing is sent.
    let tx = bed.owner.transaction().await.expect("begins");
    let refused = Rows::of(&numbers).column("id", Type::TEXT_ARRAY, |n| *n).insert_into(&tx, "by_copy").await;
    assert!(refused.expect_err("no text").to_string().contains("column id"), "it names the column");
}

/// The same events in chunks of other sizes: COPY for the large ones, arrays for the small ones, and
/// lives that end in another chunk than they began in.
#[tokio::test(flavor = "multi_thread")]
async fn every_table_is_the_same_in_chunks_of_any_size() {
    let mut bed = Bed::new().await;
    let mut dice = Dice::new(71);
    for seed in [72, 73] {
        bed.emit(&lives(seed, 3_000)).await;
    }
    for name in ALL {
        let running = bed.start(name);
        bed.caught_up(name).await;
        running.stop().await;
        for most in [1_000_000, 300 + dice.below(600) as i64, 2_000 + dice.below(3_000) as i64] {
            let mut settings = (*bed.settings).clone();
            settings.projection.rebuild_chunk_events = most;
            let projector = Projector::new(Arc::new(settings), &bed.names, bed.projection(name), bed.codec.clone());
            // Compared with the generation before: every column of every row.
            let report = rebuild(&projector, &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
            assert!(report.compared, "{name}");
            assert_eq!(report.differences, Vec::<String>::new(), "{name} in chunks of {most}");
        }
        assert_folded(&bed, name).await;
    }
    // Bounded in bytes as well: one fetch is the least.
    let mut settings = (*bed.settings).clone();
    settings.projection.rebuild_chunk_bytes = 1;
    let projector = Projector::new(Arc::new(settings), &bed.names, bed.projection("order-history"), bed.codec.clone());
    let report = rebuild(&projector, &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
    assert_eq!((report.events, report.differences), (bed.log.len() as u64, Vec::new()));
}
