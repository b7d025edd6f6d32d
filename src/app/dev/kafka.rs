//! Local Kafka brokers: the first has the controller in its process, others join it. Kafka's own
//! documentation is authoritative for the settings; this file says which differ and why.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::error::{DevError, last_lines, text_from};
use super::probe::{free_port, kafka_answers};
use super::process::{CancelFlag, Identity, POLL, Running, bind_to_us, run_to_end, wait_until};
use super::state::{Layout, Ports};

/// What a Kafka process needs from the cache. Paths are absolute.
#[derive(Debug, Clone)]
pub(super) struct KafkaFiles {
    pub java: PathBuf,
    pub jars: PathBuf,
    /// A formatted log directory without ids of its own.
    pub template: PathBuf,
    pub log4j: PathBuf,
    /// Class-data archive; none where this Java could not write one.
    pub archive: Option<PathBuf>,
}

/// How often a broker that found a port taken gets another.
const PORT_ATTEMPTS: u32 = 5;
const PREPARE_BOUND: Duration = Duration::from_secs(120);
/// One metadata request of the wait for readiness.
const PROBE_BOUND: Duration = Duration::from_millis(1_000);

/// A broker on 127.0.0.1, running or not.
#[derive(Debug)]
pub(super) struct KafkaServer {
    files: KafkaFiles,
    /// Kafka's id of it. The controller is node 1.
    node: u16,
    cluster: String,
    folder: PathBuf,
    log: PathBuf,
    heap_mib: u32,
    pub port: u16,
    pub controller_port: u16,
    running: Option<Running>,
    log_start: u64,
}

impl KafkaServer {
    /// Chooses ports (the last ones if they are free) and formats the log directory once.
    pub fn new(files: KafkaFiles, layout: &Layout, last: &Ports, heap_mib: u32) -> Result<Self, DevError> {
        let port = free_port(last.kafka, &[]);
        let controller_port = free_port(last.controller, &[port]);
        Self::at(files, layout, 1, (port, controller_port), heap_mib, random_id())
    }

    /// The broker `node` of the cluster that `first` begins.
    pub fn beside(first: &Self, layout: &Layout, node: u16, last: u16, taken: &[u16]) -> Result<Self, DevError> {
        let ports = (free_port(last, taken), first.controller_port);
        Self::at(first.files.clone(), layout, node, ports, first.heap_mib, first.cluster.clone())
    }

    fn at(
        files: KafkaFiles,
        layout: &Layout,
        node: u16,
        (port, controller_port): (u16, u16),
        heap_mib: u32,
        cluster: String,
    ) -> Result<Self, DevError> {
        let (folder, log) = (layout.kafka(node), layout.kafka_log(node));
        let running = None;
        let mut server =
            Self { files, node, cluster, folder, log, heap_mib, port, controller_port, running, log_start: 0 };
        std::fs::create_dir_all(&server.folder).map_err(DevError::file("create", &server.folder))?;
        server.format_once()?;
        Ok(server)
    }

    /// `host:port` of the broker.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn identity(&self) -> Option<Identity> {
        self.running.as_ref().map(|running| running.identity.clone())
    }

    /// The copy of the template gets ids of its own: a client must see another cluster as another.
    fn format_once(&mut self) -> Result<(), DevError> {
        let data = self.folder.join("data");
        if let Ok(meta) = std::fs::read_to_string(data.join("meta.properties")) {
            let kept = meta.lines().find_map(|line| line.strip_prefix("cluster.id="));
            self.cluster = kept.unwrap_or_default().to_owned();
            return Ok(());
        }
        let part = self.folder.join("data.new");
        let _ = std::fs::remove_dir_all(&part);
        let write = || {
            std::fs::create_dir_all(&part)?;
            for entry in std::fs::read_dir(&self.files.template)? {
                let entry = entry?;
                std::fs::copy(entry.path(), part.join(entry.file_name()))?;
            }
            let (node, cluster, directory) = (self.node, &self.cluster, random_id());
            let meta = format!("version=1\nnode.id={node}\ncluster.id={cluster}\ndirectory.id={directory}\n");
            std::fs::write(part.join("meta.properties"), meta)?;
            let _ = std::fs::remove_dir_all(&data);
            std::fs::rename(&part, &data)
        };
        write().map_err(DevError::file("format", &data))
    }

    /// Starts the process; `wait_ready` tells when it serves.
    pub fn spawn(&mut self) -> Result<(), DevError> {
        let properties = self.folder.join("server.properties");
        let text = server_properties(&self.folder.join("data"), self.node, self.port, self.controller_port)?;
        std::fs::write(&properties, text).map_err(DevError::file("write", &properties))?;
        let mut command = java_command(&self.files, self.heap_mib, &self.folder);
        if let Some(archive) = &self.files.archive {
            command.arg(format!("-XX:SharedArchiveFile={}", archive.display())).arg("-Xlog:cds=off");
        }
        command.arg("kafka.Kafka").arg(&properties);
        self.log_start = self.log.metadata().map_or(0, |metadata| metadata.len());
        bind_to_us(&mut command, Signal::SIGTERM, &self.log)?;
        self.running = Some(Running::spawn(command, "starting Kafka")?);
        Ok(())
    }

    /// Waits until it answers a metadata request; moves to other ports when `may_move` and a port was
    /// taken between the choice and the start.
    pub fn wait_ready(&mut self, bound: Duration, may_move: bool, cancel: &CancelFlag) -> Result<(), DevError> {
        let end = Instant::now() + bound;
        let mut attempts = 1;
        while Instant::now() < end {
            cancel.check()?;
            if self.running.as_mut().is_none_or(|running| running.ended().is_some()) {
                let said = text_from(&self.log, self.log_start);
                let taken = said.contains("Address already in use") || said.contains("Failed to bind");
                if !(taken && attempts < PORT_ATTEMPTS) {
                    break;
                }
                attempts += 1;
                if may_move {
                    self.port = free_port(0, &[self.port]);
                    if self.node == 1 {
                        self.controller_port = free_port(0, &[self.port, self.controller_port]);
                    }
                }
                self.spawn()?;
            }
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && kafka_answers(&self.brokers(), [], PROBE_BOUND).is_ok()
            {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        let reason = match self.running.as_mut().and_then(Running::ended) {
            Some(status) => format!("it ended ({status}): {}", last_lines(&self.log, 3)),
            None => format!("no answer within {} s: {}", bound.as_secs(), last_lines(&self.log, 3)),
        };
        self.stop(Duration::from_secs(1));
        Err(DevError::step("starting Kafka", reason, format!("its log is {}", self.log.display())))
    }

    /// How it ended, if it did without being asked.
    pub fn failure(&mut self) -> Option<String> {
        let status = self.running.as_mut()?.ended()?;
        Some(format!("Kafka ended by itself ({status}); its log is {}", self.log.display()))
    }

    /// Tells it to stop, without waiting.
    pub fn ask_to_stop(&self) {
        if let Some(running) = &self.running {
            running.identity.signal(Signal::SIGTERM);
        }
    }

    pub fn stop(&mut self, bound: Duration) {
        if let Some(mut running) = self.running.take() {
            running.stop(Signal::SIGTERM, bound);
        }
    }

    /// As a crash: SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.stop(Signal::SIGKILL, Duration::from_secs(10));
        }
    }
}

/// Jars in a fixed order: a class-data archive holds only for the class path it was made with.
fn class_path(jars: &Path) -> String {
    let mut names: Vec<PathBuf> = std::fs::read_dir(jars)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    names.sort();
    names.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}

fn java_command(files: &KafkaFiles, heap_mib: u32, folder: &Path) -> Command {
    let mut command = Command::new(&files.java);
    command.env("CLASSPATH", class_path(&files.jars)).current_dir(folder);
    command.args([format!("-Xms{heap_mib}m"), format!("-Xmx{heap_mib}m")]);
    command.args([
        "-XX:+UseG1GC",
        "-XX:MaxGCPauseMillis=20",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
    ]);
    command.arg(format!("-Dlog4j2.configurationFile={}", files.log4j.display()));
    command
}

fn server_properties(data: &Path, node: u16, port: u16, controller_port: u16) -> Result<String, DevError> {
    let data = data.display().to_string();
    if data.contains(',') {
        let what = format!("Kafka cannot keep data in {data}: it takes the comma for a separator");
        return Err(DevError::Unusable { what, next: "set THROUGHLINE__DEV__DIRECTORY to a path without one".into() });
    }
    let broker = format!("PLAINTEXT://127.0.0.1:{port}");
    let (roles, listeners) = match node {
        1 => ("broker,controller", format!("{broker},CONTROLLER://127.0.0.1:{controller_port}")),
        _ => ("broker", broker),
    };
    let rows: &[(&str, &str)] = &[
        ("process.roles", roles),
        ("node.id", &node.to_string()),
        // Voters by address, not in the log: then a directory can move to other ports.
        ("controller.quorum.voters", &format!("1@127.0.0.1:{controller_port}")),
        ("listeners", &listeners),
        ("advertised.listeners", &format!("PLAINTEXT://127.0.0.1:{port}")),
        ("inter.broker.listener.name", "PLAINTEXT"),
        ("controller.listener.names", "CONTROLLER"),
        ("listener.security.protocol.map", "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"),
        ("log.dirs", &escape_property(&data)),
        // For development: one copy of everything.
        ("offsets.topic.replication.factor", "1"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
        // Small and quick: few internal partitions, no waits meant for clusters.
        ("offsets.topic.num.partitions", "4"),
        ("transaction.state.log.num.partitions", "4"),
        ("group.initial.rebalance.delay.ms", "0"),
        ("group.min.session.timeout.ms", "1000"),
        ("group.coordinator.append.linger.ms", "0"),
        ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000"),
        // After a crash the old registration must expire before the new one counts.
        ("broker.session.timeout.ms", "2000"),
        ("broker.heartbeat.interval.ms", "500"),
        ("num.network.threads", "2"),
        ("num.io.threads", "2"),
        // Topics are made by `topics apply`, with the partitions that they keep for ever.
        ("auto.create.topics.enable", "false"),
        // Room for the commands topic's 4 MiB records.
        ("message.max.bytes", "8388608"),
        ("replica.fetch.max.bytes", "8388608"),
        ("replica.fetch.response.max.bytes", "8388608"),
    ];
    Ok(rows.iter().map(|(key, value)| format!("{key}={value}\n")).collect())
}

/// Java reads property files as Latin-1 with escapes.
fn escape_property(value: &str) -> String {
    let mut units = [0; 2];
    value
        .chars()
        .map(|c| match c {
            '\\' => "\\\\".to_owned(),
            ' '..='~' => c.to_string(),
            _ => c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        })
        .collect()
}

/// 16 bytes in Kafka's URL-safe Base64; never starting with a dash.
fn random_id() -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut id: String = (0..21).map(|_| char::from(DIGITS[rand::random_range(0..DIGITS.len())])).collect();
    // The last digit holds two bits; A is zero.
    id.push('A');
    id
}

/// What the training run leaves.
pub(super) struct Trained {
    pub template: PathBuf,
    pub archive: Option<PathBuf>,
}

/// Formats a log directory, then lets a broker live once to learn which classes it loads.
pub(super) fn train(files: &KafkaFiles, work: &Path, cancel: &CancelFlag) -> Result<Trained, DevError> {
    const HEAP_MIB: u32 = 512;
    let (data, template, log) = (work.join("data"), work.join("template"), work.join("kafka.log"));
    let port = free_port(0, &[]);
    let controller_port = free_port(0, &[port]);
    let properties = work.join("server.properties");
    std::fs::write(&properties, server_properties(&data, 1, port, controller_port)?)
        .map_err(DevError::file("write", &properties))?;

    let mut format = java_command(files, HEAP_MIB, work);
    format.args(["kafka.tools.StorageTool", "format", "-t", &random_id(), "-c"]).arg(&properties);
    run_to_end(format, "formatting Kafka's log directory", &work.join("format.log"), PREPARE_BOUND, cancel)?;
    let copy = || {
        std::fs::create_dir_all(&template)?;
        for name in ["bootstrap.checkpoint", "meta.properties"] {
            std::fs::copy(data.join(name), template.join(name))?;
        }
        Ok(())
    };
    copy().map_err(DevError::file("copy", &template))?;

    let archive = work.join("classes.jsa");
    let mut command = java_command(files, HEAP_MIB, work);
    command.arg(format!("-XX:ArchiveClassesAtExit={}", archive.display()));
    command.arg("kafka.Kafka").arg(&properties);
    bind_to_us(&mut command, Signal::SIGKILL, &log)?;
    let mut running = Running::spawn(command, "starting Kafka to learn its classes")?;
    let brokers = format!("127.0.0.1:{port}");
    // A client's first request loads classes that a start alone does not.
    let identity = running.identity.clone();
    wait_until(Duration::from_secs(30), || {
        cancel.check().is_err() || !identity.is_alive() || kafka_answers(&brokers, [], PROBE_BOUND).is_ok()
    });
    running.stop(Signal::SIGTERM, Duration::from_secs(60));
    cancel.check()?;
    Ok(Trained { template, archive: Some(archive).filter(|archive| archive.exists()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_survive_any_path() {
        assert_eq!(escape_property("/a b/ü\\x/😀"), "/a b/\\u00fc\\\\x/\\ud83d\\ude00");
        let error = server_properties(Path::new("/a,b"), 1, 1, 2).unwrap_err().to_string();
        assert!(error.contains("comma"), "{error}");
    }

    #[test]
    fn only_loopback_is_listened_on_and_advertised() {
        for node in [1, 2] {
            let text = server_properties(Path::new("/data"), node, 19092, 19093).unwrap();
            for line in text.lines().filter(|line| line.contains("listeners=") || line.contains("voters")) {
                assert!(line.contains("127.0.0.1:") && !line.contains("0.0.0.0"), "{line}");
            }
        }
    }

    #[test]
    fn ids_are_kafka_ids() {
        let id = random_id();
        assert_eq!(id.len(), 22);
        assert_ne!(id, random_id());
    }
}
