//! Pythons with pinned packages, kept under `target` between runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

/// Making an environment downloads packages, once.
const INSTALL_WAIT: Duration = Duration::from_secs(300);

/// Scripts and lists of packages.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python")
}

/// What a command that must succeed printed.
pub async fn succeed(command: &mut Command, next_step: &str) -> String {
    let output = tokio::time::timeout(INSTALL_WAIT, command.kill_on_drop(true).output()).await.expect("ends in time");
    let output = output.unwrap_or_else(|error| panic!("{error}; {next_step}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{stderr}\n{next_step}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The programs of an environment with the packages that `list` pins; each list has its own.
pub async fn programs(list: &str) -> PathBuf {
    let wanted = std::fs::read_to_string(folder().join(list)).expect("a list of packages");
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{}", list.trim_end_matches(".txt")));
    let (programs, installed) = (home.join("bin"), home.join("installed.txt"));
    if std::fs::read_to_string(&installed).is_ok_and(|found| found == wanted) {
        return programs;
    }
    let setup = "python3 with its venv module is needed: deploy/setup.sh installs it";
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home), setup).await;
    let mut install = Command::new(programs.join("python"));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    succeed(install.arg(folder().join(list)), "pip needs a package index that it can reach").await;
    std::fs::write(installed, wanted).expect("note what is installed");
    programs
}
