//! A PostgreSQL whose clock can be set while it runs: the installed server under libfaketime. Its monotonic
//! clock is the machine's, as that of a real server whose clock is set.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use uuid::Uuid;

use crate::harness::eventually;

/// A running server, ended and deleted with the value.
pub struct Server {
    home: PathBuf,
    /// The user that PostgreSQL runs as when we are root.
    user: Option<User>,
    port: u16,
    child: Child,
}

impl Server {
    /// Makes a cluster and starts it, with the machine's time.
    pub async fn start() -> Self {
        let user = Uid::effective().is_root().then(|| User::from_name("postgres").expect("users").expect("postgres"));
        let home = std::env::temp_dir().join(format!("throughline-clock-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&home).expect("a directory");
        std::fs::set_permissions(&home, PermissionsExt::from_mode(0o700)).expect("its mode");
        if let Some(user) = &user {
            chown(&home, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("its owner");
        }
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|held| held.local_addr()).expect("a port").port();
        let made = command("initdb", &home, user.as_ref())
            .args(["-U", "throughline", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(home.join("data"))
            .stdout(Stdio::null())
            .status()
            .expect("initdb starts");
        assert!(made.success());
        write_clock(&home, 0);
        let child = command("postgres", &home, user.as_ref())
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", home.join("clock"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .arg("-D")
            .arg(home.join("data"))
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "max_connections=100", "-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(home.join("log")).expect("a log"))
            .spawn()
            .expect("postgres starts");
        let server = Self { home, user, port, child };
        eventually("the server answers", async || {
            tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.ok().map(drop)
        })
        .await;
        server
    }

    /// URL of its superuser.
    pub fn url(&self) -> String {
        format!("postgres://throughline@127.0.0.1:{}/postgres", self.port)
    }

    /// Sets the clock so many seconds beside the machine's.
    pub fn set_clock(&self, seconds: i64) {
        write_clock(&self.home, seconds);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGQUIT);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.home.join("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("the server's last lines, newest first:\n{}", last.join("\n"));
        }
        let _ = std::fs::remove_dir_all(&self.home);
        let _ = &self.user;
    }
}

fn command(program: &str, home: &Path, user: Option<&User>) -> Command {
    let mut command = Command::new(binaries().join(program));
    command.current_dir(home).env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// Replaced whole: a server that reads it meets the old time or the new one.
fn write_clock(home: &Path, seconds: i64) {
    let part = home.join("clock.new");
    std::fs::write(&part, format!("{seconds:+}\n")).expect("a clock");
    std::fs::set_permissions(&part, PermissionsExt::from_mode(0o644)).expect("its mode");
    std::fs::rename(&part, home.join("clock")).expect("the clock is set");
}

fn binaries() -> PathBuf {
    let mut folders: Vec<PathBuf> = std::env::var_os("PG_BIN").map(PathBuf::from).into_iter().collect();
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let packaged = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    folders.extend(packaged.map(|entry| entry.path().join("bin")));
    let found = folders.into_iter().find(|bin| bin.join("initdb").exists() && bin.join("postgres").exists());
    found.expect("PostgreSQL's server programs; deploy/setup.sh installs them")
}

fn library() -> PathBuf {
    let folders = ["/usr/lib", "/usr/local/lib"]
        .map(PathBuf::from)
        .into_iter()
        .chain(std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path()));
    let found = folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|library| library.exists());
    found.expect("libfaketime; deploy/setup.sh installs it")
}
