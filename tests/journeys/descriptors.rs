//! A process that may open few files: besieged on both ports it goes on, and its health is answered; where it may open
//! none at all, it waits without a storm, and goes on by itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::harness::{Harness, eventually};
use crate::process::{Process, command};

/// Files of a process that does with few.
const FEW: usize = 1_024;

/// `throughline run ROLE…` under `ulimit`.
fn limited(harness: &Harness, role: &str, ulimit: &str) -> Process {
    let whole = command(harness, &["run"]);
    let program = whole.as_std().get_program().to_str().expect("a path");
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &format!("{ulimit}; exec {program} run {role}")]).envs(harness.environment()).kill_on_drop(true);
    shell.env_remove("RUST_LOG").env("NO_COLOR", "1").stdin(std::process::Stdio::null());
    Process::start(shell)
}

fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://").expect("a URL").parse().expect("an address")
}

fn open_files(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.id())).expect("the process's files").count()
}

async fn ready(admin: &str) {
    eventually("it is ready", || async {
        (reqwest::get(format!("{admin}/readyz")).await.ok()?.status() == 200).then_some(())
    })
    .await;
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(10)).build().expect("a client")
}

/// Opens half-sent heads on both ports and keeps them; `/livez` answers all the while.
async fn besiege(process: &Process, api: &str, admin: &str, held: &mut Vec<TcpStream>) {
    for (number, url) in [api, admin].into_iter().cycle().take(1_300).enumerate() {
        let mut stream = TcpStream::connect(address(url)).await.expect("connected");
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Half: ").await;
        held.push(stream);
        if number % 100 == 0 {
            let live = client().get(format!("{admin}/livez")).send().await;
            let live = live.unwrap_or_else(|error| panic!("after {number}, {} open: {error}", open_files(process)));
            assert_eq!(live.status(), 200, "after {number}");
        }
    }
}

/// A command is decided: Kafka and PostgreSQL are reached over what was kept back for them.
async fn places_an_order(api: &str) {
    let order = serde_json::json!({"customerId": "c", "currency": "USD", "items": [
        {"productId": uuid::Uuid::nil(), "quantity": 1, "unitPrice": "1.00"}]});
    let placed = client().post(format!("{api}/api/orders/sync")).json(&order).send().await.expect("an answer");
    assert_eq!(placed.status(), 201, "{}", placed.text().await.unwrap_or_default());
}

/// Connections that the API could not accept so far, as the metrics tell.
fn accept_errors(metrics: &str) -> u64 {
    let name = "throughline_http_accept_errors_total{port=\"api\"} ";
    let counted = metrics.lines().find_map(|line| line.strip_prefix(name));
    counted.map_or(0, |count| count.parse().expect("a number"))
}

/// A probe that has one connection, and keeps it.
struct Probe(BufReader<TcpStream>);

impl Probe {
    /// The status and the body of an answer.
    async fn ask(&mut self, path: &str) -> (u16, String) {
        let answered = async {
            let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            self.0.write_all(head.as_bytes()).await.expect("sent");
            let (mut line, mut length) = (String::new(), 0);
            self.0.read_line(&mut line).await.expect("a status line");
            let status =
                line.split(' ').nth(1).unwrap_or_else(|| panic!("{path}: `{line}`")).parse().expect("a status");
            while line != "\r\n" {
                line.clear();
                self.0.read_line(&mut line).await.expect("a header");
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.expect("a body");
            (status, String::from_utf8(body).expect("text"))
        };
        tokio::time::timeout(Duration::from_secs(10), answered).await.expect("the probe is answered")
    }
}

/// Sets how many files the process may open from now on; what is open stays.
async fn allow(process: &Process, files: usize) {
    let (pid, files) = (process.id().to_string(), format!("--nofile={files}:"));
    let set = tokio::process::Command::new("prlimit").args(["--pid", &pid, &files]).status().await;
    assert!(set.expect("prlimit of util-linux").success());
}

/// Processor time that the process has had, seconds.
fn busy_seconds(process: &Process) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("its times");
    let fields = stat.rsplit(')').next().expect("fields").split_whitespace().skip(11).take(2);
    // Linux counts hundredths for everybody.
    fields.map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / 100.0
}

#[tokio::test(flavor = "multi_thread")]
async fn few_files_are_shared_so_that_health_is_answered_and_the_work_goes_on() {
    let harness = Harness::new("descriptors").await;
    let process = limited(&harness, "", &format!("ulimit -n {FEW}"));
    process.logged("allows fewer connections than http.connections_max").await;
    let (api, admin) = (process.http_url().await, process.admin_url().await);
    ready(&admin).await;
    println!("{} files open while nobody calls", open_files(&process));
    let mut held = Vec::new();
    for _ in 0..3 {
        besiege(&process, &api, &admin, &mut held).await;
        assert!(open_files(&process) < FEW, "{} files are open", open_files(&process));
        places_an_order(&api).await;
        let metrics = client().get(format!("{admin}/metrics")).send().await.expect("an answer").text().await;
        assert_eq!(accept_errors(&metrics.expect("a text")), 0, "what was shared out was there");
    }
    assert!(process.count("connections are open as may") <= 4, "one line a port and minute, not one a caller");
    drop(held);
    ready(&admin).await;
    assert_eq!(process.terminate().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_limit_is_raised_to_the_hard_one() {
    let harness = Harness::new("soft_limit").await;
    let process = limited(&harness, "relay", "ulimit -Sn 128; ulimit -Hn 4096");
    ready(&process.admin_url().await).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).expect("its limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("the limit of files");
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["4096", "4096"], "{files}");
    assert_eq!(process.terminate().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_file_is_left_nothing_spins_or_dies_and_callers_are_answered_once_there_is() {
    let harness = Harness::new("no_descriptors").await;
    let process = Process::run(&harness, &[]);
    let (api, admin) = (process.http_url().await, process.admin_url().await);
    ready(&admin).await;
    let mut probe = Probe(BufReader::new(TcpStream::connect(address(&admin)).await.expect("connected")));
    assert_eq!(accept_errors(&probe.ask("/metrics").await.1), 0);
    // None, not even where one is closed.
    allow(&process, 8).await;
    let mut callers = Vec::new();
    for _ in 0..40 {
        // The kernel takes them; nobody of ours can.
        let mut stream = TcpStream::connect(address(&api)).await.expect("connected");
        stream.write_all(b"GET /api/orders HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
        callers.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (errors, busy, since) = (accept_errors(&probe.ask("/metrics").await.1), busy_seconds(&process), Instant::now());
    while since.elapsed() < Duration::from_secs(8) {
        assert_eq!(probe.ask("/livez").await.0, 200);
        let (ready, why) = probe.ask("/readyz?verbose").await;
        assert!([200, 503].contains(&ready), "{ready}: {why}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let tried = accept_errors(&probe.ask("/metrics").await.1) - errors;
    let busy = busy_seconds(&process) - busy;
    println!("{tried} tries to accept and {busy:.1} s of processor time within {:?}", since.elapsed());
    assert!((1..400).contains(&tried), "tried on, without a storm: {tried}");
    assert!(busy < 5.0, "{busy} s of processor time");
    assert_eq!(process.count("could not be accepted"), 1, "told once");

    allow(&process, 4_096).await;
    let freed = Instant::now();
    for stream in &mut callers {
        let mut head = [0; 15];
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut head))
            .await
            .expect("in time")
            .expect("a head");
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }
    drop(callers);
    eventually("many callers at a time are answered", || async {
        let calls = (0..20).map(|_| async {
            client().get(format!("{api}/api/orders")).send().await.is_ok_and(|answer| answer.status() == 200)
        });
        futures_util::future::join_all(calls).await.into_iter().all(|answered| answered).then_some(())
    })
    .await;
    println!("all callers were answered {:?} after files were free", freed.elapsed());
    assert!(freed.elapsed() < Duration::from_secs(20), "after {:?}", freed.elapsed());
    places_an_order(&api).await;
    ready(&admin).await;
    assert_eq!(process.terminate().await, 0);
}
