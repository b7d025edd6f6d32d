//! A panic on a thread of ours: told once with its text, and counted. What goes on afterwards the caller says.

use std::any::Any;

/// Logs and counts a panic of `thread`; its text, for reasons.
pub(super) fn told(thread: &'static str, panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    tracing::error!(thread, text, "a thread panicked: a defect of ours; what it did starts over");
    metrics::counter!("throughline_panics_total", "thread" => thread).increment(1);
    format!("the {thread} thread panicked: {text}")
}
