//! A context's whole program, killed at each point that its data passes, and held against its rules afterwards.
//!
//! The program is the author's own binary, its roles are processes, and they die as by `kill -9`. What it did is
//! judged by a run of the rules alone, by `verify --full`, and by tables made anew.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

use super::services::OwnDatabase;
use crate::app::App;
use crate::engine::{Aggregate, ids};
use crate::kafka::topics::TopicNames;
use crate::plain::{PlainContext, described};
use crate::settings::{LoadedSettings, TopicSettings};
use crate::store::commands::{self, StoredOutcome};

type CommandOf<P> = <<P as PlainContext>::Aggregate as Aggregate>::Command;

/// For whatever must come to an end.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Where each role dies, one after the other.
const PROCESSOR: [&str; 6] = [
    "processor.after_take",
    "processor.after_load",
    "processor.after_decide",
    "processor.before_commit",
    "processor.after_commit",
    "processor.before_offset_commit",
];
const RELAY: [&str; 5] =
    ["relay.after_acquire", "relay.after_read", "relay.after_produce", "relay.before_mark", "relay.after_mark"];
const PROJECTION: [&str; 4] = [
    "projection.claim.before_commit",
    "projection.claim.after_commit",
    "projection.before_commit",
    "projection.after_commit",
];

/// Kills `program`, which runs `app`, at each point that the data of `P` passes, while commands come in `histories`, of
/// one stream each and each sent twice. Afterwards
///
/// - each command was decided as the rules decide it, once;
/// - `verify --full` holds: no hole, nothing twice, every record its event, every table the fold of its events;
/// - each table is the same after a reset to the earliest event, and after a rebuild.
///
/// Takes about a minute. An integration test of a package knows where its binary is:
///
/// ```no_run
/// # async fn a_test<Accounts: throughline::plain::PlainContext>(app: throughline::App, histories: fn() -> Vec<Vec<<Accounts::Aggregate as throughline::engine::Aggregate>::Command>>) {
/// throughline::testing::survives::<Accounts>(app, "target/debug/bank", histories).await;
/// # }
/// ```
///
/// # Panics
/// At the first that does not hold.
pub async fn survives<P: PlainContext>(
    app: App,
    program: impl AsRef<Path>,
    histories: impl Fn() -> Vec<Vec<CommandOf<P>>> + Sync,
) {
    let settings = LoadedSettings::load_for(None, &[], &app.sections()).unwrap_or_else(|error| panic!("{error}"));
    let own = OwnDatabase::create(&settings.settings).await;
    let program = Program { path: program.as_ref().to_owned(), environment: own.environment(), context: P::NAME };
    program.done(&["db", "apply"]);
    program.done(&["topics", "apply"]);

    let tables: Vec<&str> = app
        .find(Some(P::NAME))
        .unwrap_or_else(|error| panic!("{error}"))
        .read_models()
        .iter()
        .map(|model| model.name)
        .collect();
    let projections: Vec<String> = tables.iter().map(|name| format!("projection:{name}")).collect();
    let processor = [format!("processor:{}", P::NAME)];
    let relay = ["relay".to_owned()];
    let mut roles: Vec<(&[String], &[&str])> = vec![(&processor, &PROCESSOR), (&relay, &RELAY)];
    if !projections.is_empty() {
        roles.push((&projections, &PROJECTION));
    }

    let (stopped, sent) = (AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        let running: Vec<_> =
            roles.iter().map(|(roles, points)| scope.spawn(|| program.die_at_each(roles, points))).collect();
        let feed = scope.spawn(|| {
            for round in 0.. {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let streams = numbered::<P>(round, histories());
                program.send(&streams.iter().map(|stream| lines::<P>(stream)).collect::<String>());
                sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(streams);
            }
        });
        let alive: Vec<_> = running.into_iter().map(|role| role.join()).collect();
        stopped.store(true, Ordering::Release);
        feed.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let alive: Vec<_> =
            alive.into_iter().map(|role| role.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
        program.drained();
        program.done(&["verify", "--full"]);
        for table in &tables {
            program.done(&["projection", "reset", table, "--to-earliest", "--yes"]);
        }
        // A reset is carried out by its projection.
        std::thread::sleep(Duration::from_secs(1));
        program.drained();
        program.done(&["verify", "--full"]);
        for table in &tables {
            program.done(&["projection", "rebuild", table, "--yes"]);
        }
        drop(alive);
    });
    let sent = sent.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let client = own.connect().await;
    let topics = TopicSettings { prefix: own.prefix(), ..settings.settings.topics };
    decided_by_the_rules::<P>(&client, &TopicNames::new(P::NAME, &topics).events(), sent).await;
    drop(client);
    own.drop().await;
}

/// One stream's commands, with their ids.
struct Sent<P: PlainContext> {
    stream: Uuid,
    commands: Vec<(Uuid, CommandOf<P>)>,
}

fn numbered<P: PlainContext>(round: u32, histories: Vec<Vec<CommandOf<P>>>) -> Vec<Sent<P>> {
    let one = |(number, history): (usize, Vec<CommandOf<P>>)| {
        let stream = ids::id_of_idempotency_key("survival", &format!("stream {round}"), &number.to_string());
        let id = |at: usize| ids::id_of_idempotency_key("survival", &format!("command {stream}"), &at.to_string());
        Sent { stream, commands: history.into_iter().enumerate().map(|(at, command)| (id(at), command)).collect() }
    };
    histories.into_iter().enumerate().map(one).collect()
}

/// The commands of a stream as `command send` reads them, all of them twice.
fn lines<P: PlainContext>(sent: &Sent<P>) -> String {
    let line = |(id, command): &(Uuid, CommandOf<P>)| {
        let mut fields = described(command);
        fields["commandId"] = json!(id);
        fields[P::STREAM_ID_FIELD] = json!(sent.stream);
        format!("{fields}\n")
    };
    sent.commands.iter().chain(&sent.commands).map(line).collect()
}

/// Each command has the outcome that the rules give it.
async fn decided_by_the_rules<P: PlainContext>(
    client: &tokio_postgres::Client,
    events_topic: &str,
    sent: Vec<Sent<P>>,
) {
    for Sent { stream, commands } in sent {
        let asked: Vec<Uuid> = commands.iter().map(|(id, _)| *id).collect();
        let found = commands::outcomes(client, events_topic, &asked).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.len(), commands.len(), "stream {stream}: one outcome a command");
        let found: HashMap<Uuid, StoredOutcome> = found.into_iter().map(|one| (one.command_id, one)).collect();
        let (mut state, mut version) = (P::Aggregate::default(), 0);
        for (id, command) in &commands {
            let decided = state.decide(command);
            let expected = match &decided {
                Ok(events) => {
                    events.iter().for_each(|event| state.evolve(event));
                    version += events.len() as i64;
                    (true, None)
                }
                Err(refusal) => (false, Some(refusal.code.to_string())),
            };
            let outcome = &found[id];
            assert_eq!((outcome.accepted, outcome.code.clone()), expected, "stream {stream}: {command:?}");
            assert_eq!(outcome.version, Some(version), "stream {stream}: {command:?}");
        }
    }
}

/// The author's binary.
struct Program {
    path: PathBuf,
    environment: Vec<(&'static str, String)>,
    context: &'static str,
}

impl Program {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments).envs(self.environment.iter().cloned()).env("RUST_LOG", "off");
        // Each process takes ports of its own.
        command.env("HTTP_LISTEN", "127.0.0.1:0").env("ADMIN_LISTEN", "127.0.0.1:0");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, which must be a good one.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.command(&[arguments, &["--context", self.context]].concat()).output();
        let Output { status, stdout, stderr } =
            output.unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
        let told = || format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{arguments:?} ended with {status}: {}", told());
        String::from_utf8_lossy(&stdout).into_owned()
    }

    fn send(&self, lines: &str) {
        let mut command = self.command(&["command", "send", "-", "--context", self.context]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes()).unwrap_or_else(|error| panic!("command send does not read: {error}"));
        }
        let status = child.wait().unwrap_or_else(|error| panic!("command send: {error}"));
        assert!(status.success(), "command send ended with {status}");
    }

    fn run(&self, roles: &[String], point: Option<&str>) -> Running {
        let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
        let mut command = self.command(&[&["run"][..], &roles].concat());
        command.stdout(Stdio::null()).envs(point.map(|point| ("THROUGHLINE_CRASH_AT", point)));
        Running(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.path.display())))
    }

    /// Lets a process of `roles` die at each of `points`; the last one lives.
    fn die_at_each(&self, roles: &[String], points: &[&str]) -> Running {
        for point in points {
            let (mut running, began) = (self.run(roles, Some(point)), Instant::now());
            let status = loop {
                if let Some(status) = running.ended() {
                    break status;
                }
                assert!(began.elapsed() < PATIENCE, "{roles:?} did not pass {point}");
                std::thread::sleep(LOOK_EVERY);
            };
            assert_eq!(
                status.signal(),
                Some(Signal::SIGKILL as i32),
                "{roles:?} ended by itself before {point}: {status}"
            );
        }
        self.run(roles, None)
    }

    /// Waits until all that was sent is decided, published and in the tables.
    fn drained(&self) {
        let (began, mut told) = (Instant::now(), Value::Null);
        while began.elapsed() < PATIENCE {
            let mut status = self.command(&["status", "--output", "json"]);
            if let Ok(output) = status.output() {
                told = serde_json::from_slice(&output.stdout).unwrap_or_default();
            }
            let all = |list: &str, key: &str| {
                told[list].as_array().is_some_and(|rows| rows.iter().all(|row| row[key].as_i64() == Some(0)))
            };
            if all("waiting", "commands") && told["outbox"]["records"] == 0 && all("projections", "lagEvents") {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        panic!("not done within {PATIENCE:?}: {told:#}");
    }
}

/// A process of the program; ended with this.
struct Running(std::process::Child);

impl Running {
    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where the test fails for that reason.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
