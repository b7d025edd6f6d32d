//! What the load asked and what it was answered, written down before and after each call.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::Mutex;

use serde_json::{Value, json};
use uuid::Uuid;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Kafka has it; nothing is said of the outcome.
    Acknowledged,
    /// Decided and accepted, with the version that the stream has then.
    Accepted { version: Option<i64> },
    /// Decided and refused, by this code.
    Refused(String),
    /// Refused before it was taken: nothing happened.
    NotTaken(u16),
    /// Nobody knows.
    Unknown,
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    pub order: Uuid,
    pub command: Uuid,
    pub way: &'static str,
    pub answer: Answer,
}

/// All calls of a run.
pub struct History {
    file: Mutex<BufWriter<File>>,
    calls: Mutex<Vec<Call>>,
    /// What a read after a decided write did not show.
    pub unseen: Mutex<Vec<String>>,
}

impl History {
    pub fn new() -> Self {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos-history.jsonl");
        println!("history: {}", path.display());
        let file = File::create(&path).expect("a history");
        Self { file: Mutex::new(BufWriter::new(file)), calls: Mutex::default(), unseen: Mutex::default() }
    }

    /// About to be sent.
    pub fn asks(&self, way: &str, command: &Value) {
        self.line(&json!({"asks": command, "way": way, "at": jiff::Timestamp::now().to_string()}));
    }

    /// Came back.
    pub fn answered(&self, call: Call) {
        self.line(&json!({"command": call.command, "way": call.way, "answer": format!("{:?}", call.answer),
                          "at": jiff::Timestamp::now().to_string()}));
        self.calls.lock().unwrap().push(call);
    }

    fn line(&self, line: &Value) {
        writeln!(self.file.lock().unwrap(), "{line}").expect("the history is written");
    }

    /// Every call, in the order of the answers.
    pub fn calls(&self) -> Vec<Call> {
        self.file.lock().unwrap().flush().expect("the history is written");
        self.calls.lock().unwrap().clone()
    }

    /// Calls by way and answer.
    pub fn table(&self) -> Vec<String> {
        let mut counts: BTreeMap<(&str, String), u64> = BTreeMap::new();
        for call in self.calls() {
            let answer = match call.answer {
                Answer::Acknowledged => "acknowledged".to_owned(),
                Answer::Accepted { .. } => "accepted".to_owned(),
                Answer::Refused(code) => format!("refused {code}"),
                Answer::NotTaken(status) => format!("not taken, {status}"),
                Answer::Unknown => "unknown".to_owned(),
            };
            *counts.entry((call.way, answer)).or_default() += 1;
        }
        counts.into_iter().map(|((way, answer), count)| format!("{count:>8}  {way}: {answer}")).collect()
    }
}
