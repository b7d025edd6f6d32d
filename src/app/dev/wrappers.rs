//! Scripts that run Kafka's own command-line tools against the local broker.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::DevError;
use super::java;
use super::state::{Layout, Recorded};

const TOOLS: [(&str, &str); 4] = [
    ("kafka-topics", "org.apache.kafka.tools.TopicCommand"),
    ("kafka-consumer-groups", "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"),
    ("kafka-console-consumer", "org.apache.kafka.tools.consumer.ConsoleConsumer"),
    ("kafka-console-producer", "org.apache.kafka.tools.ConsoleProducer"),
];

/// One script a tool; each adds `--bootstrap-server` where the caller names none.
pub(super) fn write(layout: &Layout, state: &Recorded) -> Result<(), DevError> {
    let Some(jars) = &state.kafka_jars else { return Ok(()) };
    let bin = layout.bin();
    std::fs::create_dir_all(&bin).map_err(DevError::file("create", &bin))?;
    let java = java::find()?.program;
    for (name, class) in TOOLS {
        let path = bin.join(name);
        let write = || {
            std::fs::write(&path, script(&java, jars, class, &state.kafka_brokers))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        };
        write().map_err(DevError::file("write", &path))?;
    }
    Ok(())
}

fn script(java: &Path, jars: &Path, class: &str, brokers: &str) -> String {
    let log4j = jars.with_file_name("log4j2.properties").display().to_string();
    format!(
        "#!/bin/sh\n# Written by `throughline dev up`.\n\
         case \" $* \" in *' --bootstrap-server'*) ;; *) set -- --bootstrap-server {brokers} \"$@\" ;; esac\n\
         exec {java} -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC {log4j} -cp {class_path} {class} \"$@\"\n",
        java = shell_word(&java.display().to_string()),
        log4j = shell_word(&format!("-Dlog4j2.configurationFile={log4j}")),
        class_path = shell_word(&format!("{}/*", jars.display())),
    )
}

/// As one word of a POSIX shell; quoted only if it has to be.
pub fn shell_word(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_whole_from_a_shell() {
        for value in ["plain", "a b", "it's", "$HOME `id` \"x\" \\ *", "", "a\nb", "postgres://u:p@h:1/d?x=y&z"] {
            let output = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("V={}; printf %s \"$V\"", shell_word(value)))
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
        assert_eq!(shell_word("127.0.0.1:9092"), "127.0.0.1:9092");
    }
}
