//! The same two services as containers, where a Docker engine answers. docker-compose.yml is
//! authoritative for what runs.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::error::DevError;
use super::java::on_path;
use super::probe::free_port;
use super::process::{CancelFlag, POLL, run_to_end};
use super::state::{Layout, Ports, Recorded, write_private};
use crate::settings::{DevRunner, DevSettings};

const FILE: &str = include_str!("../../../docker-compose.yml");
/// A Docker engine that is there answers within this.
const ENGINE_BOUND: Duration = Duration::from_secs(3);

/// One compose project a directory.
#[derive(Debug, Clone)]
pub(super) struct ComposeProject {
    docker: PathBuf,
    layout: Layout,
    bound: Duration,
}

impl ComposeProject {
    /// The project of these settings, if an engine and its compose client answer.
    pub fn find(settings: &DevSettings) -> Result<Option<Self>, DevError> {
        let Some(docker) = on_path("docker") else { return Ok(None) };
        let answers = |arguments: &[&str]| ends_well_within(Command::new(&docker).args(arguments), ENGINE_BOUND);
        // The client alone answers `compose version`; both are needed.
        if !answers(&["info"]) || !answers(&["compose", "version"]) {
            return Ok(None);
        }
        let bound = Duration::from_millis(settings.fetch_timeout_ms);
        Ok(Some(Self { docker, layout: Layout::of(settings)?, bound }))
    }

    fn command(&self, ports: &Ports, password: &str) -> Command {
        let mut command = Command::new(&self.docker);
        command.args(["compose", "--project-name", &format!("throughline-{}", self.layout.key()), "--file"]);
        command.arg(self.file());
        command
            .env("THROUGHLINE_KAFKA_PORT", ports.kafka.to_string())
            .env("THROUGHLINE_POSTGRES_PORT", ports.postgres.to_string())
            .env("THROUGHLINE_POSTGRES_PASSWORD", password);
        command
    }

    fn file(&self) -> PathBuf {
        self.layout.root.join("docker-compose.yml")
    }

    /// Starts the containers, or finds them; returns when their health checks hold.
    pub fn up(&self, cancel: &CancelFlag) -> Result<Recorded, DevError> {
        let _lock = self.layout.lock(self.bound, cancel)?;
        let file = self.file();
        std::fs::write(&file, FILE).map_err(DevError::file("write", &file))?;
        let last = self.layout.read_ports();
        let known = self.layout.read_state().filter(|state| state.runner == DevRunner::Compose);
        // Containers that run hold their ports themselves.
        let choose = |port: u16| if known.is_some() && port != 0 { port } else { free_port(port, &[]) };
        let ports = Ports { kafka: choose(last.kafka), postgres: choose(last.postgres), ..Ports::default() };
        self.layout.write_ports(&ports)?;
        let password = self.password()?;
        let mut command = self.command(&ports, &password);
        command.args(["up", "--detach", "--wait"]);
        let log = self.layout.log("supervisor");
        run_to_end(command, "docker compose up", &log, self.bound, cancel)?;
        let state = Recorded {
            runner: DevRunner::Compose,
            owner: None,
            kafka: None,
            more_kafka: Vec::new(),
            postgres: None,
            kafka_brokers: format!("127.0.0.1:{}", ports.kafka),
            database_url: format!("postgres://throughline:{password}@127.0.0.1:{}/throughline", ports.postgres),
            kafka_jars: None,
            ready: true,
        };
        self.layout.write_state(&state)?;
        Ok(state)
    }

    /// Stops and removes the containers; with `volumes` their data too.
    pub fn down(&self, volumes: bool) -> Result<(), DevError> {
        let mut command = self.command(&self.layout.read_ports(), &self.password()?);
        command.arg("down");
        if volumes {
            command.arg("--volumes");
        }
        run_to_end(command, "docker compose down", &self.layout.log("supervisor"), self.bound, &CancelFlag::default())?;
        self.layout.forget_state();
        Ok(())
    }

    /// The log of one service.
    pub fn logs(&self, service: &str, lines: usize) -> Result<String, DevError> {
        let mut command = self.command(&self.layout.read_ports(), &self.password()?);
        command.args(["logs", "--no-color", "--tail", &lines.to_string(), service]);
        let output = command
            .output()
            .map_err(|error| DevError::step("docker compose logs", error, "check that docker can be run"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn password(&self) -> Result<String, DevError> {
        let path = self.layout.root.join("postgres-password");
        if let Ok(password) = std::fs::read_to_string(&path) {
            return Ok(password.trim().to_owned());
        }
        let password = format!("{:032x}", rand::random::<u128>());
        write_private(&path, password.as_bytes())?;
        Ok(password)
    }
}

fn ends_well_within(command: &mut Command, bound: Duration) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = quiet.spawn() else { return false };
    let end = Instant::now() + bound;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < end => std::thread::sleep(POLL),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}
