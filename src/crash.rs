//! Named points at which a test makes this process die as if by `kill -9`, or stand still as a zombie; and deliberate
//! bugs by which tests of the whole are tested.
//!
//! Inert unless `THROUGHLINE_CRASH_AT=NAME[:NTH]` or `THROUGHLINE_STOP_AT=NAME[:NTH]` is set when the first
//! point is passed: the NTH pass (from 1) of that point then ends the process by SIGKILL (137 to a shell),
//! without unwinding, flushing or running destructors, or stops it by SIGSTOP until somebody sends
//! SIGCONT. Costs one atomic load otherwise. Knows no other room.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, raise};

struct Plan {
    signal: Signal,
    name: String,
    nth: u64,
    passed: AtomicU64,
}

static PLANS: OnceLock<Vec<Plan>> = OnceLock::new();

/// Passes a crash point; see [`crate::crash_point`].
pub fn pass(name: &str) {
    for plan in PLANS.get_or_init(plans_of_environment) {
        if plan.name == name && plan.passed.fetch_add(1, Ordering::Relaxed) + 1 == plan.nth {
            strike(plan);
        }
    }
}

fn plans_of_environment() -> Vec<Plan> {
    let signals = [("THROUGHLINE_CRASH_AT", Signal::SIGKILL), ("THROUGHLINE_STOP_AT", Signal::SIGSTOP)];
    signals.into_iter().filter_map(|(name, signal)| Some(parse(&std::env::var(name).ok()?, signal))).collect()
}

fn parse(wanted: &str, signal: Signal) -> Plan {
    let (name, nth) = match wanted.rsplit_once(':') {
        Some((name, nth)) => (name, nth.parse().unwrap_or(1)),
        None => (wanted, 1),
    };
    Plan { signal, name: name.to_owned(), nth, passed: AtomicU64::new(0) }
}

fn strike(plan: &Plan) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "crash point {}: {}", plan.name, plan.signal);
    // Raised in this very thread it takes effect before the call returns; sent to the process, another
    // thread may take it, and this one would run on for a moment. After a SIGCONT all go on from here.
    let _ = raise(plan.signal);
}

/// Marks a point of the program at which tests may end or stop the process: `crash_point!("append.before_commit")`.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash::pass($name)
    };
}

/// Whether a test wants the deliberate bug of that name: `THROUGHLINE_SABOTAGE=NAME`, in a build with the feature
/// `sabotage` and in no other.
#[cfg(feature = "sabotage")]
pub fn is_sabotaged(name: &str) -> bool {
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    WANTED.get_or_init(|| std::env::var("THROUGHLINE_SABOTAGE").ok()).as_deref() == Some(name)
}

/// False; see the other one.
#[cfg(not(feature = "sabotage"))]
pub const fn is_sabotaged(_: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_a_point_and_a_pass() {
        let plan = parse("processor.before_commit:3", Signal::SIGKILL);
        assert_eq!((plan.name.as_str(), plan.nth), ("processor.before_commit", 3));
        assert_eq!(parse("relay.after_read", Signal::SIGSTOP).nth, 1);
    }

    #[test]
    fn without_a_plan_points_are_passed() {
        crate::crash_point!("never.reached");
    }
}
