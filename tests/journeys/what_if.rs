//! `throughline whatif`: the same rules decide the same; other rules, exactly the commands that they concern.

use std::collections::BTreeSet;
use std::process::Stdio;

use reference::orders::OrdersCodec;
use reference::orders::OrdersContext;
use reference::orders::domain::{Order, OrderCommand, OrderEvent};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use throughline::audit::{Subject, WhatIf, what_if};
use throughline::engine::{Aggregate, BoundedContext, Command, Decision, InvalidCommand, Refusal};
use throughline::store::Pace;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::{kcat, place_order};
use crate::process::{Process, command, ended};

const ORDERS: u128 = 40;

/// Orders of another house: nobody orders more than four of a thing, and every carrier is written in capitals.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Strict(Order);

impl Aggregate for Strict {
    type Command = OrderCommand;
    type Event = OrderEvent;
    const SNAPSHOT_VERSION: i16 = 1;

    fn decide(&self, command: &OrderCommand) -> Decision<OrderEvent> {
        match command {
            OrderCommand::PlaceOrder(place) if place.items.iter().any(|item| item.quantity.get() > 4) => {
                Err(Refusal::new("TOO_MUCH", "four at most"))
            }
            _ => {
                let mut events = self.0.decide(command)?;
                for event in &mut events {
                    if let OrderEvent::OrderShipped(shipped) = event {
                        shipped.carrier = shipped.carrier.to_uppercase();
                    }
                }
                Ok(events)
            }
        }
    }

    fn evolve(&mut self, event: &OrderEvent) {
        self.0.evolve(event);
    }
}

struct StrictOrders;

impl BoundedContext for StrictOrders {
    type Aggregate = Strict;
    type Codec = OrdersCodec;
    const NAME: &'static str = OrdersContext::NAME;
    const NAMESPACE: &'static str = OrdersContext::NAMESPACE;
    const STREAM_ID_FIELD: &'static str = OrdersContext::STREAM_ID_FIELD;

    fn parse_command(value: &[u8], fallback_id: Uuid) -> Result<Command<OrderCommand>, InvalidCommand> {
        OrdersContext::parse_command(value, fallback_id)
    }

    fn write_meaning(command: &OrderCommand, into: &mut Vec<u8>) {
        OrdersContext::write_meaning(command, into);
    }

    fn describe_state(state: &Strict) -> Value {
        OrdersContext::describe_state(&state.0)
    }

    fn describe_event(event: &OrderEvent) -> Value {
        OrdersContext::describe_event(event)
    }
}

fn id(number: u128, part: u128) -> Uuid {
    Uuid::from_u128(number * 1_000 + part)
}

/// Of each order: placed (every fourth with five of a thing), once too much paid, paid, shipped too early and in time,
/// with a version that does not fit, and once not a command at all. The first ones come twice.
fn commands() -> String {
    let of = |number: u128| {
        let order = Uuid::from_u128(number);
        let mut placed = place_order(order, id(number, 1));
        let (quantity, amount) = if number.is_multiple_of(4) { (5, "99.95") } else { (2, "39.98") };
        placed["items"][0]["quantity"] = json!(quantity);
        let paid = |part: u128, amount: &str| {
            json!({"type": "RecordPayment", "commandId": id(number, part), "orderId": order,
                   "paymentId": id(number, part), "amount": amount, "currency": "USD"})
        };
        let carrier = if number.is_multiple_of(5) { "DHL" } else { "Post" };
        let shipped = |part: u128| {
            json!({"type": "ShipOrder", "commandId": id(number, part), "orderId": order, "carrier": carrier,
                   "trackingNumber": "1"})
        };
        let mut late = shipped(6);
        late["expectedVersion"] = json!(1);
        let nonsense = json!({"type": "ShipOrder", "commandId": id(number, 7), "orderId": order, "carrier": ""});
        let all = [placed, shipped(2), paid(3, "5000.00"), paid(4, amount), late, shipped(5), nonsense];
        all.map(|command| command.to_string() + "\n").concat()
    };
    let all: Vec<String> = (1..=ORDERS).map(of).collect();
    all.concat() + &all[..5].concat()
}

async fn asked(harness: &Harness, arguments: &[&str]) -> (i32, Value, String) {
    let answer = ended(&mut command(harness, &[&["whatif", "--output", "json"], arguments].concat())).await;
    (answer.code, serde_json::from_str(&answer.stdout).unwrap_or_else(|_| panic!("{}", answer.stderr)), answer.stderr)
}

/// As `whatif` of a program with those rules.
async fn of_strict(harness: &Harness) -> WhatIf {
    let codec = OrdersCodec::installed(&harness.settings).await.expect("a codec");
    let rules = throughline::processor::retrial::<StrictOrders>(&harness.settings, codec);
    let subject = Subject {
        context: "orders",
        namespace: OrdersContext::NAMESPACE,
        stream_id_field: "orderId",
        names: harness.names(),
    };
    what_if(&harness.settings, &subject, rules.as_ref(), None, (&Pace::new(None), 1_000)).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rules_decide_the_same_and_others_what_they_concern() {
    let harness = Harness::new("what_if").await;
    let processor = Process::run(&harness, &["processor:orders", "relay"]);
    let mut send = command(&harness, &["command", "send", "-"]);
    let mut send = send.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    send.stdin.take().expect("piped").write_all(commands().as_bytes()).await.expect("it reads");
    assert!(send.wait().await.expect("it ends").success());
    // Under an id that follows from its place.
    let mut nameless = place_order(Uuid::from_u128(5_000), Uuid::nil());
    nameless.as_object_mut().expect("an object").remove("commandId");
    kcat(&harness, &harness.names().commands(), &Uuid::from_u128(5_000).to_string(), &nameless.to_string(), &[]);
    let client = harness.client().await;
    let decided = eventually("all is decided", || async {
        let row = client.query_one("select count(*) from throughline.commands", &[]).await.expect("outcomes");
        let decided: i64 = row.get(0);
        (decided == 7 * ORDERS as i64 + 1).then_some(decided)
    })
    .await;

    let (code, answer, told) = asked(&harness, &[]).await;
    assert_eq!((code, &answer["same"], &answer["checked"]), (0, &json!(true), &json!(decided)), "{answer:#}{told}");
    let (_, later, _) = asked(&harness, &["--since", "2100-01-01T00:00:00Z"]).await;
    assert_eq!((&later["checked"], &later["same"]), (&json!(0), &json!(true)), "{later:#}");
    let (_, recent, _) = asked(&harness, &["--since", "1h"]).await;
    assert_eq!(recent["checked"], answer["checked"], "{recent:#}");

    let answer = of_strict(&harness).await;
    assert_eq!((answer.checked, answer.same), (decided.unsigned_abs(), false));
    let changed: BTreeSet<(Uuid, String, String)> =
        answer.changes.iter().map(|change| (change.command_id, change.was.told(), change.would.told())).collect();
    let expected = (1..=ORDERS).flat_map(|number| {
        let told = |part: u128, was: &str, would: &str| (id(number, part), was.to_owned(), would.to_owned());
        let placed = number.is_multiple_of(4).then(|| told(1, "OrderPlaced", "TOO_MUCH"));
        let shipped = (!number.is_multiple_of(5)).then(|| told(5, "OrderShipped", "OrderShipped"));
        [placed, shipped].into_iter().flatten()
    });
    assert_eq!(changed, expected.collect(), "each on the state that its stream had then, and no other");
    let groups: Vec<(&str, &str, u64)> =
        answer.groups.iter().map(|group| (group.was.as_str(), group.would.as_str(), group.commands)).collect();
    assert_eq!(groups, [("OrderShipped", "OrderShipped", 32), ("OrderPlaced", "TOO_MUCH", 10)]);
    let shipped = answer.changes.iter().find(|change| change.would.accepted).expect("one");
    assert_eq!(
        (&shipped.was.events[0]["carrier"], &shipped.would.events[0]["carrier"]),
        (&json!("Post"), &json!("POST"))
    );
    let count: i64 = client.query_one("select count(*) from throughline.commands", &[]).await.expect("outcomes").get(0);
    assert_eq!(count, decided, "nothing was written");
    assert_eq!(processor.terminate().await, 0);
}
