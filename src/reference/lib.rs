//! The reference application: orders, tuned by hand; payments, of plain types; and `checkout` between the two.
//!
//! It stands outside of the library and knows its public names alone.

pub mod checkout;
pub mod orders;
pub mod payments;

use throughline::App;

/// The application that the binary runs.
pub fn app() -> App {
    App::new("Throughline").context(orders::context()).context(payments::context()).process(checkout::process())
}
