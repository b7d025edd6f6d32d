//! What is measured: wall time between two moments, and CPU time of us and our database sessions.

use std::time::Instant;

use tokio_postgres::Client;

use crate::harness::Harness;

/// One contestant's round.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub per_second: f64,
    pub cpu_per_100_000: f64,
}

/// A moment on the clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Instant,
    cpu_seconds: f64,
}

/// Reads the clocks; its own session is not counted.
pub struct Machine {
    pub client: Client,
}

impl Machine {
    pub async fn new(harness: &Harness) -> Self {
        Self { client: harness.client().await }
    }

    /// Now. Sessions that ended are not counted: contestants keep theirs until the second moment.
    pub async fn moment(&self) -> Moment {
        let sessions =
            "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
        let rows = self.client.query(sessions, &[]).await.expect("sessions");
        let pids = rows.iter().map(|row| row.get::<_, i32>(0).to_string()).chain(["self".to_owned()]);
        Moment { at: Instant::now(), cpu_seconds: pids.map(|pid| cpu_seconds(&pid)).sum() }
    }

    /// What `commands` between two moments amount to.
    pub fn figure(commands: usize, from: Moment, to: Moment) -> Figure {
        let seconds = (to.at - from.at).as_secs_f64();
        Figure {
            per_second: commands as f64 / seconds,
            cpu_per_100_000: (to.cpu_seconds - from.cpu_seconds) / commands as f64 * 100_000.0,
        }
    }
}

/// User and system time of a process of this machine; 0 when it is elsewhere.
fn cpu_seconds(pid: &str) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0.0 };
    // After the name: state is field 0, utime 11, stime 12, in ticks of 10 ms.
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Peak resident memory of a process of this machine, or of `self`.
pub fn peak_megabytes(pid: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
}
