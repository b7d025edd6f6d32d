//! Our own processes: each dies at the points of its list, one after the other, and is started again.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::harness::eventually;
use crate::neighbours::Neighbours;

/// Each site is died at so often.
const EACH: usize = 3;

/// Sites by role; those that come seldom are died at the first time they are passed.
const SITES: [(&str, &[&str], &[&str]); 5] = [
    (
        "processor",
        &["after_take", "after_load", "after_decide", "before_commit", "after_commit", "before_offset_commit"],
        &[],
    ),
    ("relay", &["after_read", "after_produce", "before_mark", "after_mark"], &["after_acquire"]),
    ("projection", &["before_commit", "after_commit"], &["claim.before_commit", "claim.after_commit"]),
    (
        "process",
        &["in_batch", "before_commit", "after_commit", "send.read", "send.acknowledged", "send.marked"],
        &["claimed", "deadline.before_commit", "deadline.after_commit"],
    ),
    ("api", &["handed_over", "decided"], &[]),
];

/// A site, and the pass of it that kills.
type Point = (String, u32);

/// One place in the fleet, whoever has it now.
pub struct Member {
    name: String,
    roles: Vec<&'static str>,
    http: Option<String>,
    points: Mutex<VecDeque<Point>>,
    pid: AtomicI32,
    /// By us, not at a site.
    killed: AtomicBool,
    ending: AtomicBool,
    hit: Arc<Mutex<BTreeMap<String, u64>>>,
    /// Ends that nobody asked for.
    fell: Arc<Mutex<Vec<String>>>,
    sabotage: Option<&'static str>,
}

/// All members.
pub struct Fleet {
    members: Vec<Arc<Member>>,
    lives: Mutex<Vec<JoinHandle<()>>>,
    hit: Arc<Mutex<BTreeMap<String, u64>>>,
    fell: Arc<Mutex<Vec<String>>>,
}

/// What was died at, so often.
pub struct Hit(BTreeMap<String, u64>);

impl Hit {
    pub fn table(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.0.iter().map(|(site, count)| format!("{count:>8}  died at {site}")).collect();
        lines.push(format!("{:>8}  deaths at {} sites", self.0.values().sum::<u64>(), self.0.len()));
        lines
    }
}

impl Fleet {
    pub fn start(neighbours: &Neighbours, random: &mut StdRng, sabotage: Option<&'static str>) -> Self {
        let (hit, fell) = (Arc::default(), Arc::default());
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let places: [(&str, &[&str], usize); 5] = [
            ("processor", &["processor"], 2),
            ("relay", &["relay"], 2),
            ("projection", &["projections"], 2),
            ("process", &["processes"], 1),
            ("api", &["api"], 1),
        ];
        let mut members = Vec::new();
        for (kind, roles, count) in places {
            let mut lists = vec![VecDeque::new(); count];
            for (number, point) in points(kind, sabotage.is_some(), random).into_iter().enumerate() {
                lists[number % count].push_back(point);
            }
            members.extend(lists.into_iter().enumerate().map(|(number, points)| {
                Arc::new(Member {
                    name: format!("{kind}-{number}"),
                    roles: roles.to_vec(),
                    http: (kind == "api").then(|| free.to_string()),
                    points: Mutex::new(points),
                    pid: AtomicI32::new(0),
                    killed: AtomicBool::new(false),
                    ending: AtomicBool::new(false),
                    hit: Arc::clone(&hit),
                    fell: Arc::clone(&fell),
                    sabotage,
                })
            }));
        }
        let lives = members.iter().map(|member| tokio::spawn(member.clone().live(neighbours.harness.environment())));
        let lives = Mutex::new(lives.collect());
        Self { members, lives, hit, fell }
    }

    /// Where the API is, once it is there.
    pub async fn api(&self) -> String {
        let address = self.members.iter().find_map(|member| member.http.clone()).expect("an API");
        eventually("the API listens", || async { std::net::TcpStream::connect(&address).ok() }).await;
        format!("http://{address}")
    }

    pub fn any(&self, random: &mut StdRng) -> &Member {
        self.members.choose(random).expect("members")
    }

    /// One of a kind.
    pub fn of(&self, kind: &str, random: &mut StdRng) -> &Member {
        let members: Vec<&Arc<Member>> = self.members.iter().filter(|one| one.name.starts_with(kind)).collect();
        members.choose(random).expect("one of the kind")
    }

    /// Nobody dies any more; whoever was about to is started anew.
    pub async fn heal(&self) {
        for member in &self.members {
            let left: Vec<Point> = member.points.lock().unwrap().drain(..).collect();
            if !left.is_empty() {
                println!("{}: not come to {left:?}", member.name);
            }
            member.signal(Signal::SIGCONT);
            member.kill();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    pub fn hit(&self) -> Hit {
        Hit(self.hit.lock().unwrap().clone())
    }

    /// Ends that nobody asked for.
    pub fn fell(&self) -> Vec<String> {
        self.fell.lock().unwrap().clone()
    }

    /// Sites of the plan at which nobody died.
    pub fn missed(&self) -> Vec<String> {
        let hit = self.hit.lock().unwrap();
        let planned = SITES
            .iter()
            .flat_map(|(kind, often, seldom)| often.iter().chain(*seldom).map(move |site| format!("{kind}.{site}")));
        planned.filter(|site| !hit.contains_key(site)).collect()
    }

    pub async fn end(self) {
        for member in &self.members {
            member.ending.store(true, Ordering::Release);
            member.terminate();
        }
        let lives = std::mem::take(&mut *self.lives.lock().unwrap());
        for life in lives {
            life.await.expect("a life ends");
        }
    }
}

fn points(kind: &str, is_sabotage: bool, random: &mut StdRng) -> Vec<Point> {
    // Bugs of projections show where rows and checkpoints part.
    if is_sabotage && kind == "projection" {
        return (0..8).map(|_| ("projection.before_commit".to_owned(), random.random_range(1..=9))).collect();
    }
    // An API that dies at every fifth request answers nothing to be held to.
    if is_sabotage && kind == "api" {
        return Vec::new();
    }
    let (_, often, seldom) = SITES.iter().find(|(name, ..)| *name == kind).expect("a kind");
    let mut points: Vec<Point> = Vec::new();
    for _ in 0..EACH {
        points.extend(often.iter().map(|site| (format!("{kind}.{site}"), random.random_range(1..=5))));
        points.extend(seldom.iter().map(|site| (format!("{kind}.{site}"), 1)));
    }
    points.shuffle(random);
    points
}

impl Member {
    async fn live(self: Arc<Self>, environment: Vec<(String, String)>) {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}.log", self.name));
        let log = std::fs::File::create(&path).expect("a log");
        while !self.ending.load(Ordering::Acquire) {
            let point = self.points.lock().unwrap().pop_front();
            let mut run = Command::new(env!("CARGO_BIN_EXE_throughline"));
            run.arg("run")
                .args(&self.roles)
                .envs(environment.iter().cloned())
                .env("RUST_LOG", "warn")
                .env("NO_COLOR", "1");
            run.env("THROUGHLINE__CHECKOUT__AUTHORIZE_TIMEOUT_MS", "3000");
            run.envs(self.sabotage.iter().map(|bug| ("THROUGHLINE_SABOTAGE", bug)));
            run.envs(self.http.iter().map(|http| ("HTTP_LISTEN", http)));
            run.envs(point.iter().map(|(site, nth)| ("THROUGHLINE_CRASH_AT", format!("{site}:{nth}"))));
            run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone().expect("a log")).kill_on_drop(true);
            let mut child = run.spawn().expect("it starts");
            self.killed.store(false, Ordering::Release);
            self.pid.store(child.id().expect("a pid").cast_signed(), Ordering::Release);
            let status = child.wait().await.expect("it ends");
            self.pid.store(0, Ordering::Release);
            let by_us = self.killed.load(Ordering::Acquire);
            let could_not_start = || {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                log.lines().next_back().is_some_and(|last| last.starts_with("error: cannot start"))
            };
            match (point, status.signal()) {
                (Some((site, _)), Some(signal)) if signal == Signal::SIGKILL as i32 && !by_us => {
                    *self.hit.lock().unwrap().entry(site).or_default() += 1;
                }
                // It was interrupted before it came there, or could not start while somebody was away, and said so:
                // another life tries again.
                (Some(point), _) if by_us || could_not_start() => self.points.lock().unwrap().push_back(point),
                _ if by_us || could_not_start() || self.ending.load(Ordering::Acquire) => {}
                _ => {
                    let log = path.display();
                    self.fell.lock().unwrap().push(format!("ended: {} by itself: {status}; {log}", self.name));
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid.load(Ordering::Acquire);
        if pid > 0 {
            // It may end by itself at this moment.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.signal(Signal::SIGKILL);
    }

    pub fn terminate(&self) {
        self.killed.store(true, Ordering::Release);
        self.signal(Signal::SIGTERM);
    }

    pub async fn stand_still(&self, span: Duration) {
        self.signal(Signal::SIGSTOP);
        tokio::time::sleep(span).await;
        self.signal(Signal::SIGCONT);
    }
}

/// Runs a command that is to die at `site`; whether it did.
pub async fn ended_at(command: &mut Command, site: &str) -> bool {
    let output = command.env("THROUGHLINE_CRASH_AT", site).output().await.expect("it starts");
    output.status.signal() == Some(Signal::SIGKILL as i32)
}
