//! Programs of the machine: the Java runtime, and how to install what is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::DevError;

const JAVA_MIN: u32 = 17;

/// A usable Java runtime.
#[derive(Debug, Clone)]
pub(super) struct Java {
    pub program: PathBuf,
    /// All that `java -version` says: two runtimes that say the same can share a class-data archive.
    pub version_text: String,
}

/// `JAVA_HOME`'s runtime, else the one on `PATH`; version 17 or newer.
pub(super) fn find() -> Result<Java, DevError> {
    let from_home = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let program = from_home.filter(|java| java.is_file()).or_else(|| on_path("java"));
    let Some(program) = program else {
        return Err(missing("a Java runtime (17 or newer)", "default-jre-headless"));
    };
    let output = Command::new(&program)
        .arg("-version")
        .output()
        .map_err(|error| DevError::step("asking Java for its version", error, "check JAVA_HOME and PATH"))?;
    let version_text = String::from_utf8_lossy(&output.stderr).into_owned();
    match major_version(&version_text) {
        Some(major) if major >= JAVA_MIN => Ok(Java { program, version_text }),
        found => Err(missing(
            &format!(
                "Java {JAVA_MIN} or newer ({} is {}; JAVA_HOME selects another)",
                program.display(),
                found.map_or("of an unknown version".to_owned(), |major| format!("Java {major}"))
            ),
            "openjdk-17-jre-headless",
        )),
    }
}

/// 17 of `openjdk version "17.0.15" 2025-04-15`; 8 of `java version "1.8.0_392"`.
fn major_version(text: &str) -> Option<u32> {
    let quoted = text.split('"').nth(1)?;
    let mut numbers = quoted.split(['.', '-', '_', '+']).map(|part| part.parse::<u32>().ok());
    match numbers.next()?? {
        1 => numbers.next()?,
        major => Some(major),
    }
}

/// The first executable file of this name on `PATH`.
pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| is_executable(path))
}

pub(super) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The error for a missing program, with the command that installs it on this kind of machine.
pub(super) fn missing(what: &str, debian_package: &str) -> DevError {
    let debian = Path::new("/etc/debian_version").exists();
    DevError::Missing { what: what.to_owned(), command: install_command(debian, debian_package) }
}

fn install_command(debian: bool, package: &str) -> String {
    if debian {
        format!("apt-get install -y --no-install-recommends {package}")
    } else {
        format!("the package manager of this system (on Debian: apt-get install {package})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_vendors_are_read() {
        let cases = [
            ("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime", Some(17)),
            ("java version \"1.8.0_392\"", Some(8)),
            ("openjdk version \"21\" 2023-09-19", Some(21)),
            ("openjdk version \"25-ea\" 2025-09-16", Some(25)),
            ("no such thing", None),
        ];
        for (text, expected) in cases {
            assert_eq!(major_version(text), expected, "{text}");
        }
    }

    #[test]
    fn a_missing_program_is_one_paragraph_with_one_command() {
        let error = missing("a Java runtime", "default-jre-headless").to_string();
        assert!(error.contains("default-jre-headless") && !error.contains('\n'), "{error}");
        assert!(!install_command(false, "maven").starts_with("apt-get"));
    }
}
