//! What the launcher remembers of one directory: where things lie, what runs, which ports were used.
//! The processes themselves are authoritative; a file only says where to look.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::DevError;
use super::process::{CancelFlag, Identity};
use crate::settings::{DevRunner, DevSettings};

/// The files of one set of services.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Absolute.
    pub root: PathBuf,
}

impl Layout {
    /// The layout of a settings' directory; creates nothing.
    pub fn of(settings: &DevSettings) -> Result<Self, DevError> {
        let root = in_workspace(&settings.directory)?;
        Ok(Self { root })
    }

    pub(super) fn create(&self) -> Result<(), DevError> {
        std::fs::create_dir_all(&self.root).map_err(DevError::file("create", &self.root))
    }

    /// The log of `kafka`, `postgres` or `supervisor`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.log"))
    }

    /// Scripts that run Kafka's own tools.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The folder of one broker.
    pub(super) fn kafka(&self, node: u16) -> PathBuf {
        self.root.join(kafka_name(node))
    }

    pub(super) fn kafka_log(&self, node: u16) -> PathBuf {
        self.log(&kafka_name(node))
    }

    fn state(&self) -> PathBuf {
        self.root.join("state.json")
    }

    fn ports(&self) -> PathBuf {
        self.root.join("ports.json")
    }

    /// A short name that no other directory has.
    pub(super) fn key(&self) -> String {
        short_hash(self.root.as_os_str().as_encoded_bytes())
    }

    /// The previous run's log stays as `.1`; so a log is bounded by two runs.
    pub(super) fn rotate_log(&self, name: &str) {
        let log = self.log(name);
        let _ = std::fs::rename(&log, log.with_extension("log.1"));
    }

    /// Held while services are looked for, started or stopped; released when dropped or when we die.
    pub(super) fn lock(&self, bound: Duration, cancel: &CancelFlag) -> Result<File, DevError> {
        self.create()?;
        lock_file(&self.root.join("lock"), bound, cancel)
    }

    /// What was written last, if it can be read.
    pub fn read_state(&self) -> Option<Recorded> {
        read_json(&self.state())
    }

    /// What runs now and is ready.
    pub fn running(&self) -> Option<Recorded> {
        self.read_state().filter(|state| state.ready && state.is_alive())
    }

    /// Where a cluster of this directory may be: here, or where whom PostgreSQL runs as may enter.
    pub(super) fn postgres_homes(&self) -> [PathBuf; 2] {
        let elsewhere = std::env::temp_dir().join(format!("throughline-dev-{}", self.key()));
        [self.root.join("postgres"), elsewhere]
    }

    /// Whether a reset would lose anything.
    pub fn has_data(&self) -> bool {
        self.root.exists() || self.postgres_homes().iter().any(|home| home.exists())
    }

    pub(super) fn write_state(&self, state: &Recorded) -> Result<(), DevError> {
        write_json(&self.state(), state)
    }

    pub(super) fn forget_state(&self) {
        let _ = std::fs::remove_file(self.state());
    }

    /// Whether these are the addresses of this directory's own services, running or not.
    pub(super) fn is_ours(&self, brokers: &str, database_url: &str) -> bool {
        let ports = self.read_ports();
        let ours: Vec<String> =
            [ports.kafka].iter().chain(&ports.more_kafka).map(|port| format!("127.0.0.1:{port}")).collect();
        ports.kafka != 0
            && brokers == ours.join(",")
            && database_url.contains(&format!("@127.0.0.1:{}/", ports.postgres))
    }

    pub(super) fn read_ports(&self) -> Ports {
        read_json(&self.ports()).unwrap_or_default()
    }

    pub(super) fn write_ports(&self, ports: &Ports) -> Result<(), DevError> {
        write_json(&self.ports(), ports)
    }
}

/// Ports of the last run; 0 = none yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Ports {
    pub kafka: u16,
    /// Of the brokers beside the first.
    pub more_kafka: Vec<u16>,
    pub controller: u16,
    pub postgres: u16,
}

/// What runs in a directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// `local` or `compose`.
    pub runner: DevRunner,
    /// The process that owns local services and stops with them; none for containers.
    pub owner: Option<Identity>,
    pub kafka: Option<Identity>,
    /// The brokers beside the first.
    #[serde(default)]
    pub more_kafka: Vec<Identity>,
    pub postgres: Option<Identity>,
    /// `host:port`, comma separated.
    pub kafka_brokers: String,
    /// With the password; the file is readable by its owner only.
    pub database_url: String,
    /// Jars of the local Kafka.
    pub kafka_jars: Option<PathBuf>,
    /// Both answered a real request.
    pub ready: bool,
}

impl Recorded {
    /// Whether the owner and both services still run. Containers answer for themselves.
    pub fn is_alive(&self) -> bool {
        self.runner == DevRunner::Compose
            || [&self.owner, &self.kafka, &self.postgres]
                .iter()
                .all(|identity| identity.as_ref().is_some_and(Identity::is_alive))
                && self.more_kafka.iter().all(Identity::is_alive)
    }

    /// Whether the owner still runs, be it in the middle of a start.
    pub fn is_owned(&self) -> bool {
        self.owner.as_ref().is_some_and(Identity::is_alive)
    }

    /// Ends whatever of it still runs, its owner first: gently, then by force after `bound`.
    pub(super) fn end(&self, bound: Duration) {
        if let Some(owner) = &self.owner
            && Identity::own().as_ref() != Some(owner)
        {
            owner.end(Signal::SIGTERM, bound);
        }
        self.end_services(bound);
    }

    /// As [`Recorded::end`], without the owner: it may live on, having stopped its services.
    pub(super) fn end_services(&self, bound: Duration) {
        // Together: each is told before either is waited for.
        let kafka = self.kafka.iter().chain(&self.more_kafka).map(|identity| (identity, Signal::SIGTERM));
        let leftovers: Vec<_> = kafka.chain(self.postgres.iter().map(|identity| (identity, Signal::SIGINT))).collect();
        for (identity, gentle) in &leftovers {
            identity.signal(*gentle);
        }
        for (identity, gentle) in &leftovers {
            identity.end(*gentle, bound);
        }
    }
}

/// The first broker keeps the name that it had when it was the only one.
fn kafka_name(node: u16) -> String {
    if node == 1 { "kafka".into() } else { format!("kafka-{node}") }
}

pub(super) fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn lock_file(path: &Path, bound: Duration, cancel: &CancelFlag) -> Result<File, DevError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(DevError::file("open the lock", path))?;
    let end = Instant::now() + bound;
    while file.try_lock().is_err() {
        cancel.check()?;
        if Instant::now() >= end {
            let reason = format!("another launcher has held {} for {} s", path.display(), bound.as_secs());
            return Err(DevError::step("waiting for another launcher", reason, "throughline dev down"));
        }
        std::thread::sleep(super::process::POLL);
    }
    Ok(file)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Readable by the owner only, whole or not at all.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), DevError> {
    let bytes = serde_json::to_vec_pretty(value).expect("the launcher's records have text keys only");
    write_private(path, &bytes)
}

/// Writes a file that only its owner can read, whole or not at all.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), DevError> {
    let part = path.with_extension(format!("part{}", std::process::id()));
    let write = || {
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
        file.write_all(bytes)?;
        std::fs::rename(&part, path)
    };
    write().map_err(DevError::file("write", path))
}

/// Where a relative path of the settings leads: from the nearest folder above with a `Cargo.lock`, so that the
/// services of a workspace are the same from wherever in it one looks; elsewhere, from the current folder.
pub(super) fn in_workspace(path: &Path) -> Result<PathBuf, DevError> {
    let here = std::env::current_dir().map_err(DevError::file("find", path))?;
    let root = here.ancestors().find(|folder| folder.join("Cargo.lock").is_file()).unwrap_or(&here);
    std::path::absolute(root.join(path)).map_err(DevError::file("find", path))
}
