//! The reference application: orders, an example of a context in full, hosted as any other.
//!
//! It stands outside of the library and knows its public names alone.

pub mod checkout;
pub mod orders;
pub mod payments;

use throughline::App;

/// The application that the binary runs.
pub fn app() -> App {
    App::new("Throughline").context(orders::context())
}
