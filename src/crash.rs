//! Named points at which a test makes this process die as if by `kill -9`.
//!
//! Inert unless `THROUGHLINE_CRASH_AT=NAME[:NTH]` is set when the first point is passed: then the
//! NTH pass (from 1) of that point ends the process by SIGKILL (137 to a shell), without unwinding, flushing or
//! running destructors. Costs one atomic load otherwise. Knows no other room.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Plan {
    name: String,
    nth: u64,
    passed: AtomicU64,
}

static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

/// Passes a crash point; see [`crate::crash_point`].
pub fn pass(name: &str) {
    let Some(plan) = PLAN.get_or_init(plan_of_environment) else { return };
    if plan.name == name && plan.passed.fetch_add(1, Ordering::Relaxed) + 1 == plan.nth {
        die(name);
    }
}

fn plan_of_environment() -> Option<Plan> {
    let wanted = std::env::var("THROUGHLINE_CRASH_AT").ok()?;
    Some(parse(&wanted))
}

fn parse(wanted: &str) -> Plan {
    let (name, nth) = match wanted.rsplit_once(':') {
        Some((name, nth)) => (name, nth.parse().unwrap_or(1)),
        None => (wanted, 1),
    };
    Plan { name: name.to_owned(), nth, passed: AtomicU64::new(0) }
}

fn die(name: &str) -> ! {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "crash point {name}: ending as if killed");
    // A signal rather than an exit: no handler, no destructor, no flush; the shell reports 137.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    // The signal is delivered before `kill` returns; this line satisfies the type.
    std::process::abort()
}

/// Marks a point of the program at which tests may end the process: `crash_point!("append.before_commit")`.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash::pass($name)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_a_point_and_a_pass() {
        let plan = parse("processor.before_commit:3");
        assert_eq!((plan.name.as_str(), plan.nth), ("processor.before_commit", 3));
        assert_eq!(parse("relay.after_read").nth, 1);
    }

    #[test]
    fn without_a_plan_points_are_passed() {
        crate::crash_point!("never.reached");
    }
}
