//! Unit prices, quantities, and the one place where money is rounded: the total of a line.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::currency::Currency;
use super::money::{MAX_MINOR_UNITS, Money, MoneyError, parse_scaled, scaled_text};

/// Decimals of a unit price, whatever the currency.
const PRICE_DIGITS: u32 = 4;

/// The largest quantity of one item.
pub const MAX_QUANTITY: i64 = 1_000_000;

/// Price of one piece, in 1/10,000 of the currency's unit, from 0. At most four decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnitPrice(i64);

impl UnitPrice {
    /// A price from its count of 1/10,000 units.
    pub fn from_ten_thousandths(value: i64) -> Result<Self, MoneyError> {
        match value {
            i64::MIN..=-1 => Err(MoneyError::Negative),
            0..=MAX_MINOR_UNITS => Ok(Self(value)),
            _ => Err(MoneyError::TooLarge),
        }
    }

    /// A price from its decimal text.
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        Self::from_ten_thousandths(parse_scaled(text, PRICE_DIGITS)?)
    }

    /// The price in 1/10,000 units.
    pub fn ten_thousandths(self) -> i64 {
        self.0
    }

    /// The price as a decimal number with four decimals.
    pub fn decimal(self) -> Decimal {
        Decimal::new(self.0, PRICE_DIGITS)
    }

    /// The price as text: the currency's minor digits, and up to four where it needs them.
    pub fn text(self, currency: Currency) -> String {
        let (mut value, mut digits) = (self.0, PRICE_DIGITS);
        while digits > currency.minor_digits() && value % 10 == 0 {
            value /= 10;
            digits -= 1;
        }
        scaled_text(value, digits)
    }
}

/// How many pieces: 1 to [`MAX_QUANTITY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantity(i64);

impl Quantity {
    /// A quantity within its bounds.
    pub fn new(value: i64) -> Option<Self> {
        (1..=MAX_QUANTITY).contains(&value).then_some(Self(value))
    }

    /// The number of pieces.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The total of a line: quantity times unit price, rounded half to even to the currency's
    /// minor digits. Each line is rounded by itself and the order's total is the sum of its lines,
    /// so that what is printed adds up.
    pub fn line_total(self, price: UnitPrice, currency: Currency) -> Result<Money, MoneyError> {
        let product = i128::from(self.0) * i128::from(price.0);
        let divisor = 10i128.pow(PRICE_DIGITS - currency.minor_digits());
        let (quotient, remainder) = (product / divisor, product % divisor);
        let round_up = match (remainder * 2).cmp(&divisor) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => quotient % 2 == 1,
            std::cmp::Ordering::Greater => true,
        };
        let minor = quotient + i128::from(round_up);
        Money::from_minor(i64::try_from(minor).map_err(|_| MoneyError::TooLarge)?, currency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(quantity: i64, price: &str, code: &str) -> String {
        let currency = Currency::from_code(code).unwrap();
        Quantity::new(quantity)
            .unwrap()
            .line_total(UnitPrice::parse(price).unwrap(), currency)
            .map_or_else(|error| error.to_string(), Money::amount_text)
    }

    #[test]
    fn lines_round_half_to_even() {
        assert_eq!(total(2, "19.99", "USD"), "39.98");
        assert_eq!(total(1, "0.005", "USD"), "0.00");
        assert_eq!(total(3, "0.005", "USD"), "0.02");
        assert_eq!(total(1, "0.0051", "USD"), "0.01");
        assert_eq!(total(1, "2.5", "JPY"), "2");
        assert_eq!(total(1, "3.5", "JPY"), "4");
        assert_eq!(total(1, "1.2345", "BHD"), "1.234");
        assert_eq!(total(1, "1.2345", "CLF"), "1.2345");
        assert_eq!(total(1_000_000, "100000000000", "USD"), MoneyError::TooLarge.to_string());
    }

    #[test]
    fn prices_print_what_they_need() {
        let eur = Currency::from_code("EUR").unwrap();
        let jpy = Currency::from_code("JPY").unwrap();
        assert_eq!(UnitPrice::parse("19.9").unwrap().text(eur), "19.90");
        assert_eq!(UnitPrice::parse("0.1234").unwrap().text(eur), "0.1234");
        assert_eq!(UnitPrice::parse("0.5").unwrap().text(jpy), "0.5");
        assert_eq!(UnitPrice::parse("100").unwrap().text(jpy), "100");
        assert_eq!(UnitPrice::parse("0.12345"), Err(MoneyError::TooManyDecimals(4)));
    }

    #[test]
    fn quantities_are_bounded() {
        assert!(Quantity::new(0).is_none() && Quantity::new(-1).is_none() && Quantity::new(1_000_001).is_none());
        assert_eq!(Quantity::new(1_000_000).map(Quantity::get), Some(1_000_000));
    }
}
