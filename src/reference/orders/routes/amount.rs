//! Money of the read tables as decimal text: exact, with the currency's minor digits.

use rust_decimal::Decimal;

use crate::orders::domain::Currency;

/// An amount with exactly the currency's minor digits, such as `39.98`.
pub fn amount_text(mut amount: Decimal, currency: &str) -> String {
    amount.rescale(minor_digits(currency));
    amount.to_string()
}

/// A unit price with at least the currency's minor digits and no needless zeros beyond them.
pub fn price_text(price: Decimal, currency: &str) -> String {
    let mut price = price.normalize();
    price.rescale(price.scale().max(minor_digits(currency)));
    price.to_string()
}

fn minor_digits(currency: &str) -> u32 {
    // A currency that ISO 4217 dropped since still reads with cents.
    Currency::from_code(currency).map_or(2, Currency::minor_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_currencys_digits() {
        let text = |number: &str, currency| amount_text(number.parse().unwrap(), currency);
        assert_eq!(text("39.98", "USD"), "39.98");
        assert_eq!(text("40", "USD"), "40.00");
        assert_eq!(text("0", "BHD"), "0.000");
        assert_eq!(text("40", "JPY"), "40");
    }

    #[test]
    fn prices_keep_what_they_resolve() {
        let text = |number: &str, currency| price_text(number.parse().unwrap(), currency);
        assert_eq!(text("19.9900", "USD"), "19.99");
        assert_eq!(text("0.0125", "USD"), "0.0125");
        assert_eq!(text("5.0000", "JPY"), "5");
        assert_eq!(text("5.5", "JPY"), "5.5");
    }
}
