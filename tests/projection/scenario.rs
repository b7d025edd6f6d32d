//! Lives of orders, decided by the aggregate itself, interleaved, from a seed.

use reference::orders::domain::{
    CancelOrder, Currency, Money, Order, OrderCommand, OrderEvent, OrderedItem, PlaceOrder, Quantity, RecordPayment,
    ShipOrder, UnitPrice,
};
use throughline::engine::Aggregate as _;
use uuid::Uuid;

/// A small, seeded sequence of numbers.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn decide(order: &mut Order, command: OrderCommand) -> Vec<OrderEvent> {
    let events = order.decide(&command).expect("a life without refusals");
    for event in &events {
        order.evolve(event);
    }
    events
}

/// One order's whole life: placed, then some of paid in parts, paid, shipped, cancelled.
pub fn life(dice: &mut Dice) -> Vec<OrderEvent> {
    let bytes = (u128::from(dice.below(u64::MAX)) << 64) | u128::from(dice.below(u64::MAX));
    let order_id = uuid::Builder::from_random_bytes(bytes.to_be_bytes()).into_uuid();
    life_of(order_id, dice)
}

pub fn life_of(order_id: Uuid, dice: &mut Dice) -> Vec<OrderEvent> {
    let mut order = Order::default();
    let currency = if dice.below(5) == 0 { Currency::from_code("JPY").expect("a currency") } else { Currency::USD };
    let item = |dice: &mut Dice| OrderedItem {
        product_id: Uuid::from_u128(1 + u128::from(dice.below(9))),
        quantity: Quantity::new(1 + dice.below(20) as i64).expect("in range"),
        unit_price: UnitPrice::from_ten_thousandths(10_000 * (1 + dice.below(500) as i64)).expect("in range"),
    };
    let items = (0..1 + dice.below(4)).map(|_| item(dice)).collect();
    let customer_id = format!("customer-{}", dice.below(12));
    let mut events = decide(
        &mut order,
        OrderCommand::PlaceOrder(PlaceOrder { order_id, customer_id, currency, items, payment_token: None }),
    );
    let total = order.placed().expect("placed").total;
    let fate = dice.below(6);
    let pay = |order: &mut Order, amount: Money, payment: u128| {
        let command = RecordPayment { order_id, payment_id: Uuid::from_u128(payment), amount };
        decide(order, OrderCommand::RecordPayment(command))
    };
    if fate >= 2 {
        let part = Money::from_minor(total.minor_units() / 2, currency).expect("in range");
        let rest = total.checked_sub(part).expect("not negative");
        if !part.is_zero() {
            events.extend(pay(&mut order, part, 1));
        }
        if fate >= 3 {
            events.extend(pay(&mut order, rest, 2));
        }
    }
    if fate == 1 || fate == 2 || fate == 3 {
        let command = CancelOrder { order_id, reason: "changed my mind".into() };
        events.extend(decide(&mut order, OrderCommand::CancelOrder(command)));
    } else if fate >= 4 {
        let command = ShipOrder { order_id, carrier: "DHL".into(), tracking_number: format!("JD{fate}") };
        events.extend(decide(&mut order, OrderCommand::ShipOrder(command)));
    }
    events
}

/// The lives of `count` orders, interleaved; each order's own events stay in order.
pub fn lives(seed: u64, count: usize) -> Vec<OrderEvent> {
    let mut dice = Dice::new(seed);
    let mut open: Vec<std::vec::IntoIter<OrderEvent>> = Vec::new();
    let mut born = 0;
    let mut events = Vec::new();
    while born < count || !open.is_empty() {
        if born < count && (open.len() < 20 || dice.below(2) == 0) {
            open.push(life(&mut dice).into_iter());
            born += 1;
        }
        let at = dice.below(open.len() as u64) as usize;
        match open[at].next() {
            Some(event) => events.push(event),
            None => drop(open.swap_remove(at)),
        }
    }
    events
}
