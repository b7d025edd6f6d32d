//! The rules of the house, checked: rooms and doors, openings, lengths, names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;

/// What each room may import of ours. A room that is not named here may import everything.
fn doors() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("engine", &[][..]),
        ("crash", &[]),
        ("health", &[]),
        ("panics", &[]),
        ("settings", &[]),
        ("store", &["settings", "crash"]),
        ("kafka", &["settings", "engine", "crash", "health", "panics"]),
        ("presence", &["settings", "store", "health"]),
        ("status", &["settings", "store", "health", "kafka", "presence", "relay", "projection", "process", "audit"]),
        ("audit", &["settings", "store", "kafka", "processor", "relay", "projection", "process", "health"]),
        ("avro", &["engine", "settings", "store"]),
        ("plain", &["engine", "avro", "api", "store"]),
        ("processor", &["engine", "settings", "store", "kafka", "avro", "crash", "health", "panics"]),
        ("relay", &["engine", "settings", "store", "kafka", "avro", "crash", "health"]),
        ("projection", &["engine", "settings", "store", "kafka", "avro", "crash", "health", "panics"]),
        ("process", &["engine", "settings", "store", "kafka", "avro", "crash", "health", "panics", "projection"]),
        ("api", &["engine", "settings", "store", "kafka", "avro", "crash", "health", "presence"]),
    ])
}

fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    walk(&root.join(directory), &mut found);
    assert!(!found.is_empty(), "{directory} is gone: a rule would hold for nothing");
    found.sort();
    found.into_iter().map(|(path, text)| (path.strip_prefix(root).unwrap().to_owned(), text)).collect()
}

fn report(broken: Vec<String>) {
    assert!(broken.is_empty(), "{} rule(s) broken:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    let mut broken = Vec::new();
    for directory in ["src", "tests", "benches", "examples"] {
        for (path, text) in sources(directory) {
            if !text.starts_with("//! ") {
                broken.push(format!("{}: opens without //!", path.display()));
            }
        }
    }
    report(broken);
}

#[test]
fn files_and_functions_stay_readable() {
    let mut broken = Vec::new();
    for (path, text) in sources("src") {
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > FILE_LINES_MAX {
            broken.push(format!("{}: {} lines, {FILE_LINES_MAX} at most", path.display(), lines.len()));
        }
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| starts_function(line)) {
            // A signature that ends without a body belongs to a trait.
            if lines[number..]
                .iter()
                .find(|line| line.ends_with(['{', ';', '}']))
                .is_some_and(|line| line.ends_with(';'))
            {
                continue;
            }
            let indent = line.len() - line.trim_start().len();
            let close = format!("{}}}", " ".repeat(indent));
            let length = lines[number..].iter().position(|line| *line == close).map_or(0, |end| end + 1);
            if length > FUNCTION_LINES_MAX {
                broken.push(format!(
                    "{}:{}: a function of {length} lines, {FUNCTION_LINES_MAX} at most",
                    path.display(),
                    number + 1
                ));
            }
        }
    }
    report(broken);
}

fn starts_function(line: &str) -> bool {
    let code = line.trim_start();
    let code = code.strip_prefix("pub ").or_else(|| code.strip_prefix("pub(super) ")).unwrap_or(code);
    let code = code.strip_prefix("pub(crate) ").unwrap_or(code);
    let code = code.strip_prefix("const ").unwrap_or(code);
    let code = code.strip_prefix("async ").unwrap_or(code);
    code.starts_with("fn ") && !line.ends_with(';')
}

/// The table of rooms that the library's documentation shows is the rule, room for room.
#[test]
fn the_table_of_rooms_is_the_rule() {
    let doors = doors();
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../lib.rs")).unwrap();
    let mut broken = Vec::new();
    for room in text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
        let may = match doors.get(room) {
            None => "everything".to_owned(),
            Some([]) => "nothing of ours".to_owned(),
            Some(named) => named.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        };
        let row = text.lines().find(|line| line.starts_with(&format!("//! | [`{room}`] |")));
        if !row.is_some_and(|row| row.ends_with(&format!("| {may} |"))) {
            broken.push(format!("src/lib.rs: the row of `{room}` must end in: {may}"));
        }
    }
    report(broken);
}

#[test]
fn imports_go_one_way() {
    let doors = doors();
    let mut broken = Vec::new();
    for (path, text) in sources("src") {
        let room = path.components().nth(1).unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        let Some(allowed) = doors.get(room.as_str()) else { continue };
        // Tests of a loop may speak of the reference context.
        if path.to_string_lossy().ends_with("_tests.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for import in line.split("crate::").skip(1) {
                let named: String = import.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let ours = ["app", "cli", "prelude", "testing"].contains(&named.as_str())
                    || doors.contains_key(named.as_str());
                if ours && named != room && !allowed.contains(&named.as_str()) && !line.trim_start().starts_with("//") {
                    broken.push(format!("{}:{}: `{room}` may not know `{named}`", path.display(), number + 1));
                }
            }
        }
    }
    report(broken);
}

#[test]
fn an_error_of_the_database_says_what_the_server_said() {
    let mut broken = Vec::new();
    for (path, text) in sources("src") {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let held = ["#[from] tokio_postgres::Error", "source: tokio_postgres::Error"];
            let before = &lines[number.saturating_sub(3)..number];
            if held.iter().any(|part| line.contains(part)) && !before.iter().any(|line| line.contains("describe(")) {
                broken.push(format!("{}:{}: its text is `db error` and no more", path.display(), number + 1));
            }
        }
    }
    report(broken);
}

#[test]
fn every_family_of_metrics_has_its_help() {
    let all = sources("src");
    let families = &all.iter().find(|(path, _)| path.ends_with("api/families.rs")).expect("the families").1;
    let mut broken = Vec::new();
    for (path, text) in &all {
        for call in ["counter!(", "gauge!(", "histogram!("] {
            for rest in text.split(call).skip(1) {
                let Some(name) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) else {
                    continue;
                };
                if !families.contains(&format!("\"{name}\",")) {
                    broken.push(format!("{}: {name} has no HELP in src/api/families.rs", path.display()));
                }
            }
        }
    }
    report(broken);
}

/// That it uses none is the compiler's to hold; that it says nothing of one, in a text or an example, is held here.
#[test]
fn the_library_names_no_context() {
    let names = [
        "orders-",
        "\"orders\"",
        "orders::",
        "Orders",
        "orderId",
        "OrderPlaced",
        "ORDER_NOT",
        "order-list",
        "order_list",
        "/api/orders",
        "an order's",
        "throughline.orders",
    ];
    let mut broken = Vec::new();
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !path.starts_with("src/reference")) {
        for (number, line) in text.lines().enumerate() {
            for name in names.iter().filter(|name| line.contains(**name)) {
                broken.push(format!("{}:{}: `{name}` in the library", path.display(), number + 1));
            }
        }
    }
    report(broken);
}

#[test]
fn the_domain_is_pure() {
    let forbidden = [
        "tokio",
        "rdkafka",
        "async ",
        "std::env",
        "std::fs",
        "Timestamp::now",
        "Uuid::new_v4",
        "now_v7",
        "rand::",
        "SystemTime",
        "Instant::now",
    ];
    let mut broken = Vec::new();
    for (path, text) in sources("src/reference/orders/domain") {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{}:{}: `{word}` in the domain", path.display(), number + 1));
            }
        }
    }
    report(broken);
}

#[test]
fn names_say_what_a_thing_is_and_nothing_is_left_undone() {
    let vague = ["utils", "util", "common", "helpers", "helper", "manager", "misc"];
    // Spelled in halves, so that this file does not break its own rule.
    let undone = [["to", "do!("], ["unimple", "mented!("], ["TO", "DO"], ["FIX", "ME"], ["#[ig", "nore"]]
        .map(|halves| halves.concat());
    let mut broken = Vec::new();
    for directory in ["src", "tests", "benches", "examples"] {
        for (path, text) in sources(directory) {
            for part in path.iter().map(|part| part.to_string_lossy().replace(".rs", "")) {
                if vague.contains(&part.as_str()) {
                    broken.push(format!("{}: `{part}` says nothing", path.display()));
                }
            }
            for (number, line) in text.lines().enumerate() {
                for word in undone.iter().filter(|word| line.contains(word.as_str())) {
                    broken.push(format!("{}:{}: `{word}`", path.display(), number + 1));
                }
            }
        }
    }
    report(broken);
}

/// The README's walk through a context of one's own shows code that is compiled and run.
#[test]
fn the_readme_shows_the_bank_as_it_is() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let section = readme.split("## Your own context").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let bank: String = sources("examples/bank/src").into_iter().map(|(_, text)| text).collect();
    let blocks: Vec<&str> =
        section.split("```rust\n").skip(1).filter_map(|block| block.split("\n```").next()).collect();
    assert!(blocks.len() > 3, "{section}");
    for part in blocks.iter().flat_map(|block| block.split("\n\n")) {
        assert!(bank.contains(part), "not in examples/bank:\n{part}");
    }
    for line in ["cargo run -p bank -- run", "command send", "stream show", "projection rebuild accounts"] {
        assert!(section.contains(line), "{line}");
    }
}
