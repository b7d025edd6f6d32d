//! Properties of the order under random command sequences: no panic, no invented money, same replay.

use proptest::prelude::*;
use uuid::Uuid;

use super::scenario::ORDER;
use super::*;
use throughline::engine::Aggregate;

fn currency() -> impl Strategy<Value = Currency> {
    prop::sample::select(vec!["USD", "JPY", "BHD"]).prop_map(|code| Currency::from_code(code).unwrap())
}

fn item() -> impl Strategy<Value = OrderedItem> {
    let small = (1i64..50, 0i64..1_000_000);
    let any = (1i64..=MAX_QUANTITY, 0i64..=MAX_MINOR_UNITS);
    (0u128..5, prop_oneof![4 => small, 1 => any]).prop_map(|(product, (quantity, price))| OrderedItem {
        product_id: Uuid::from_u128(product),
        quantity: Quantity::new(quantity).unwrap(),
        unit_price: UnitPrice::from_ten_thousandths(price).unwrap(),
    })
}

fn command() -> impl Strategy<Value = OrderCommand> {
    let place = (currency(), prop::collection::vec(item(), 1..6)).prop_map(|(currency, items)| {
        OrderCommand::PlaceOrder(PlaceOrder {
            order_id: ORDER,
            customer_id: "c".to_owned(),
            currency,
            items,
            payment_token: None,
        })
    });
    let pay = (currency(), 0u128..40, prop_oneof![4 => 1i64..20_000, 1 => 1i64..=MAX_MINOR_UNITS]).prop_map(
        |(currency, payment, minor)| {
            OrderCommand::RecordPayment(RecordPayment {
                order_id: ORDER,
                payment_id: Uuid::from_u128(payment),
                amount: Money::from_minor(minor, currency).unwrap(),
            })
        },
    );
    let ship = Just(super::scenario::ship());
    let cancel = Just(super::scenario::cancel());
    prop_oneof![2 => place, 12 => pay, 1 => ship, 1 => cancel]
}

/// What the events alone say, added up independently of the aggregate.
#[derive(Default)]
struct Ledger {
    payments: i64,
    total: i64,
    refund: Option<i64>,
}

impl Ledger {
    fn book(&mut self, event: &OrderEvent) {
        match event {
            OrderEvent::OrderPlaced(event) => {
                self.total = event.total.minor_units();
                assert_eq!(self.total, event.items.iter().map(|item| item.line_total.minor_units()).sum::<i64>());
            }
            OrderEvent::PaymentReceived(event) => {
                self.payments += event.amount.minor_units();
                assert_eq!(event.paid.minor_units(), self.payments);
                assert_eq!(event.outstanding.minor_units(), self.total - self.payments);
            }
            OrderEvent::OrderShipped(_) => assert_eq!(self.payments, self.total, "only what is paid ships"),
            OrderEvent::OrderCancelled(event) => self.refund = Some(event.refund_due.minor_units()),
        }
    }
}

/// Decides the commands one after another; returns the events and the last state.
fn run(commands: &[OrderCommand]) -> (Vec<OrderEvent>, Order) {
    let (mut order, mut log) = (Order::default(), Vec::new());
    for command in commands {
        let before = order.clone();
        match order.decide(command) {
            Ok(events) => {
                assert!(!events.is_empty(), "an accepted command says what happened");
                events.iter().for_each(|event| order.evolve(event));
                log.extend(events);
            }
            Err(refusal) => {
                assert_eq!(order, before, "a refusal changes nothing");
                assert!(!refusal.reason.is_empty());
            }
        }
    }
    (log, order)
}

/// An order that surely exists, then anything.
fn sequence() -> impl Strategy<Value = Vec<OrderCommand>> {
    (prop::option::of(0i64..60_000), prop::collection::vec(command(), 0..40)).prop_map(|(total, mut commands)| {
        if let Some(cents) = total {
            let price = UnitPrice::from_ten_thousandths(cents * 100).unwrap();
            let item = OrderedItem { product_id: Uuid::nil(), quantity: Quantity::new(1).unwrap(), unit_price: price };
            let (customer_id, currency, items) = ("c".to_owned(), Currency::USD, vec![item]);
            let first = PlaceOrder { order_id: ORDER, customer_id, currency, items, payment_token: None };
            commands.insert(0, OrderCommand::PlaceOrder(first));
        }
        commands
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replay_of_commands_gives_the_same_events_and_of_events_the_same_state(commands in sequence()) {
        let (log, order) = run(&commands);
        prop_assert_eq!(&run(&commands).0, &log);
        let mut folded = Order::default();
        log.iter().for_each(|event| folded.evolve(event));
        prop_assert_eq!(&folded, &order);
        let snapshot = serde_json::to_string(&order).unwrap();
        prop_assert_eq!(serde_json::from_str::<Order>(&snapshot).unwrap(), order);
    }

    #[test]
    fn money_is_conserved_and_never_exceeds_the_total(commands in sequence()) {
        let (log, order) = run(&commands);
        let mut ledger = Ledger::default();
        log.iter().for_each(|event| ledger.book(event));
        prop_assert!(ledger.payments <= ledger.total);
        if let Some(placed) = order.placed() {
            prop_assert_eq!(placed.paid.minor_units(), ledger.payments);
            let closed = ledger.refund.map_or(ledger.payments, |refund| refund);
            prop_assert_eq!(closed, ledger.payments, "what was paid is due back, all of it");
        }
    }

    #[test]
    fn evolve_takes_events_in_any_order(commands in sequence(), shuffle in any::<u64>()) {
        let (mut log, _) = run(&commands);
        if !log.is_empty() {
            let by = shuffle as usize % log.len();
            log.rotate_left(by);
        }
        let mut order = Order::default();
        log.iter().for_each(|event| order.evolve(event));
        for command in &commands {
            let _ = order.decide(command);
        }
    }

    #[test]
    fn money_text_round_trips(minor in 0i64..=MAX_MINOR_UNITS, currency in currency()) {
        let money = Money::from_minor(minor, currency).unwrap();
        prop_assert_eq!(Money::parse(&money.amount_text(), currency), Ok(money));
        let price = UnitPrice::from_ten_thousandths(minor).unwrap();
        prop_assert_eq!(UnitPrice::parse(&price.text(currency)), Ok(price));
        prop_assert_eq!(money.decimal().to_string(), money.amount_text());
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
        let _ = Money::parse(&text, Currency::USD);
        let _ = UnitPrice::parse(&text);
    }
}
