//! Kafka's artifacts in a cache that many launchers share: fetched once by Maven, prepared once (a
//! formatted log directory to copy and a class-data archive), then used offline. Maven Central's
//! checksums are authoritative for the jars.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::error::{DevError, last_lines};
use super::java;
use super::kafka::{self, KafkaFiles};
use super::process::{CancelFlag, Report, run_to_end};
use super::state::{in_workspace, lock_file, short_hash};
use crate::settings::DevSettings;

const POM: &str = include_str!("../../../deploy/kafka/pom.xml");
const LOG4J: &str = include_str!("../../../deploy/kafka/log4j2.properties");
/// Version of the artifacts in the pom; part of the cache's folder name.
const VERSION: &str = "4.3.1";

fn folder(settings: &DevSettings) -> Result<PathBuf, DevError> {
    let cache = in_workspace(&settings.kafka_cache)?;
    Ok(cache.join(format!("{VERSION}-{}", short_hash(POM.as_bytes()))))
}

/// Everything that a broker needs; the first call fetches and prepares it.
pub(super) fn prepare(settings: &DevSettings, report: &Report, cancel: &CancelFlag) -> Result<KafkaFiles, DevError> {
    let java = java::find()?;
    let folder = folder(settings)?;
    // The archive holds for one Java and one place of the jars; elsewhere another is made.
    let key = short_hash(format!("{} {}", java.version_text, folder.display()).as_bytes());
    let archive = folder.join(format!("classes-{key}.jsa"));
    let no_archive = folder.join(format!("classes-{key}.none"));
    let files = KafkaFiles {
        java: java.program,
        jars: folder.join("jars"),
        template: folder.join("template"),
        log4j: folder.join("log4j2.properties"),
        archive: Some(archive.clone()),
    };
    let complete = || files.jars.is_dir() && files.template.is_dir() && (archive.exists() || no_archive.exists());
    if !complete() {
        std::fs::create_dir_all(&folder).map_err(DevError::file("create", &folder))?;
        let bound = Duration::from_millis(settings.fetch_timeout_ms);
        let _lock = lock_file(&folder.join("lock"), bound, cancel)?;
        if !files.jars.is_dir() {
            report(&format!("fetching Apache Kafka {VERSION} with Maven (once, 54 MB)"));
            fetch(&folder, &files.jars, bound, cancel)?;
        }
        if !complete() {
            report("preparing Kafka for this Java (once)");
            prepare_once(&folder, &files, &archive, &no_archive, cancel)?;
        }
    }
    Ok(KafkaFiles { archive: Some(archive).filter(|archive| archive.exists()), ..files })
}

fn fetch(folder: &Path, jars: &Path, bound: Duration, cancel: &CancelFlag) -> Result<(), DevError> {
    let maven = java::on_path("mvn").ok_or_else(|| java::missing("Apache Maven (`mvn`)", "maven"))?;
    let work = fresh_folder(&folder.join("fetch"))?;
    let pom = work.join("pom.xml");
    std::fs::write(&pom, POM).map_err(DevError::file("write", &pom))?;
    let log = folder.join("fetch.log");
    let mut command = Command::new(maven);
    command
        .current_dir(&work)
        .args(["-B", "-q", "-Dstyle.color=never", "-f"])
        .arg(&pom)
        .arg("dependency:copy-dependencies");
    command.arg("-DincludeScope=runtime").arg(format!("-DoutputDirectory={}", work.join("jars").display()));
    run_to_end(command, "fetching Kafka with Maven", &log, bound, cancel).map_err(|error| match error {
        DevError::Step { step, reason, .. } => DevError::Step {
            step,
            reason: first_error(&log).unwrap_or(reason),
            next: format!("Maven Central must be reachable once; the whole output is in {}", log.display()),
        },
        other => other,
    })?;
    std::fs::rename(work.join("jars"), jars).map_err(DevError::file("move into place", jars))?;
    let _ = std::fs::remove_dir_all(&work);
    Ok(())
}

/// Maven says first what is wrong; its last lines are about itself.
fn first_error(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().find_map(|line| Some(line.split_once("[ERROR] ")?.1.trim().to_owned()))
}

/// One broker's life in a scratch folder: leaves the template and the archive.
fn prepare_once(
    folder: &Path,
    files: &KafkaFiles,
    archive: &Path,
    no_archive: &Path,
    cancel: &CancelFlag,
) -> Result<(), DevError> {
    std::fs::write(&files.log4j, LOG4J).map_err(DevError::file("write", &files.log4j))?;
    let work = fresh_folder(&folder.join("prepare"))?;
    let trained = kafka::train(files, &work, cancel)?;
    if !files.template.is_dir() {
        std::fs::rename(&trained.template, &files.template)
            .map_err(DevError::file("move into place", &files.template))?;
    }
    match trained.archive {
        Some(made) => std::fs::rename(&made, archive).map_err(DevError::file("move into place", archive))?,
        None => {
            let why = last_lines(&work.join("kafka.log"), 5);
            tracing::warn!(%why, "this Java wrote no class-data archive; Kafka starts a little slower");
            std::fs::write(no_archive, why).map_err(DevError::file("write", no_archive))?;
        }
    }
    let _ = std::fs::remove_dir_all(&work);
    Ok(())
}

/// Only the holder of the cache's lock makes one, so what is there is a dead launcher's.
fn fresh_folder(path: &Path) -> Result<PathBuf, DevError> {
    let _ = std::fs::remove_dir_all(path);
    std::fs::create_dir_all(path).map_err(DevError::file("create", path))?;
    Ok(path.to_owned())
}
