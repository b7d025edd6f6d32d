//! Currencies an order can be in: those of ISO 4217 that have minor units. Knows no amounts.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A currency of ISO 4217 with a defined number of minor digits (so no gold, no test codes).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency(iso_currency::Currency);

impl Currency {
    /// United States dollar: the currency implied by the oldest event versions.
    pub const USD: Self = Self(iso_currency::Currency::USD);

    /// The currency with this alphabetic code (three upper-case letters).
    pub fn from_code(code: &str) -> Option<Self> {
        let currency = iso_currency::Currency::from_code(code)?;
        // Four is the most that ISO 4217 knows, and what a unit price can resolve.
        currency.exponent().filter(|digits| *digits <= 4).map(|_| Self(currency))
    }

    /// The codes of all of them.
    pub fn codes() -> impl Iterator<Item = &'static str> {
        let letters = || b'A'..=b'Z';
        let texts = letters().flat_map(move |a| letters().flat_map(move |b| letters().map(move |c| [a, b, c])));
        texts.filter_map(|text| Self::from_code(std::str::from_utf8(&text).ok()?)).map(Self::code)
    }

    /// Alphabetic code, such as `USD`.
    pub fn code(self) -> &'static str {
        self.0.code()
    }

    /// Digits after the decimal point, 0 to 4.
    pub fn minor_digits(self) -> u32 {
        u32::from(self.0.exponent().unwrap_or(0))
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = <Cow<'de, str>>::deserialize(deserializer)?;
        Self::from_code(&code).ok_or_else(|| serde::de::Error::custom(format_args!("unknown currency {code:?}")))
    }
}

impl JsonSchema for Currency {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Currency".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> schemars::Schema {
        json_schema!({"type": "string", "enum": Self::codes().collect::<Vec<_>>(), "description": "ISO 4217 code."})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_iso_4217() {
        let digits = |code| Currency::from_code(code).map(Currency::minor_digits);
        assert_eq!(digits("USD"), Some(2));
        assert_eq!(digits("JPY"), Some(0));
        assert_eq!(digits("BHD"), Some(3));
        assert_eq!(digits("CLF"), Some(4));
    }

    #[test]
    fn what_has_no_minor_units_is_no_currency_here() {
        for code in ["XAU", "XXX", "XTS", "usd", "US", "", "USDX", "ÄÖ"] {
            assert_eq!(Currency::from_code(code), None, "{code}");
        }
    }
}
