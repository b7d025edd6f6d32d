//! Connections that send little or nothing, by the hundred: whoever has something to ask is answered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, an_order};

/// More than fit, on either port.
const MANY: usize = 700;
/// Of each port here, and fewer than the others try to hold.
const MOST: usize = 64;
/// Longest for an answer of a port that is besieged.
const PROMPT: Duration = Duration::from_secs(5);

async fn harness(name: &str) -> Harness {
    let mut harness = Harness::bare(name).await;
    let http = &mut harness.settings.http;
    http.connections_max = MOST;
    http.admin_connections_max = MOST;
    http.head_timeout_ms = 3_000;
    http.idle_timeout_ms = 4_000;
    http.body_timeout_ms = 2_000;
    harness.install().await;
    harness
}

fn address(base: &str) -> SocketAddr {
    base.split_once("://").expect("a URL").1.parse().expect("an address")
}

/// Opens a connection and sends `bytes`.
async fn open(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    // It may have been told to go already.
    let _ = stream.write_all(bytes).await;
    stream
}

async fn open_many(address: SocketAddr, bytes: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..MANY {
        streams.push(open(address, bytes).await);
    }
    streams
}

/// What comes until the other end closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut text));
    // A reset is an end, too.
    let _ = read.await.expect("the connection is closed");
    String::from_utf8_lossy(&text).into_owned()
}

/// Both ports answer newcomers, promptly.
async fn answers(server: &Server) {
    for url in [format!("{}/livez", server.admin), format!("{}/api/orders", server.base)] {
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).timeout(PROMPT).build().unwrap();
        let answer = client.get(&url).send().await.unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(answer.status(), 200, "{url}");
    }
}

async fn metric(server: &Server, line: &str) -> f64 {
    let text = server.client.get(format!("{}/metrics", server.admin)).send().await.unwrap().text().await.unwrap();
    let found = text.lines().find_map(|one| one.strip_prefix(line));
    found.map_or(0.0, |value| value.trim().parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_say_little_keep_nobody_out() {
    let harness = harness("http_quiet").await;
    let server = Server::start(&harness, &["api"]).await;
    let whole = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let kinds: [(&str, &[u8]); 5] = [
        ("nothing at all", b""),
        ("half a head", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Half: "),
        ("a whole request and silence", whole.as_bytes()),
        ("the beginning of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("half a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ];
    for (kind, bytes) in kinds {
        let held = (open_many(address(&server.admin), bytes).await, open_many(address(&server.base), bytes).await);
        for _ in 0..5 {
            answers(&server).await;
        }
        for port in ["admin", "api"] {
            let open = metric(&server, &format!("throughline_http_connections{{port=\"{port}\"}}")).await;
            assert!(open <= MOST as f64, "{kind}: {open} connections of {port}");
        }
        drop(held);
    }
    let evicted = "throughline_http_connections_closed_total{port=\"admin\",reason=\"evicted\"}";
    assert!(metric(&server, evicted).await > MANY as f64);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wait_for_a_caller_ends() {
    let harness = harness("http_waits_end").await;
    let server = Server::start(&harness, &["api"]).await;
    let whole = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice();
    let second = [whole, b"GET /liv"].concat();
    for (kind, bytes, least, most) in [
        ("nothing", b"".as_slice(), 2_900, 6_000),
        ("half a head", b"GET / HTTP/1.1\r\nX-", 2_900, 6_000),
        ("a request and half of the next", &second, 2_900, 6_000),
        ("a request", whole, 3_900, 9_500),
    ] {
        for port in [&server.admin, &server.base] {
            let started = Instant::now();
            rest(&mut open(address(port), bytes).await).await;
            let took = started.elapsed().as_millis();
            assert!((least..most).contains(&took), "{kind} on {port}: closed after {took} ms");
        }
    }
    // Half heads that go on growing are not taken for busy.
    let mut slow = open(address(&server.base), b"GET / HTTP/1.1\r\n").await;
    let started = Instant::now();
    while slow.write_all(b"X-More: 1\r\n").await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(8), "a slow head is waited for");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_is_given_up() {
    let mut harness = Harness::bare("http_trickle").await;
    harness.settings.http.body_timeout_ms = 2_000;
    harness.install().await;
    let server = Server::start(&harness, &["api"]).await;
    let head = "POST /api/orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{";
    let mut held = open_many(address(&server.base), head.as_bytes()).await;
    answers(&server).await;
    assert_eq!(server.send("/api/orders", &an_order()).await.status, 202);
    let started = Instant::now();
    let told = loop {
        // A byte now and then changes nothing.
        let _ = held[0].write_all(b" ").await;
        let mut text = vec![0; 4_096];
        let read = tokio::time::timeout(Duration::from_millis(200), held[0].read(&mut text)).await;
        if let Ok(Ok(read)) = read {
            break String::from_utf8_lossy(&text[..read]).into_owned();
        }
        assert!(started.elapsed() < Duration::from_secs(6), "no answer to a body that does not end");
    };
    assert!(told.starts_with("HTTP/1.1 408") && told.contains("\"BODY_TIMEOUT\""), "{told}");
    eventually("the others are gone, too", || async {
        (metric(&server, "throughline_http_connections{port=\"api\"}").await < 10.0).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_handshakes_that_do_not_end_keep_nobody_out() {
    let mut harness = harness("http_handshakes").await;
    let file =
        |name: &str| Some(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/http/tls").join(name));
    harness.settings.http.tls_certificate_file = file("localhost.crt");
    harness.settings.http.tls_key_file = file("localhost.key");
    let server = Server::start(&harness, &["api"]).await;
    // The beginning of a ClientHello that announces more, then silence; plain text; nothing.
    for bytes in [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), b"GET / HTTP/1.1\r\n", b""] {
        let held = open_many(address(&server.base), bytes).await;
        for _ in 0..5 {
            answers(&server).await;
        }
        drop(held);
    }
    let started = Instant::now();
    rest(&mut open(address(&server.base), b"\x16\x03\x01").await).await;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    // A connection in use stays, and is answered on.
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap();
    for _ in 0..3 {
        let answer = client.get(format!("{}/api/orders", server.base)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_being_answered_is_not_sent_away() {
    let mut harness = harness("http_in_hand").await;
    harness.settings.http.connections_max = 8;
    let server = Server::start(&harness, &["api"]).await;
    // Waits for an outcome that nobody decides, longer than an idle connection may last.
    let request = server.post("/api/orders", &an_order()).header("Prefer", "wait=6");
    let waiting = tokio::spawn(async move { Answer::of(request.send().await.expect("an answer")).await });
    let waiters = format!("throughline_http_sync_waiters{{topic=\"{}\"}}", harness.names().events());
    eventually("the command is on its way", || async { (metric(&server, &waiters).await > 0.0).then_some(()) }).await;
    let held = open_many(address(&server.base), b"GET /").await;
    assert_eq!(waiting.await.unwrap().status, 202);
    drop(held);
    server.stop().await;
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u8;
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_2_a_ping_is_no_half_request_and_keeps_nothing_open() {
    let harness = harness("http_two").await;
    let server = Server::start(&harness, &["api"]).await;
    let (settings, ping) = (frame(4, 0, 0, &[]), frame(6, 0, 0, b"12345678"));
    // :method GET, :scheme http, :path /, :authority localhost; end of headers and of the stream.
    let request = frame(1, 5, 1, b"\x82\x86\x84\x41\x09localhost");
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings].concat();
    let mut used = open(address(&server.base), &[preface.as_slice(), &request].concat()).await;
    let mut unused = open(address(&server.base), &preface).await;
    let started = Instant::now();
    let mut ended = [None, None];
    while ended.contains(&None) {
        assert!(started.elapsed() < Duration::from_secs(15), "{ended:?}");
        for (stream, ended) in [&mut used, &mut unused].into_iter().zip(&mut ended).filter(|(_, ended)| ended.is_none())
        {
            let _ = stream.write_all(&ping).await;
            let mut bytes = vec![0; 4_096];
            let read = tokio::time::timeout(Duration::from_millis(250), stream.read(&mut bytes)).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                *ended = Some(started.elapsed().as_millis());
            }
        }
    }
    let [Some(used), Some(unused)] = ended else { unreachable!("both ended") };
    assert!((2_900..3_900).contains(&unused), "without a request it is over with the time for a head: {unused} ms");
    assert!((3_900..9_500).contains(&used), "after one, with the time between requests: {used} ms");
    server.stop().await;
}
