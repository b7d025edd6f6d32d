//! Whatever a record holds, it ends as an outcome with a reason, and the partition moves on.

use serde_json::json;
use uuid::Uuid;

use crate::floor::{Produced, Running, Source, command, consumed, number, place, sound};
use crate::harness::Harness;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_records_are_refused_and_the_partition_moves_on() {
    let harness = Harness::new("processor_malformed").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let order = || Uuid::new_v4();
    let key = |order: Uuid| Some(order.to_string().into_bytes());
    let raw = |value: &[u8], key: Option<Vec<u8>>| Produced {
        topic: harness.names().commands(),
        partition: Some(0),
        key,
        value: Some(value.to_vec()),
        ..Produced::default()
    };
    let changed = |field: &str, value: serde_json::Value| {
        let order = order();
        let mut command = place(order, Uuid::new_v4());
        command[field] = value;
        raw(command.to_string().as_bytes(), key(order))
    };
    let mut negative = place(order(), Uuid::new_v4());
    negative["items"][0]["quantity"] = json!(-1);
    let negative_key = key(negative["orderId"].as_str().expect("id").parse().expect("uuid"));
    let keyless = place(order(), Uuid::new_v4());
    let mut named_badly = raw(place(order(), Uuid::new_v4()).to_string().as_bytes(), None);
    named_badly.headers = vec![("command-id", "not-a-uuid".into())];
    let mut records = vec![
        raw(b"not json", key(order())),
        raw(b"not json either", Some(b"no uuid".to_vec())),
        raw(b"{\"type\":", None),
        raw(&[0xff, 0xfe, 0x00], None),
        raw(b"", None),
        raw(b"[1,2,3]", key(order())),
        raw("{\"a\":".repeat(10_000).as_bytes(), None),
        Produced { value: None, ..raw(b"", key(order())) },
        changed("type", json!("NoSuchCommand")),
        changed("customerId", json!(null)),
        changed("orderId", json!("not-a-uuid")),
        changed("commandId", json!("not-a-uuid")),
        changed("items", json!([])),
        raw(negative.to_string().as_bytes(), negative_key),
        raw(keyless.to_string().as_bytes(), None),
        raw(place(order(), Uuid::new_v4()).to_string().as_bytes(), key(order())),
        raw(&vec![b'x'; 2 * 1024 * 1024], key(order())),
        named_badly,
    ];
    let bad = records.len() as i64;
    let good = Uuid::new_v4();
    let mut last = command(&harness, &place(order(), good));
    last.partition = Some(0);
    last.headers = vec![("correlation-id", "nul \0 inside".into()), ("causation-id", "x".repeat(5_000))];
    records.push(last);
    source.produce(&records);

    let running = Running::start(&harness.settings).await;
    consumed(&client, bad + 1).await;
    running.stop().await;
    let refused = "select count(*) from throughline.commands
                   where not accepted and code = 'INVALID_COMMAND' and length(reason) > 10";
    assert_eq!(number(&client, refused).await, bad);
    assert_eq!(number(&client, "select count(*) from throughline.commands where accepted").await, 1);
    let published = "select count(*) from throughline.outbox where type like '%CommandResult'";
    assert_eq!(number(&client, published).await, bad);
    let parked =
        number(&client, "select count(*) from throughline.dead_letters where reason_code = 'INVALID_COMMAND'").await;
    assert_eq!(parked, 10, "records that name no order are kept whole");
    let largest = "select max(length(value))::bigint from throughline.dead_letters";
    assert_eq!(number(&client, largest).await, 2 * 1024 * 1024);
    sound(&client).await;
}
