//! A process that may open few files: besieged on both ports it goes on, and its health is answered.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
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

async fn accept_errors(admin: &str) -> bool {
    let metrics = client().get(format!("{admin}/metrics")).send().await.expect("an answer").text().await;
    metrics.expect("a text").contains("throughline_http_accept_errors_total")
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
        assert!(!accept_errors(&admin).await, "what was shared out was there");
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
