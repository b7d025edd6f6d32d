//! `throughline new`: the package that it writes builds, conforms, runs and passes its own tests, unchanged.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use throughline::app::dev::Services;
use throughline::settings::LoadedSettings;

const BINARY: &str = env!("CARGO_BIN_EXE_throughline");

fn place(name: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new").join(name);
    let _ = std::fs::remove_dir_all(&place);
    place
}

fn new(arguments: &[&str]) -> Output {
    Command::new(BINARY).arg("new").args(arguments).output().expect("it runs")
}

/// Cargo in the new package: with the versions that are here already, and into the same target directory.
fn cargo(package: &Path, arguments: &[&str]) -> Command {
    let target = Path::new(BINARY).parent().and_then(Path::parent).expect("a target directory");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(arguments).current_dir(package).env("CARGO_NET_OFFLINE", "true").env("CARGO_TARGET_DIR", target);
    cargo
}

#[test]
fn what_cannot_be_is_told_with_the_next_step_and_nothing_is_overwritten() {
    let here = place("wrong");
    let path = here.to_str().expect("a path");
    for (arguments, code, says) in [
        (&["Parcel", "--path", path][..], 2, "lower-case letters"),
        (&["self", "--path", path], 2, "means something else"),
        (&["parcel", "--path", path, "--library", "/nonexistent"], 1, "--library /nonexistent"),
    ] {
        let Output { status, stderr, .. } = new(arguments);
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.code() == Some(code) && said.contains(says), "{arguments:?}: {status}: {said}");
        assert!(!here.exists(), "{arguments:?}");
    }
    std::fs::create_dir_all(&here).expect("a directory");
    std::fs::write(here.join("README.md"), "mine").expect("a file");
    let Output { status, stderr, .. } = new(&["parcel", "--path", path]);
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.code() == Some(1) && said.contains("is not empty"), "{said}");
    assert_eq!(std::fs::read_to_string(here.join("README.md")).expect("it is there"), "mine");
}

#[tokio::test]
async fn a_new_package_passes_its_tests_and_runs() {
    let settings = LoadedSettings::load(None, &[]).expect("settings of the environment").settings;
    let services = Services::open(&settings).await.expect("services start");
    let package = place("parcel-label");
    let written = new(&["parcel-label", "--path", package.to_str().expect("a path")]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::copy(root.join("Cargo.lock"), package.join("Cargo.lock")).expect("the versions that are here");
    let on_services = |command: &mut Command| {
        command.env("KAFKA_BROKERS", &services.kafka_brokers).env("DATABASE_URL", &services.database_url);
    };

    let mut tests = cargo(&package, &["test"]);
    on_services(&mut tests);
    let Output { status, stdout, stderr } = tests.output().expect("cargo runs");
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success() && !said.contains("warning:"), "{said}");
    for test in [
        "it_conforms ... ok",
        "what_is_closed_is_renamed_no_more ... ok",
        "show_what_happened ... ok",
        "whoever_dies ... ok",
    ] {
        assert!(said.contains(test), "{test}: {said}");
    }

    let checked = cargo(&package, &["run", "--", "schema", "check"]).output().expect("cargo runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let mut dev = cargo(&package, &["run"]);
    on_services(&mut dev);
    dev.args(["--", "dev"]).env("THROUGHLINE__TOPICS__PREFIX", format!("new-{}-", std::process::id()));
    dev.env("HTTP_LISTEN", "127.0.0.1:0").env("ADMIN_LISTEN", "127.0.0.1:0").stdout(Stdio::piped());
    let mut dev = dev.spawn().expect("cargo runs");
    let lines = BufReader::new(dev.stdout.take().expect("piped")).lines().map(|line| line.expect("a line"));
    let told: Vec<String> = lines.take(6).collect();
    assert!(told.last().is_some_and(|last| last.contains("Ctrl-C")), "{told:?}");
    // Cargo has become what it runs.
    kill(Pid::from_raw(dev.id().cast_signed()), Signal::SIGINT).expect("it runs");
    assert!(dev.wait().expect("it ends").success());
}
