//! One local PostgreSQL cluster from installed binaries, never as root. Its own documentation is
//! authoritative for the settings.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

use super::error::{DevError, last_lines, text_from};
use super::java::{is_executable, missing};
use super::probe::{free_port, postgres_answers};
use super::process::{CancelFlag, Identity, POLL, Running, bind_to_us, run_to_end};
use super::state::{Layout, write_private};

const MAJOR_MIN: u32 = 15;
const START_ATTEMPTS: u32 = 5;
const INITDB_BOUND: Duration = Duration::from_secs(60);
const PROBE_BOUND: Duration = Duration::from_millis(2_000);
/// Name of the superuser and of the database.
const NAME: &str = "throughline";

/// How a server goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresStop {
    /// Ends sessions, writes a checkpoint.
    Fast,
    /// Ends without a checkpoint: the next start recovers from the log.
    Immediate,
    /// As a crash: SIGKILL to the server.
    Kill,
}

impl PostgresStop {
    fn signal(self) -> Signal {
        match self {
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
            Self::Kill => Signal::SIGKILL,
        }
    }
}

/// The user that PostgreSQL runs as when we are root.
#[derive(Debug, Clone, Copy)]
struct RunAs {
    uid: u32,
    gid: u32,
}

/// A cluster on 127.0.0.1, running or not.
#[derive(Debug)]
pub(super) struct PostgresServer {
    bin: PathBuf,
    run_as: Option<RunAs>,
    home: PathBuf,
    log: PathBuf,
    password: String,
    pub port: u16,
    running: Option<Running>,
    log_start: u64,
}

impl PostgresServer {
    /// Finds the binaries, chooses a port (the last one if it is free) and makes the cluster once.
    pub fn new(layout: &Layout, last_port: u16, taken: &[u16], cancel: &CancelFlag) -> Result<Self, DevError> {
        let run_as = run_as()?;
        let home = home(layout, run_as)?;
        make_home(&home, run_as)?;
        let bin = find_binaries(&home)?;
        let port = free_port(last_port, taken);
        let password = password(&home, run_as)?;
        let log = layout.log("postgres");
        let server = Self { bin, run_as, home, log, password, port, running: None, log_start: 0 };
        server.init_once(&layout.root, cancel)?;
        Ok(server)
    }

    /// URL of the database, with its password.
    pub fn url(&self) -> String {
        self.url_of(NAME)
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{NAME}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    pub fn identity(&self) -> Option<Identity> {
        self.running.as_ref().map(|running| running.identity.clone())
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        // The other user may not be able to enter ours.
        command.current_dir("/").env("LC_ALL", "C");
        if let Some(run_as) = self.run_as {
            command.uid(run_as.uid).gid(run_as.gid);
        }
        command
    }

    fn init_once(&self, root: &Path, cancel: &CancelFlag) -> Result<(), DevError> {
        if self.data().join("PG_VERSION").exists() {
            return Ok(());
        }
        // Made aside and moved: a launcher killed half way leaves no half cluster.
        let part = self.home.join("data.new");
        let _ = std::fs::remove_dir_all(&part);
        let mut command = self.command("initdb");
        command.arg("-D").arg(&part).args(["-U", NAME, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]);
        command.arg(format!("--pwfile={}", self.home.join("password").display()));
        run_to_end(command, "initdb", &root.join("initdb.log"), INITDB_BOUND, cancel)?;
        let data = self.data();
        std::fs::rename(&part, &data).map_err(DevError::file("move into place", &data))
    }

    /// Starts the process; `wait_ready` tells when it serves.
    pub fn spawn(&mut self) -> Result<(), DevError> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        let port = format!("port={}", self.port);
        for setting in [
            &port,
            "listen_addresses=127.0.0.1",
            // No socket file: its path may be longer than a socket's may be.
            "unix_socket_directories=",
            "max_connections=200",
            "shared_buffers=256MB",
            "max_wal_size=4GB",
            "checkpoint_timeout=15min",
            "wal_compression=on",
            "log_line_prefix=%m [%p] %a ",
        ] {
            command.args(["-c", setting]);
        }
        self.log_start = self.log.metadata().map_or(0, |metadata| metadata.len());
        bind_to_us(&mut command, Signal::SIGINT, &self.log)?;
        self.running = Some(Running::spawn(command, "starting PostgreSQL")?);
        Ok(())
    }

    /// Waits until `select 1` is answered by our database, which is created when it is not there.
    pub fn wait_ready(&mut self, bound: Duration, may_move: bool, cancel: &CancelFlag) -> Result<(), DevError> {
        let end = Instant::now() + bound;
        let mut attempts = 1;
        let mut answer = String::from("no connection");
        while Instant::now() < end {
            cancel.check()?;
            if self.running.as_mut().is_none_or(|running| running.ended().is_some()) {
                let said = text_from(&self.log, self.log_start);
                let taken = said.contains("Address already in use");
                // Sessions of a killed server take a moment to notice, which has its bound in `end`.
                let draining = said.contains("shared memory block") || said.contains("lock file");
                if !(draining || taken && attempts < START_ATTEMPTS) {
                    break;
                }
                if taken {
                    attempts += 1;
                    self.port = if may_move { free_port(0, &[self.port]) } else { self.port };
                }
                if draining {
                    self.forget_dead_owner();
                }
                std::thread::sleep(POLL * attempts * 5);
                self.spawn()?;
            }
            match postgres_answers(&self.url(), "select 1", PROBE_BOUND) {
                Ok(()) => return Ok(()),
                // 3D000: the database does not exist.
                Err(reason) if reason.contains("(3D000)") => {
                    let create = format!("create database {NAME}");
                    answer =
                        postgres_answers(&self.url_of("postgres"), &create, INITDB_BOUND).err().unwrap_or_default();
                }
                // 28P01: the password file is not this cluster's.
                Err(reason) if reason.contains("(28P01)") => {
                    answer = reason;
                    break;
                }
                Err(reason) => answer = reason,
            }
            std::thread::sleep(POLL);
        }
        let reason = match self.running.as_mut().and_then(Running::ended) {
            Some(status) => format!("it ended ({status}): {}", last_lines(&self.log, 4)),
            None => format!("no answer within {} s ({answer})", bound.as_secs()),
        };
        self.stop(PostgresStop::Fast, Duration::from_secs(1));
        Err(DevError::step("starting PostgreSQL", reason, format!("its log is {}", self.log.display())))
    }

    /// Removes the lock file of a server that is dead and not reaped yet: to PostgreSQL, which asks
    /// whether the number is taken, it runs. Whether its sessions still do is told by their shared memory.
    fn forget_dead_owner(&self) {
        let lock = self.data().join("postmaster.pid");
        let named = std::fs::read_to_string(&lock).unwrap_or_default();
        let owner = named.lines().next().and_then(|line| line.trim().parse().ok());
        if owner.is_some_and(|pid: u32| Identity::of(pid).is_none()) {
            // Another start may have done it; the next attempt tells.
            let _ = std::fs::remove_file(&lock);
        }
    }

    /// How it ended, if it did without being asked.
    pub fn failure(&mut self) -> Option<String> {
        let status = self.running.as_mut()?.ended()?;
        Some(format!("PostgreSQL ended by itself ({status}); its log is {}", self.log.display()))
    }

    /// Tells it to stop, without waiting.
    pub fn ask_to_stop(&self) {
        if let Some(running) = &self.running {
            running.identity.signal(Signal::SIGINT);
        }
    }

    pub fn stop(&mut self, how: PostgresStop, bound: Duration) {
        if let Some(mut running) = self.running.take() {
            running.stop(how.signal(), bound);
        }
    }
}

/// Root's server runs as `postgres`, else `nobody`: PostgreSQL refuses root.
fn run_as() -> Result<Option<RunAs>, DevError> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Ok(Some(user)) = User::from_name(name) {
            return Ok(Some(RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
        }
    }
    let what = "PostgreSQL does not run as root, and there is no user `postgres` or `nobody`".to_owned();
    Err(DevError::Unusable { what, next: "create one with: useradd --system postgres".into() })
}

/// Where the cluster lives: in the services' directory, or under the system's temporary directory
/// when the other user cannot reach that (a home directory that is closed to others).
fn home(layout: &Layout, run_as: Option<RunAs>) -> Result<PathBuf, DevError> {
    let [usual, fallback] = layout.postgres_homes();
    let root = layout.root.canonicalize().map_err(DevError::file("find", &layout.root))?;
    match run_as {
        Some(run_as) if !root.ancestors().all(|folder| can_enter(folder, run_as)) => Ok(fallback),
        _ => Ok(usual),
    }
}

fn can_enter(folder: &Path, run_as: RunAs) -> bool {
    folder.metadata().is_ok_and(|metadata| {
        let bit = match () {
            () if metadata.uid() == run_as.uid => 0o100,
            () if metadata.gid() == run_as.gid => 0o010,
            () => 0o001,
        };
        metadata.mode() & bit != 0
    })
}

fn make_home(home: &Path, run_as: Option<RunAs>) -> Result<(), DevError> {
    match std::fs::create_dir(home) {
        Ok(()) => {
            std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o700))
                .map_err(DevError::file("close", home))?;
            give(home, run_as)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            // In a shared temporary directory somebody else could have made it first.
            let metadata = home.symlink_metadata().map_err(DevError::file("look at", home))?;
            let owner = run_as.map_or_else(|| Uid::effective().as_raw(), |run_as| run_as.uid);
            if metadata.is_dir() && metadata.uid() == owner && metadata.mode() & 0o077 == 0 {
                return Ok(());
            }
            let what = format!("{} is not a directory that only user {owner} can enter", home.display());
            Err(DevError::Unusable { what, next: "delete it with: throughline dev reset --yes".into() })
        }
        Err(error) => Err(DevError::file("create", home)(error)),
    }
}

fn give(path: &Path, run_as: Option<RunAs>) -> Result<(), DevError> {
    match run_as {
        Some(run_as) => {
            chown(path, Some(run_as.uid), Some(run_as.gid)).map_err(DevError::file("change the owner of", path))
        }
        None => Ok(()),
    }
}

/// The superuser's password: made once, in a file that only its owner reads.
fn password(home: &Path, run_as: Option<RunAs>) -> Result<String, DevError> {
    let path = home.join("password");
    if let Ok(password) = std::fs::read_to_string(&path)
        && !password.trim().is_empty()
    {
        return Ok(password.trim().to_owned());
    }
    let password = format!("{:032x}", rand::random::<u128>());
    write_private(&path, password.as_bytes())?;
    give(&path, run_as)?;
    Ok(password)
}

/// The newest usable binaries, or those that the cluster was made with.
fn find_binaries(home: &Path) -> Result<PathBuf, DevError> {
    let found: Vec<(u32, PathBuf)> = candidates().into_iter().filter_map(|bin| Some((major_of(&bin)?, bin))).collect();
    let made_with =
        std::fs::read_to_string(home.join("data/PG_VERSION")).ok().and_then(|text| text.trim().parse().ok());
    choose(&found, made_with)
}

fn choose(found: &[(u32, PathBuf)], made_with: Option<u32>) -> Result<PathBuf, DevError> {
    if let Some(major) = made_with {
        return found.iter().find(|(found, _)| *found == major).map(|(_, bin)| bin.clone()).ok_or_else(|| {
            DevError::Unusable {
                what: format!("the database here was made by PostgreSQL {major}, whose binaries are not found"),
                next: "name them in PG_BIN, or start anew with: throughline dev reset --yes".into(),
            }
        });
    }
    if let Some((_, bin)) = found.iter().find(|(major, _)| *major >= MAJOR_MIN) {
        return Ok(bin.clone());
    }
    let what = match found.first() {
        Some((major, bin)) => {
            format!("PostgreSQL {MAJOR_MIN} or newer ({} is {major}; PG_BIN selects another)", bin.display())
        }
        None => format!("PostgreSQL's server programs ({MAJOR_MIN} or newer; `initdb` and `postgres`)"),
    };
    Err(missing(&what, "postgresql"))
}

/// Folders that may hold the server programs: `PG_BIN`, `PATH`, then where packages put them.
fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::var_os("PG_BIN").map(PathBuf::from).into_iter().collect();
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let mut packaged: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin"))))
        .collect();
    packaged.sort_by(|a, b| b.cmp(a));
    folders.extend(packaged.into_iter().map(|(_, bin)| bin));
    folders.extend(["/usr/local/pgsql/bin", "/opt/homebrew/bin"].map(PathBuf::from));
    folders.retain(|bin| is_executable(&bin.join("initdb")) && is_executable(&bin.join("postgres")));
    folders
}

fn major_of(bin: &Path) -> Option<u32> {
    let output = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    parse_major(&String::from_utf8_lossy(&output.stdout))
}

/// 15 of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`; 18 of `… 18beta1`.
fn parse_major(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL)").nth(1)?.trim_start();
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
