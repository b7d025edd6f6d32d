//! The way to PostgreSQL: it can be cut, go silent, and lose the answer to a commit that happened.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What a session sends to commit, and what it is answered; ours are simple queries.
const COMMITS: [&[u8]; 2] = [b"commit\0", b"COMMIT\0"];
const COMMITTED: &[u8] = b"COMMIT\0";

/// Answers to commits that are still to be lost, and how many were.
#[derive(Default)]
struct Losses {
    left: AtomicUsize,
    done: AtomicUsize,
}

impl Losses {
    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok()
    }
}

/// A way that is open until it is cut.
pub struct Way {
    listen: SocketAddr,
    to: String,
    losses: Arc<Losses>,
    /// Nothing passes either way, and nobody is told: the connections stay open.
    silent: watch::Sender<bool>,
    passing: Option<JoinHandle<()>>,
}

impl Way {
    /// Between `127.0.0.1` and the host of `url`; the URL to use instead.
    pub async fn new(url: &str) -> (Self, String) {
        let (head, rest) = url.rsplit_once('@').expect("a user");
        let (to, database) = rest.split_once('/').expect("a database");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let listen = free.local_addr().expect("an address");
        drop(free);
        let mut way = Self {
            listen,
            to: to.to_owned(),
            losses: Arc::default(),
            silent: watch::Sender::new(false),
            passing: None,
        };
        way.open().await;
        (way, format!("{head}@{listen}/{database}"))
    }

    /// Opens it, again.
    pub async fn open(&mut self) {
        let listener = TcpListener::bind(self.listen).await.expect("the way's port");
        let (to, losses, silent) = (self.to.clone(), self.losses.clone(), self.silent.clone());
        self.passing = Some(tokio::spawn(async move {
            // Cut with this task.
            let mut connections = JoinSet::new();
            loop {
                let (from, _) = listener.accept().await.expect("a connection");
                let (to, losses, silent) = (to.clone(), losses.clone(), silent.subscribe());
                connections.spawn(async move {
                    let Ok(to) = TcpStream::connect(to).await else { return };
                    carry(from, to, &losses, silent).await;
                });
            }
        }));
    }

    /// Ends every connection and takes no more.
    pub async fn cut(&mut self) {
        let passing = self.passing.take().expect("an open way");
        passing.abort();
        drop(passing.await);
    }

    /// Swallows what is sent from now on, on every connection, and takes new ones all the same; or passes on again
    /// what comes after that. What was swallowed is lost, as are the connections that it was lost of.
    pub fn silence(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    /// The next `answers` commits happen, and whoever sent them sees the connection end instead.
    pub fn lose(&self, answers: usize) {
        self.losses.left.fetch_add(answers, Ordering::AcqRel);
    }

    /// Answers lost so far.
    pub fn lost(&self) -> usize {
        self.losses.done.load(Ordering::Acquire)
    }
}

/// Carries bytes both ways until one side ends, or until an answer was lost.
async fn carry(from: TcpStream, to: TcpStream, losses: &Losses, mut silent: watch::Receiver<bool>) {
    let ((mut asks, mut hears), (mut answers, mut told)) = (from.into_split(), to.into_split());
    let (doom, mut doomed) = watch::channel(false);
    let up = async {
        let mut seen = Window::default();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = asks.read(&mut buffer).await {
            let commits = COMMITS.iter().any(|commit| seen.shows(&buffer[..count], commit));
            if commits && losses.take() {
                // Before it is sent, so that no answer to it slips through.
                doom.send_replace(true);
            }
            seen.keep(&buffer[..count]);
            if told.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut seen = Window::default();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = answers.read(&mut buffer).await {
            if *doomed.borrow_and_update() {
                if seen.shows(&buffer[..count], COMMITTED) {
                    losses.done.fetch_add(1, Ordering::AcqRel);
                    return;
                }
                seen.keep(&buffer[..count]);
            } else if hears.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let silenced = async {
        drop(silent.wait_for(|silent| *silent).await);
    };
    tokio::select! {
        () = up => return,
        () = down => return,
        () = silenced => {}
    }
    // Nobody reads, and nobody closes, for as long as any test takes.
    tokio::time::sleep(Duration::from_secs(600)).await;
}

/// The end of what went by: a word may be cut in two.
#[derive(Default)]
struct Window(Vec<u8>);

impl Window {
    fn shows(&self, bytes: &[u8], word: &[u8]) -> bool {
        let joint: Vec<u8> = self.0.iter().chain(bytes.iter().take(word.len())).copied().collect();
        [joint.as_slice(), bytes].iter().any(|text| text.windows(word.len()).any(|part| part == word))
    }

    fn keep(&mut self, bytes: &[u8]) {
        // One less than the longest word: what is kept alone never shows one again.
        self.0 = bytes[bytes.len().saturating_sub(COMMITTED.len() - 1)..].to_vec();
    }
}
