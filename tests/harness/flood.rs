//! A load of orders over HTTP: connections that are kept open, on each one request after the other.
//!
//! Written by hand on a socket, because a general client would take more of the machine than the
//! server under test. Knows as much of HTTP/1.1 as our server answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

/// An answer to one request.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    pub status: u16,
    pub retry_after: Option<u64>,
    pub took: Duration,
}

/// An order that was sent, and what was answered.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub order: Uuid,
    pub reply: Reply,
}

/// What to send where.
#[derive(Debug, Clone)]
pub struct Flood {
    /// `http://host:port`.
    pub base: String,
    pub path: &'static str,
    pub connections: usize,
}

struct Connection {
    stream: BufReader<TcpStream>,
    host: String,
    line: String,
}

impl Connection {
    async fn open(base: &str) -> Self {
        let host = base.strip_prefix("http://").expect("plain HTTP").to_owned();
        let stream = TcpStream::connect(&host).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        Self { stream: BufReader::new(stream), host, line: String::new() }
    }

    async fn post(&mut self, path: &str, body: &str) -> Reply {
        let started = Instant::now();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).await.expect("the request goes out");
        let (mut status, mut retry_after, mut length) = (0, None, 0);
        loop {
            self.line.clear();
            self.stream.read_line(&mut self.line).await.expect("a head");
            let line = self.line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().expect("a status");
            } else if let Some(seconds) = line.strip_prefix("retry-after: ") {
                retry_after = seconds.parse().ok();
            } else if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().expect("a length");
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.expect("a body");
        Reply { status, retry_after, took: started.elapsed() }
    }
}

impl Flood {
    /// Sends `count` orders.
    pub async fn count(&self, count: usize) -> Vec<Sent> {
        self.send(count, None).await
    }

    /// Sends orders for this long.
    pub async fn span(&self, span: Duration) -> Vec<Sent> {
        self.send(usize::MAX, Some(Instant::now() + span)).await
    }

    async fn send(&self, count: usize, until: Option<Instant>) -> Vec<Sent> {
        let begun = Arc::new(AtomicUsize::new(0));
        // Dropped with this future: a load that nobody waits for ends.
        let mut senders = JoinSet::new();
        for _ in 0..self.connections {
            let (flood, begun) = (self.clone(), begun.clone());
            senders.spawn(async move {
                let mut connection = Connection::open(&flood.base).await;
                let mut sent = Vec::new();
                while begun.fetch_add(1, Ordering::Relaxed) < count && until.is_none_or(|end| Instant::now() < end) {
                    let order = Uuid::now_v7();
                    let reply = connection.post(flood.path, &an_order(order)).await;
                    sent.push(Sent { order, reply });
                }
                sent
            });
        }
        let mut all = Vec::new();
        while let Some(sent) = senders.join_next().await {
            all.extend(sent.expect("a sender ends well"));
        }
        all
    }
}

fn an_order(order: Uuid) -> String {
    format!(
        "{{\"orderId\":\"{order}\",\"customerId\":\"customer-42\",\"currency\":\"USD\",\"items\":[{{\"productId\":\
         \"00000000-0000-0000-0000-000000000007\",\"quantity\":2,\"unitPrice\":\"19.99\"}}]}}"
    )
}
