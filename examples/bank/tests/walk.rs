//! The bank as its users and operators meet it: its binary, on a real Kafka and PostgreSQL.

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use throughline::settings::LoadedSettings;
use throughline::testing::OwnDatabase;

const ACCOUNT: &str = "0198c0de-7a3e-7000-8000-000000000001";
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, and a database and topics of this test's own.
struct Bank {
    own: OwnDatabase,
    environment: Vec<(&'static str, String)>,
}

impl Bank {
    async fn new() -> Self {
        let settings = LoadedSettings::load(None, &[]).expect("settings of the environment").settings;
        let own = OwnDatabase::create(&settings).await;
        Self { environment: own.environment(), own }
    }

    fn http(&self) -> &str {
        let (_, listen) = self.environment.iter().find(|(name, _)| *name == "HTTP_LISTEN").expect("it is told");
        listen
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bank"));
        command.args(arguments).envs(self.environment.iter().cloned()).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end; its output and its exit code.
    fn run(&self, arguments: &[&str], input: &str) -> (String, i32) {
        let mut child = self.command(arguments).spawn().expect("it starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
        let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
        let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        (said, status.code().unwrap_or(-1))
    }

    /// Sends commands, and waits for what became of each: `accepted`, or the code of a refusal.
    async fn send(&self, commands: &[&str]) -> Vec<String> {
        let lines: Vec<String> =
            commands.iter().map(|rest| format!("{{\"accountId\":\"{ACCOUNT}\",{rest}}}\n")).collect();
        let (sent, code) = self.run(&["command", "send"], &lines.concat());
        assert_eq!(code, 0, "{sent}");
        let mut outcomes = Vec::new();
        for id in sent.lines() {
            outcomes.push(eventually(|| {
                let (said, code) = self.run(&["command", "status", id, "--output", "json"], "");
                let rows: Value = serde_json::from_str(&said).ok().filter(|_| code == 0)?;
                let code = rows[0]["code"].as_str().or(rows[0]["status"].as_str())?;
                let pointer = rows[0]["reason"].as_str().filter(|reason| reason.starts_with('/'));
                let pointer = pointer.and_then(|reason| reason.split(' ').next()).unwrap_or_default();
                Some(format!("{code}{pointer}"))
            }));
        }
        outcomes
    }
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// All roles; ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already only where the test has failed for that reason.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_from_its_first_command_to_a_rebuild_of_its_table() {
    let bank = Bank::new().await;
    let mut run = bank.command(&["run"]);
    let running = Running(run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    // The first start makes schema and topics.
    eventually(|| (bank.run(&["topics", "check"], "").1 == 0).then_some(()));

    let outcomes = bank
        .send(&[
            r#""type":"Withdraw","cents":1"#,
            r#""type":"Open","owner":"ann""#,
            r#""type":"Open","owner":"bob""#,
            r#""type":"Deposit","cents":700"#,
            r#""type":"Deposit","cents":0"#,
            r#""type":"Withdraw","cents":800"#,
            r#""type":"Withdraw","cents":200"#,
        ])
        .await;
    let expected = [
        "ACCOUNT_NOT_FOUND",
        "accepted",
        "ACCOUNT_ALREADY_OPEN",
        "accepted",
        "INVALID_COMMAND/cents",
        "INSUFFICIENT_FUNDS",
        "accepted",
    ];
    assert_eq!(outcomes, expected);

    let client = bank.own.connect().await;
    let query = "select (state->>'cents')::bigint from read.accounts where stream_id = $1::text::uuid and version = 3";
    let mut cents = None;
    let end = Instant::now() + PATIENCE;
    while cents.is_none() {
        assert!(Instant::now() < end, "no row");
        cents = client.query_opt(query, &[&ACCOUNT]).await.expect("the table is there").map(|row| row.get::<_, i64>(0));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cents, Some(500));

    let (shown, code) = bank.run(&["stream", "show", ACCOUNT, "--output", "json"], "");
    let shown: Value = serde_json::from_str(&shown).unwrap_or_else(|_| panic!("{shown}"));
    assert_eq!((code, &shown["state"]["cents"], &shown["accountId"]), (0, &500.into(), &ACCOUNT.into()));
    assert_eq!(shown["events"][1]["payload"], serde_json::json!({"type": "Deposited", "cents": 700}));
    for (arguments, says) in [
        (&["projection", "rebuild", "accounts", "--yes"][..], "equal"),
        (&["projection", "list"], "accounts"),
        (&["dlq", "list"], "REASON"),
        (&["schema", "check"], ""),
        (&["schema", "asyncapi"], "acme.bank.Withdrawn"),
    ] {
        let (said, code) = bank.run(arguments, "");
        assert!(code == 0 && said.contains(says), "{arguments:?} ended with {code}: {said}");
    }
    drop(running);
    bank.own.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_over_http() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bank = Bank::new().await;
    let mut run = bank.command(&["run"]);
    let running = Running(run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    eventually(|| std::net::TcpStream::connect(bank.http()).ok());
    let base = format!("http://{}", bank.http());
    let http = reqwest::Client::new();
    let post = async |path: &str, key: &str, body: Value| {
        let end = Instant::now() + PATIENCE;
        loop {
            let request = http.post(format!("{base}{path}")).header("Idempotency-Key", key).json(&body);
            let answer = request.send().await.expect("an answer");
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            let body: Value = answer.json().await.expect("JSON");
            // The server is starting: it says so, and a key makes a repetition safe.
            if status != 503 && (status != 202 || !path.ends_with("/sync")) {
                return (status, headers, body);
            }
            assert!(Instant::now() < end, "{status}: {body}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let (status, headers, opened) = post("/api/accounts/sync", "open", json!({"owner": "ann"})).await;
    assert_eq!((status, &opened["status"]), (201, &json!("accepted")), "{opened}");
    let account = opened["accountId"].as_str().expect("an id").to_owned();
    assert_eq!(headers["location"], format!("/api/accounts/{account}"));
    assert_eq!(headers["etag"], "\"1\"");
    let (_, _, again) = post("/api/accounts/sync", "open", json!({"owner": "ann"})).await;
    assert_eq!(again["commandId"], opened["commandId"], "the same key, the same answer");

    let deposits = format!("/api/accounts/{account}/deposits");
    let (status, headers, held) = post(&deposits, "in", json!({"cents": 700})).await;
    assert_eq!((status, &held["accountId"]), (202, &json!(account)), "{held}");
    let place = headers["location"].to_str().expect("text").to_owned();
    let (status, headers, told) = post(&format!("{deposits}/sync"), "in2", json!({"cents": 1})).await;
    assert_eq!((status, &told["version"]), (201, &json!(3)), "{told}");
    let status_of: Value = http.get(format!("{base}{place}")).send().await.unwrap().json().await.unwrap();
    assert_eq!((&status_of["status"], &status_of["version"]), (&json!("accepted"), &json!(2)), "{status_of}");
    let token = headers["consistency-token"].to_str().expect("text").to_owned();
    let read = http.get(format!("{base}/api/accounts/{account}")).header("Consistency-Token", &token);
    let read: Value = read.send().await.unwrap().json().await.unwrap();
    assert_eq!((&read["owner"], &read["cents"], &read["version"]), (&json!("ann"), &json!(701), &json!(3)), "{read}");

    assert_eq!(place, format!("/api/commands/{}?accountId={account}", held["commandId"].as_str().expect("an id")));

    let get = async |path: &str| {
        let answer =
            http.get(format!("{base}{path}")).header("Consistency-Token", &token).send().await.expect("an answer");
        let (status, etag) = (answer.status().as_u16(), answer.headers().get("etag").cloned());
        (status, etag, answer.json::<Value>().await.expect("JSON"))
    };
    let (status, etag, history) = get(&format!("/api/accounts/{account}/history")).await;
    assert_eq!((status, etag), (200, Some("\"3\"".parse().unwrap())), "{history}");
    let events = history["events"].as_array().expect("events");
    let kinds: Vec<&Value> = events.iter().map(|event| &event["type"]).collect();
    assert_eq!(kinds, ["Opened", "Deposited", "Deposited"]);
    assert_eq!(events[1]["payload"], json!({"type": "Deposited", "cents": 700}));
    let (_, _, then) = get(&format!("/api/accounts/{account}/history?atVersion=2")).await;
    assert_eq!((&then["state"]["cents"], &then["state"]["version"]), (&json!(700), &json!(2)), "{then}");
    let opened_at = events[0]["recordedAt"].as_str().expect("a time");
    let (_, _, then) = get(&format!("/api/accounts/{account}/history?atTime={opened_at}")).await;
    assert_eq!((&then["state"]["owner"], &then["state"]["version"]), (&json!("ann"), &json!(1)), "{then}");
    for (query, expected) in [("atVersion=4", 404), ("atVersion=0", 400), ("atTime=2020-01-01T00:00:00Z", 404)] {
        let (status, _, body) = get(&format!("/api/accounts/{account}/history?{query}")).await;
        assert_eq!(status, expected, "{query}: {body}");
    }
    let follow = http.get(format!("{base}/api/accounts/{account}/events")).header("Last-Event-ID", "1");
    let mut follow = follow.send().await.expect("an answer");
    let mut seen = String::new();
    while !seen.contains("id: 3") {
        seen += std::str::from_utf8(&follow.chunk().await.expect("it goes on").expect("more")).expect("text");
    }
    assert!(seen.contains("event: Deposited") && !seen.contains("id: 1\n"), "{seen}");

    let (_, _, other) = post("/api/accounts/sync", "open2", json!({"owner": "bob"})).await;
    let page = async |cursor: &str| get(&format!("/api/accounts?limit=1{cursor}")).await.2;
    let end = Instant::now() + PATIENCE;
    let first = loop {
        let first = page("").await;
        if first["nextCursor"].is_string() {
            break first;
        }
        assert!(Instant::now() < end, "{first} lacks {other}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let second = page(&format!("&cursor={}", first["nextCursor"].as_str().expect("a cursor"))).await;
    let listed = [&first, &second].map(|page| page["items"][0]["accountId"].clone());
    let mut both = [&opened, &other].map(|account| account["accountId"].clone());
    both.sort_by_key(Value::to_string);
    assert_eq!((listed, &second["nextCursor"]), (both, &Value::Null));

    let withdrawals = format!("/api/accounts/{account}/withdrawals/sync");
    let (status, _, refused) = post(&withdrawals, "out", json!({"cents": 800})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("INSUFFICIENT_FUNDS")), "{refused}");
    let (status, _, invalid) = post(&withdrawals, "out2", json!({"cents": 0})).await;
    assert_eq!(status, 422, "{invalid}");
    assert!(invalid["detail"].as_str().is_some_and(|detail| detail.starts_with("/cents ")), "{invalid}");
    let (status, _, other) = post(&withdrawals, "out3", json!({"type": "Deposit", "cents": 1})).await;
    assert_eq!((status, &other["detail"]), (422, &json!("/type must be Withdraw here")), "{other}");

    let document: Value = http.get(format!("{base}/openapi.json")).send().await.unwrap().json().await.unwrap();
    let body = &document["paths"]["/api/accounts"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(body["properties"]["owner"]["maxLength"], 100, "{body}");
    let wait = &document["paths"]["/api/accounts/{accountId}/deposits/sync"]["post"]["parameters"];
    assert!(wait.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "Idempotency-Key")), "{wait}");
    drop(running);
    bank.own.drop().await;
}
