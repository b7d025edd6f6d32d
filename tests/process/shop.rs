//! Orders and payments with `checkout` between them, while processors, relays and process managers are killed at random.

use std::time::Duration;

use reference::checkout;
use serde_json::json;
use throughline::App;
use tokio::process::Child;
use uuid::Uuid;

use crate::bed::{self, Bed};
use crate::harness::{eventually, scale};

/// Both contexts, and the process between them.
pub fn app() -> App {
    App::new("shop")
        .context(reference::orders::context())
        .context(reference::payments::context())
        .process(checkout::process())
}

/// Each is run by two programs at any time.
const ROLES: [&str; 4] = ["processor relay", "processor relay", "process:checkout", "process:checkout"];
/// Of the gateway's answer. Longer than a takeover takes.
const TIMEOUT: (&str, &str) = ("THROUGHLINE__CHECKOUT__AUTHORIZE_TIMEOUT_MS", "8000");
const KILLS: usize = 10;
const BETWEEN_KILLS: Duration = Duration::from_millis(1_500);

fn token(order: usize) -> &'static str {
    ["tok_approve", "tok_approve", "tok_slow", "tok_decline", "tok_silent", "tok_approve"][order % 6]
}

/// What has to be true once nothing moves any more, as queries that find what is not so. `o` is an order, `p` its payment.
const FALSE: [(&str, &str); 8] = [
    ("every order is paid or cancelled", "not has(o, 'PaymentReceived') and not has(o, 'OrderCancelled')"),
    ("what was shipped is captured", "has(o, 'OrderShipped') and not has(p, 'PaymentCaptured')"),
    ("what was not shipped is not captured", "not has(o, 'OrderShipped') and has(p, 'PaymentCaptured')"),
    (
        "of what was cancelled nothing is kept",
        "has(o, 'OrderCancelled') and not has(p, 'PaymentDeclined') and not has(p, 'PaymentVoided')",
    ),
    ("only what was cancelled is given up", "has(p, 'PaymentVoided') and not has(o, 'OrderCancelled')"),
    ("only what was authorised is paid", "has(o, 'PaymentReceived') and not has(p, 'PaymentAuthorized')"),
    ("each order has a payment", "not has(p, 'PaymentRequested')"),
    ("nothing is refunded that was not taken", "has(p, 'PaymentRefunded') and not has(p, 'PaymentCaptured')"),
];

async fn how_many(bed: &Bed, orders: &[(Uuid, Uuid)], condition: &str) -> i64 {
    let (orders, payments): (Vec<Uuid>, Vec<Uuid>) = orders.iter().copied().unzip();
    let happened = |condition: String, side: &str| {
        let event = format!("exists (select from throughline.events e where e.stream_id = {side} and e.type = ");
        condition.replace(&format!("has({side}, "), &event)
    };
    let condition = happened(happened(condition.to_owned(), "o"), "p");
    let query = format!("select count(*) from unnest($1::uuid[], $2::uuid[]) as of_orders (o, p) where {condition}");
    bed.store.query_one(&query, &[&orders, &payments]).await.expect("a number").get(0)
}

/// Ships half of what is paid, and cancels some of the rest, as people would.
async fn serve(bed: &Bed, orders: &[(Uuid, Uuid)], served: &mut Vec<Uuid>) {
    let ids: Vec<Uuid> = orders.iter().map(|(order, _)| *order).collect();
    let query = "select stream_id from throughline.events where type = 'PaymentReceived' and stream_id = any($1)";
    for row in bed.store.query(query, &[&ids]).await.expect("events") {
        let order: Uuid = row.get(0);
        if served.contains(&order) {
            continue;
        }
        served.push(order);
        match order.as_bytes()[15] % 4 {
            0 | 1 => bed.send(order, json!({"type": "ShipOrder", "carrier": "DHL", "trackingNumber": "1"})).await,
            2 => bed.send(order, json!({"type": "CancelOrder", "reason": "changed my mind"})).await,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_ends_paid_or_cancelled_and_no_money_is_lost_whoever_is_killed() {
    let bed = Bed::of(&app(), "process_shop").await;
    let start = |roles: &str| -> Child {
        bed::program(&bed.harness, roles, &[TIMEOUT, (bed::SHOP, "1")]).spawn().expect("it starts")
    };
    let mut programs: Vec<Child> = ROLES.map(start).into_iter().collect();
    let (mut orders, mut served) = (Vec::new(), Vec::new());
    let wanted = scale("THROUGHLINE_CHECKOUT_ORDERS", 240);
    for kill in 0..KILLS {
        while orders.len() < wanted * (kill + 1) / KILLS {
            let order = Uuid::new_v4();
            let value = json!({"type": "PlaceOrder", "customerId": "c", "currency": "USD", "payment": {"token": token(orders.len())},
                               "items": [{"productId": Uuid::from_u128(7), "quantity": 2, "unitPrice": "19.99"}]});
            bed.send(order, value).await;
            orders.push((order, checkout::payment_of(order)));
        }
        serve(&bed, &orders, &mut served).await;
        // Pace of the kills, not a wait for anything.
        tokio::time::sleep(BETWEEN_KILLS).await;
        let victim = usize::from(Uuid::new_v4().as_bytes()[0]) % programs.len();
        programs[victim].kill().await.expect("killed");
        programs[victim] = start(ROLES[victim]);
    }
    for (what, is_false) in FALSE {
        let served = &mut served;
        let patience = async {
            loop {
                serve(&bed, &orders, served).await;
                if how_many(&bed, &orders, is_false).await == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let held = tokio::time::timeout(crate::harness::PATIENCE, patience).await;
        assert!(held.is_ok(), "{what}: {} of {} orders are not so", how_many(&bed, &orders, is_false).await, wanted);
    }
    bed.until("all is sent", "select count(*) from throughline.process_commands where sent_at is null", 0).await;
    eventually("nothing is false any more", || async {
        for (_, is_false) in FALSE {
            if how_many(&bed, &orders, is_false).await > 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
    let twice =
        "select count(*) from (select from throughline.events group by stream_id, type having count(*) > 1) twice";
    assert_eq!(bed.number(twice).await, 0, "nothing is authorised, captured, paid or cancelled twice");
    assert_eq!(bed.number("select count(*) from throughline.dead_letters").await, 0, "nothing is parked");
    let late = "select count(*) from throughline.process_inputs where input->>'deadline' is not null";
    assert!(bed.number(late).await > 0, "deadlines fired");
}
