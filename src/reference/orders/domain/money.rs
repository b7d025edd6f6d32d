//! Exact money: an integer count of minor units and a currency. No floats, no silent overflow.

use std::fmt;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::currency::Currency;

/// The largest amount anywhere in an order, in minor units. Far below `i64::MAX`, so that a sum
/// over a whole order, and over thousands of orders, cannot overflow.
pub const MAX_MINOR_UNITS: i64 = 1_000_000_000_000_000;

/// An amount of money, 0 to [`MAX_MINOR_UNITS`], in the minor units of its currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    minor_units: i64,
    currency: Currency,
}

/// Why a text or a number is no amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not of the form `digits` or `digits.digits`.
    #[error("must be a decimal number such as \"19.99\": digits, at most one point, no sign, no exponent")]
    Malformed,
    /// More decimals than allowed.
    #[error("must have at most {0} decimals")]
    TooManyDecimals(u32),
    /// Outside of the bounds.
    #[error("must be at most {MAX_MINOR_UNITS} minor units")]
    TooLarge,
    /// Below zero.
    #[error("must not be negative")]
    Negative,
    /// Two currencies in one sum.
    #[error("currencies differ")]
    CurrencyMismatch,
}

impl Money {
    /// An amount from minor units; refuses what is negative or above the bound.
    pub fn from_minor(minor_units: i64, currency: Currency) -> Result<Self, MoneyError> {
        match minor_units {
            i64::MIN..=-1 => Err(MoneyError::Negative),
            0..=MAX_MINOR_UNITS => Ok(Self { minor_units, currency }),
            _ => Err(MoneyError::TooLarge),
        }
    }

    /// Nothing, in a currency.
    pub fn zero(currency: Currency) -> Self {
        Self { minor_units: 0, currency }
    }

    /// An amount from its decimal text, with at most the currency's minor digits.
    pub fn parse(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        Self::from_minor(parse_scaled(text, currency.minor_digits())?, currency)
    }

    /// The amount in minor units (cents, where the currency has cents).
    pub fn minor_units(self) -> i64 {
        self.minor_units
    }

    /// The currency.
    pub fn currency(self) -> Currency {
        self.currency
    }

    /// Whether the amount is nothing.
    pub fn is_zero(self) -> bool {
        self.minor_units == 0
    }

    /// The sum, if both are of one currency and it stays within the bound.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        self.same_currency(other)?;
        // Two amounts within the bound cannot overflow an i64.
        Self::from_minor(self.minor_units + other.minor_units, self.currency)
    }

    /// The difference, if both are of one currency and it is not negative.
    pub fn checked_sub(self, other: Self) -> Result<Self, MoneyError> {
        self.same_currency(other)?;
        Self::from_minor(self.minor_units - other.minor_units, self.currency)
    }

    /// The amount as a decimal number with the currency's minor digits, for `numeric` columns.
    pub fn decimal(self) -> Decimal {
        Decimal::new(self.minor_units, self.currency.minor_digits())
    }

    /// The amount as text with exactly the currency's minor digits, without the currency: `39.98`.
    pub fn amount_text(self) -> String {
        scaled_text(self.minor_units, self.currency.minor_digits())
    }

    fn same_currency(self, other: Self) -> Result<(), MoneyError> {
        if self.currency == other.currency { Ok(()) } else { Err(MoneyError::CurrencyMismatch) }
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.amount_text(), self.currency)
    }
}

/// Reads `digits[.digits]` as an integer of `10^-scale`. The grammar is that of a JSON number
/// without sign and exponent, so "007" is refused too. Bounded by the length of what fits an i64.
pub(super) fn parse_scaled(text: &str, scale: u32) -> Result<i64, MoneyError> {
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || (whole.len() > 1 && whole.starts_with('0')) || fraction.is_some_and(|part| !digits(part)) {
        return Err(MoneyError::Malformed);
    }
    let fraction = fraction.unwrap_or("");
    if fraction.len() > scale as usize {
        return Err(MoneyError::TooManyDecimals(scale));
    }
    if whole.len() + scale as usize > 18 {
        return Err(MoneyError::TooLarge);
    }
    // At most 18 digits: no step can overflow.
    let number = |part: &str, start: i64| part.bytes().fold(start, |n, byte| n * 10 + i64::from(byte - b'0'));
    Ok(number(fraction, number(whole, 0)) * 10i64.pow(scale - fraction.len() as u32))
}

/// Writes an integer of `10^-scale` with exactly `scale` decimals.
pub(super) fn scaled_text(value: i64, scale: u32) -> String {
    if scale == 0 {
        return value.to_string();
    }
    let unit = 10i64.pow(scale);
    format!("{}.{:0width$}", value / unit, value % unit, width = scale as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn currency(code: &str) -> Currency {
        Currency::from_code(code).unwrap()
    }

    #[test]
    fn text_is_read_exactly_or_not_at_all() {
        let usd = |text| Money::parse(text, Currency::USD).map(Money::minor_units);
        assert_eq!(usd("19.99"), Ok(1999));
        assert_eq!(usd("19.9"), Ok(1990));
        assert_eq!(usd("0"), Ok(0));
        assert_eq!(usd("10000000000000.00"), Ok(MAX_MINOR_UNITS));
        assert_eq!(usd("10000000000000.01"), Err(MoneyError::TooLarge));
        assert_eq!(usd("99999999999999999999999999"), Err(MoneyError::TooLarge));
        assert_eq!(usd("1.999"), Err(MoneyError::TooManyDecimals(2)));
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1,0", " 1", "1 ", "007", "0x1", "NaN", "1.2.3", "١"] {
            assert_eq!(usd(text), Err(MoneyError::Malformed), "{text:?}");
        }
        assert_eq!(Money::parse("1.5", currency("JPY")), Err(MoneyError::TooManyDecimals(0)));
        assert_eq!(Money::parse("1.005", currency("BHD")).map(Money::minor_units), Ok(1005));
    }

    #[test]
    fn text_is_written_with_the_minor_digits() {
        let text = |minor, code| Money::from_minor(minor, currency(code)).unwrap().amount_text();
        assert_eq!(text(5, "USD"), "0.05");
        assert_eq!(text(3998, "USD"), "39.98");
        assert_eq!(text(3998, "JPY"), "3998");
        assert_eq!(text(3998, "BHD"), "3.998");
        assert_eq!(Money::from_minor(3998, Currency::USD).unwrap().to_string(), "39.98 USD");
    }

    #[test]
    fn sums_refuse_mixed_currencies_and_overflow() {
        let cent = Money::from_minor(1, Currency::USD).unwrap();
        let most = Money::from_minor(MAX_MINOR_UNITS, Currency::USD).unwrap();
        assert_eq!(most.checked_add(cent), Err(MoneyError::TooLarge));
        assert_eq!(cent.checked_sub(most), Err(MoneyError::Negative));
        assert_eq!(cent.checked_add(Money::zero(currency("EUR"))), Err(MoneyError::CurrencyMismatch));
        assert_eq!(Money::from_minor(-1, Currency::USD), Err(MoneyError::Negative));
    }
}
