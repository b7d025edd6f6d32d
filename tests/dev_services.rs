//! The launcher of development services, as its users meet it: the binary, its exit codes, and what is
//! left running. Starts real services in directories of its own.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use throughline::app::dev::{Origin, PostgresStop, Services};
use throughline::settings::{DevRunner, DevSettings};

const BINARY: &str = env!("CARGO_BIN_EXE_throughline");

/// A directory of services, emptied before and after.
struct Checkout {
    directory: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Checkout {
    fn new(name: &str) -> Self {
        Self::at(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name} it's")))
    }

    fn at(directory: PathBuf) -> Self {
        let checkout = Self { directory, variables: vec![("THROUGHLINE__DEV__RUNNER", "local".into())] };
        assert!(checkout.dev(&["reset", "--yes"]).status.success());
        checkout
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("dev").args(arguments).stdin(Stdio::null());
        command.env_remove("KAFKA_BROKERS").env_remove("DATABASE_URL");
        command.env("THROUGHLINE__DEV__DIRECTORY", &self.directory).env("THROUGHLINE__DEV__KAFKA_HEAP_MIB", "256");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn dev(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn up(&self) -> Output {
        let output = self.dev(&["up", "--detach"]);
        assert!(output.status.success(), "{}", stderr(&output));
        output
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.dev(&["status", "--output", "json"]).stdout).unwrap()
    }

    /// Supervisor, Kafka, PostgreSQL.
    fn pids(&self) -> [i32; 3] {
        let status = self.status();
        [&status["supervisorPid"], &status["services"][0]["pid"], &status["services"][1]["pid"]]
            .map(|pid| i32::try_from(pid.as_i64().unwrap()).unwrap())
    }

    /// What a shell sees after `eval "$(throughline dev env)"`.
    fn evaluated(&self) -> BTreeMap<String, String> {
        let lines = self.dev(&["env"]);
        assert!(lines.status.success(), "{}", stderr(&lines));
        let script = format!("set -a; {}\nset +a; env -0", String::from_utf8(lines.stdout).unwrap());
        let output =
            Command::new("sh").arg("-c").arg(script).env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let _ = self.dev(&["reset", "--yes"]);
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Runs and is no zombie.
fn runs(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat[stat.rfind(')').unwrap()..].starts_with(") Z")
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn ask_postgres(url: &str, query: &str) -> String {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    let answer = client.query_one(query, &[]).await.unwrap().get(0);
    driver.abort();
    answer
}

#[tokio::test]
async fn two_checkouts_run_side_by_side_and_leave_nothing() {
    // One of them where the user that PostgreSQL runs as cannot go, as in root's home.
    let closed = Path::new(env!("CARGO_TARGET_TMPDIR")).join("closed");
    std::fs::create_dir_all(&closed).unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let checkouts = [Checkout::new("side by side"), Checkout::at(closed.join("dev"))];
    let started: Vec<Child> = checkouts
        .iter()
        .map(|checkout| {
            checkout.command(&["up", "--detach"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in started {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let [first, second] = [checkouts[0].evaluated(), checkouts[1].evaluated()];
    for name in ["KAFKA_BROKERS", "DATABASE_URL", "KAFKA_BIN"] {
        assert_ne!(first[name], second[name], "{name}");
    }
    for environment in [&first, &second] {
        assert_eq!(ask_postgres(&environment["DATABASE_URL"], "show fsync").await, "on");
        assert_eq!(ask_postgres(&environment["DATABASE_URL"], "select current_database()::text").await, "throughline");
        assert_eq!(environment["HTTP_URL"], "http://127.0.0.1:8080");
    }
    let tool = |name: &str, arguments: &[&str]| {
        let output = Command::new(Path::new(&first["KAFKA_BIN"]).join(name)).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    tool("kafka-topics", &["--create", "--topic", "kept", "--partitions", "2"]);

    // A second `up` finds the first.
    let again = checkouts[0].up();
    assert!(stderr(&again).contains("already running"), "{}", stderr(&again));
    assert_eq!(checkouts[0].evaluated(), first);

    // Down leaves no process; up again brings the data back at the same addresses.
    let pids = checkouts[0].pids();
    assert!(checkouts[0].dev(&["down"]).status.success());
    assert!(!pids.iter().any(|pid| runs(*pid)), "{pids:?}");
    assert_eq!(checkouts[0].dev(&["status"]).status.code(), Some(1));
    let without = checkouts[0].dev(&["env"]);
    assert!(stderr(&without).contains("throughline dev up"), "{}", stderr(&without));
    checkouts[0].up();
    assert_eq!(checkouts[0].evaluated(), first);
    assert!(tool("kafka-topics", &["--list"]).lines().any(|topic| topic == "kept"));

    // A reset asks first.
    assert_eq!(checkouts[0].dev(&["reset"]).status.code(), Some(2));
    let pids = checkouts.each_ref().map(Checkout::pids);
    for checkout in &checkouts {
        assert!(checkout.dev(&["reset", "--yes"]).status.success());
        assert!(!checkout.directory.exists());
    }
    assert!(!pids.iter().flatten().any(|pid| runs(*pid)), "{pids:?}");
}

#[test]
fn what_a_killed_supervisor_leaves_is_gone_at_the_latest_with_the_next_start() {
    let mut checkout = Checkout::new("killed");
    checkout.variables.push(("THROUGHLINE__DEV__STOP_TIMEOUT_MS", "1000".into()));
    checkout.up();
    let [supervisor, kafka, postgres] = checkout.pids();
    // Neither can act on the signal that the kernel sends it when the supervisor dies.
    signal(kafka, Signal::SIGSTOP);
    signal(postgres, Signal::SIGSTOP);
    signal(supervisor, Signal::SIGKILL);
    eventually("the supervisor is gone", || !runs(supervisor));
    assert!(runs(kafka) && runs(postgres));
    assert_eq!(checkout.dev(&["status"]).status.code(), Some(1));

    let next = checkout.up();
    assert!(stderr(&next).contains("cleaning up"), "{}", stderr(&next));
    assert!(!runs(kafka) && !runs(postgres));
    let pids = checkout.pids();
    assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");

    // And where nothing hinders them, they end by themselves.
    signal(pids[0], Signal::SIGKILL);
    eventually("both ended with their supervisor", || !pids.iter().any(|pid| runs(*pid)));
}

#[test]
fn a_recycled_process_id_is_never_killed() {
    let checkout = Checkout::new("recycled");
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::create_dir_all(&checkout.directory).unwrap();
    let gone = serde_json::json!({"pid": bystander.id(), "started": "another boot 7", "command": "sleep 600 "});
    let state = serde_json::json!({
        "runner": "local", "owner": gone, "kafka": gone, "postgres": gone, "kafka_brokers": "127.0.0.1:1",
        "database_url": "", "kafka_jars": null, "ready": true,
    });
    std::fs::write(checkout.directory.join("state.json"), state.to_string()).unwrap();
    assert!(checkout.dev(&["down"]).status.success());
    assert!(!checkout.directory.join("state.json").exists(), "the record was not understood");
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn in_the_foreground_an_interrupt_stops_both() {
    let checkout = Checkout::new("foreground");
    let mut launcher = checkout.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("both are ready", || checkout.dev(&["status"]).status.success());
    let pids = checkout.pids();
    assert_eq!(pids[0], i32::try_from(launcher.id()).unwrap());
    signal(pids[0], Signal::SIGINT);
    assert_eq!(launcher.wait().unwrap().code(), Some(130));
    assert!(!pids.iter().any(|pid| runs(*pid)), "{pids:?}");

    // In the middle of a start too.
    let mut launcher = checkout.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let state = checkout.directory.join("state.json");
    eventually("the start is under way", || state.exists());
    let text = std::fs::read_to_string(&state).unwrap();
    signal(i32::try_from(launcher.id()).unwrap(), Signal::SIGTERM);
    assert_eq!(launcher.wait().unwrap().code(), Some(0));
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(!runs(i32::try_from(state["kafka"]["pid"].as_i64().unwrap()).unwrap()));
}

#[test]
fn a_service_that_dies_takes_the_pair_down_with_a_reason() {
    let checkout = Checkout::new("died");
    checkout.up();
    let pids = checkout.pids();
    signal(pids[1], Signal::SIGKILL);
    eventually("the pair is down", || !pids.iter().any(|pid| runs(*pid)));
    let log = checkout.dev(&["logs", "supervisor"]);
    assert!(String::from_utf8_lossy(&log.stdout).contains("Kafka ended by itself"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_can_break_and_mend_services_of_their_own() {
    let checkout = Checkout::new("faults");
    let settings = DevSettings {
        directory: checkout.directory.clone(),
        runner: DevRunner::Local,
        kafka_heap_mib: 256,
        ..DevSettings::default()
    };
    let services = Services::start_or_find(&settings).await.unwrap();
    assert_eq!(services.origin, Origin::Started);
    let [_, kafka, postgres] = checkout.pids();
    let found = Services::start_or_find(&settings).await.unwrap();
    assert_eq!((found.origin, &found.kafka_brokers), (Origin::Found, &services.kafka_brokers));
    assert!(found.kill_kafka().await.unwrap_err().to_string().contains("another process"));
    drop(found);

    services.kill_kafka().await.unwrap();
    assert!(!runs(kafka));
    services.start_kafka().await.unwrap();
    for how in [PostgresStop::Fast, PostgresStop::Immediate, PostgresStop::Kill] {
        services.restart_postgres(how).await.unwrap();
        assert_eq!(ask_postgres(&services.database_url, "select 'there'").await, "there");
    }
    assert!(!runs(postgres));
    let pids = checkout.pids();
    assert!(runs(pids[1]) && runs(pids[2]));
    drop(services);
    assert!(!runs(pids[1]) && !runs(pids[2]));
}

#[test]
fn what_is_missing_is_named_with_one_command_and_what_hangs_is_left_out() {
    let mut checkout = Checkout::new("missing");
    let cache = checkout.directory.join("cache").display().to_string();
    checkout.variables.push(("THROUGHLINE__DEV__KAFKA_CACHE", cache));
    for (path, word) in [("/nonexistent", "Java"), ("only java", "Maven")] {
        let folder = checkout.directory.join("bin");
        std::fs::create_dir_all(&folder).unwrap();
        if path == "only java" {
            script(&folder.join("java"), "echo 'openjdk version \"21.0.2\" 2024-01-16' >&2");
        }
        let output =
            checkout.command(&["up", "--detach"]).env("PATH", &folder).env_remove("JAVA_HOME").output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(word) && text.contains("install"), "{text}");
        assert!(text.lines().count() <= 2 && !text.contains("panicked"), "{text}");
    }
    let half = checkout.command(&["up"]).env("KAFKA_BROKERS", "127.0.0.1:1").output().unwrap();
    assert!(stderr(&half).contains("DATABASE_URL is not"), "{}", stderr(&half));

    // A Docker client whose engine never answers costs three seconds.
    let folder = checkout.directory.join("bin");
    script(&folder.join("docker"), "exec sleep 60");
    checkout.variables.push(("THROUGHLINE__DEV__RUNNER", "compose".into()));
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let started = Instant::now();
    let output = checkout.command(&["up", "--detach"]).env("PATH", path).output().unwrap();
    assert!(stderr(&output).contains("no Docker engine"), "{}", stderr(&output));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

fn script(path: &Path, body: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn where_an_engine_answers_containers_are_asked_for_and_removed_when_they_do_not_serve() {
    let mut checkout = Checkout::new("compose");
    let folder = checkout.directory.with_extension("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let calls = folder.join("calls");
    let _ = std::fs::remove_file(&calls);
    let body = format!("echo \"$* port=$THROUGHLINE_KAFKA_PORT\" >> {}", quoted(&calls));
    script(&folder.join("docker"), &body);
    checkout.variables.push(("THROUGHLINE__DEV__RUNNER", "auto".into()));
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let output = checkout.command(&["up", "--detach"]).env("PATH", path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("asking Kafka failed"), "{}", stderr(&output));
    let calls = std::fs::read_to_string(calls).unwrap();
    let ups: Vec<&str> = calls.lines().filter(|call| call.contains(" up --detach --wait ")).collect();
    assert_eq!(ups.len(), 1, "{calls}");
    assert!(ups[0].contains("--project-name throughline-") && !ups[0].ends_with("port="), "{calls}");
    assert!(calls.lines().last().unwrap().contains(" down "), "{calls}");
    std::fs::remove_dir_all(&folder).unwrap();
}

fn quoted(path: &Path) -> String {
    throughline::app::dev::shell_word(&path.display().to_string())
}

/// Services, roles and addresses by one word; Ctrl-C ends all of it.
#[test]
fn dev_alone_runs_everything_and_leaves_nothing() {
    let checkout = Checkout::new("whole");
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = checkout.command(&[]);
    command.env("HTTP_LISTEN", free()).env("ADMIN_LISTEN", free()).env("THROUGHLINE__HTTP__SHUTDOWN_NOTICE_MS", "0");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut addresses = BTreeMap::new();
    loop {
        let line = lines.next().expect("it says where it is before it ends").unwrap();
        if line.starts_with("Ctrl-C") {
            break;
        }
        let (name, address) = line.split_once("  ").expect("a name and an address");
        addresses.insert(name.to_owned(), address.trim().to_owned());
    }
    let answers = |url: &str| {
        let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
        let mut stream = std::net::TcpStream::connect(host).unwrap();
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        // A page may say where it is.
        answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 303")
    };
    assert!(answers(&addresses["API page"]) && answers(&addresses["metrics"]), "{addresses:?}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !answers(&addresses["readiness"]) {
        assert!(Instant::now() < deadline, "it is not ready");
        std::thread::sleep(Duration::from_millis(100));
    }
    let told = Instant::now();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(25), "it took {:?}", told.elapsed());
    assert_eq!(checkout.status()["running"], false);
}
