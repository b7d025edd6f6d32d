//! What happens when a thread of ours panics: it is told once with its text and place, and counted. Whoever
//! started the thread contains it and starts over, or ends the process. Knows no other room.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Tells and counts every panic of this process from now on, whatever thread it is on.
pub fn tell() {
    std::panic::set_hook(Box::new(|panic| {
        let current = std::thread::current();
        let thread = current.name().unwrap_or("unnamed").to_owned();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(thread, place, "panic: {}", text(panic.payload()));
        metrics::counter!("throughline_panics_total", "thread" => thread).increment(1);
    }));
}

/// Runs `work`, and turns a panic into its text.
///
/// # Errors
/// What the panic said.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| text(panic.as_ref()).to_owned())
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_text() {
        assert_eq!(contain(|| 7), Ok(7));
        assert_eq!(contain(|| panic!("of {}", 7)), Err::<(), _>("of 7".into()));
        assert_eq!(contain(|| panic!("plain")), Err::<(), _>("plain".into()));
        assert_eq!(contain(|| std::panic::panic_any(7)), Err::<(), _>("no message".into()));
    }
}
