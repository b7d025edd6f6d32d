//! The gate of `throughline schema check` and of the tests: published schemas are never edited,
//! every new version can read the older ones, and every version has a path to the newest.

use std::collections::BTreeMap;
use std::fmt::Write;

use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};

use super::catalogue::Catalogue;
use super::upcast::Upcasters;

/// What is wrong with a set of schemas; the text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaProblem {
    /// Fingerprint and lock differ.
    #[error(
        "{event_type} version {version} was edited after it was published (fingerprint {found}, locked {locked}): \
         restore the file and add version {} instead", version + 1
    )]
    Edited { event_type: String, version: i16, locked: String, found: String },
    /// Not in the lock file.
    #[error(
        "{event_type} version {version} is not in the lock file: add the line `{event_type} {version} {fingerprint}`"
    )]
    NotLocked { event_type: String, version: i16, fingerprint: String },
    /// In the lock file only.
    #[error("{event_type} version {version} is locked but gone: events of it may exist for ever, restore the file")]
    Removed { event_type: String, version: i16 },
    /// A line of the lock file that is none.
    #[error("line {line} of the lock file is not `TYPE VERSION FINGERPRINT`, or repeats one")]
    BadLockLine { line: usize },
    /// A stock reader with the newer schema could not read older events.
    #[error("{event_type} version {version} cannot read version {older}: {reason}")]
    Incompatible { event_type: String, version: i16, older: i16, reason: String },
    /// No chain of upcasters.
    #[error("{event_type} version {version} has no path to the newest version: add the upcaster")]
    NoPath { event_type: String, version: i16 },
    /// An upcaster from nowhere, or to nowhere.
    #[error("the upcaster of {event_type} from version {version} belongs to no schema or leads beyond the newest")]
    StrayUpcaster { event_type: String, version: i16 },
}

/// Everything that is wrong with a context's schemas; empty when all is well.
pub fn check(catalogue: &Catalogue, upcasters: &Upcasters, lock: &str) -> Vec<SchemaProblem> {
    let mut problems = Vec::new();
    check_lock(catalogue, lock, &mut problems);
    check_compatibility(catalogue, &mut problems);
    let lost = upcasters.without_path(catalogue).into_iter();
    problems.extend(lost.map(|(event_type, version)| SchemaProblem::NoPath { event_type, version }));
    let stray = upcasters.without_schema(catalogue).into_iter();
    problems.extend(stray.map(|(event_type, version)| SchemaProblem::StrayUpcaster { event_type, version }));
    problems
}

/// The lock file of a catalogue: one line `TYPE VERSION FINGERPRINT` a schema.
pub fn lock_text(catalogue: &Catalogue) -> String {
    let mut text = String::from("# Fingerprints of published schemas. Lines are added, never changed or removed.\n");
    for one in catalogue.schemas() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", one.event_type, one.version, one.fingerprint);
    }
    text
}

fn check_lock(catalogue: &Catalogue, lock: &str, problems: &mut Vec<SchemaProblem>) {
    let mut locked = BTreeMap::new();
    for (n, line) in lock.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#')) {
        let parts: Vec<_> = line.split_whitespace().collect();
        let entry = match parts[..] {
            [event_type, version, fingerprint] => version.parse().ok().map(|v: i16| ((event_type, v), fingerprint)),
            _ => None,
        };
        match entry {
            Some((key, fingerprint)) if !locked.contains_key(&key) => drop(locked.insert(key, fingerprint)),
            _ => problems.push(SchemaProblem::BadLockLine { line: n + 1 }),
        }
    }
    for one in catalogue.schemas() {
        let (event_type, version, found) = (one.event_type.clone(), one.version, one.fingerprint.clone());
        match locked.remove(&(one.event_type.as_str(), version)) {
            Some(fingerprint) if fingerprint == found => {}
            Some(fingerprint) => {
                problems.push(SchemaProblem::Edited { event_type, version, locked: fingerprint.to_owned(), found });
            }
            None => problems.push(SchemaProblem::NotLocked { event_type, version, fingerprint: found }),
        }
    }
    for (event_type, version) in locked.into_keys() {
        problems.push(SchemaProblem::Removed { event_type: event_type.to_owned(), version });
    }
}

/// Every version against every older one (Confluent's BACKWARD_TRANSITIVE): the topic keeps all
/// versions for ever, so the rule against the previous one alone would not do.
fn check_compatibility(catalogue: &Catalogue, problems: &mut Vec<SchemaProblem>) {
    for newer in catalogue.schemas() {
        let older = catalogue.schemas().iter();
        for older in older.filter(|one| one.event_type == newer.event_type && one.version < newer.version) {
            let reason = match SchemaCompatibility::can_read(&older.schema, &newer.schema) {
                Ok(Compatibility::Full) => continue,
                Ok(Compatibility::Partial) => "some values could not be read".to_owned(),
                Err(error) => error.to_string(),
            };
            let (event_type, version, older) = (newer.event_type.clone(), newer.version, older.version);
            problems.push(SchemaProblem::Incompatible { event_type, version, older, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Published;
    use super::*;

    const V1: &str =
        r#"{"type":"record","name":"Happened","namespace":"test","fields":[{"name":"a","type":"long","doc":"x"}]}"#;
    const V2: &str = r#"{"type":"record","name":"Happened","namespace":"test","fields":[{"name":"a","type":"long"},{"name":"b","type":"long","default":0}]}"#;

    fn catalogue(definitions: &[&str]) -> Catalogue {
        let published: Vec<_> = definitions
            .iter()
            .zip(1..)
            .map(|(definition, version)| Published { event_type: "Happened", version, definition })
            .collect();
        Catalogue::new("tests", "test", &published).unwrap()
    }

    fn upcasters(from: &[i16]) -> Upcasters {
        let steps: Vec<_> =
            from.iter().map(|from| ("Happened", *from, (|_| Ok(())) as super::super::Upcaster)).collect();
        Upcasters::new(&steps)
    }

    #[test]
    fn a_sound_set_has_no_problems() {
        let sound = catalogue(&[V1, V2]);
        assert_eq!(check(&sound, &upcasters(&[1]), &lock_text(&sound)), []);
    }

    #[test]
    fn an_edited_published_schema_is_found() {
        let lock = lock_text(&catalogue(&[V1, V2]));
        for edited in [V2.replace("\"default\":0", "\"default\":1"), V2.replace("\"b\"", "\"c\"")] {
            let problems = check(&catalogue(&[V1, &edited]), &upcasters(&[1]), &lock);
            assert!(matches!(&problems[..], [SchemaProblem::Edited { version: 2, .. }]), "{problems:?}");
        }
        // Documentation may be corrected.
        let documented = V1.replace("\"x\"", "\"better\"");
        assert_eq!(check(&catalogue(&[&documented, V2]), &upcasters(&[1]), &lock), []);
    }

    #[test]
    fn a_schema_that_is_not_locked_or_gone_is_found() {
        let lock = lock_text(&catalogue(&[V1]));
        let problems = check(&catalogue(&[V1, V2]), &upcasters(&[1]), &lock);
        assert!(matches!(&problems[..], [SchemaProblem::NotLocked { version: 2, .. }]), "{problems:?}");
        let lock = lock_text(&catalogue(&[V1, V2]));
        let problems = check(&catalogue(&[V1]), &upcasters(&[]), &lock);
        assert!(matches!(&problems[..], [SchemaProblem::Removed { version: 2, .. }]), "{problems:?}");
        let problems = check(&catalogue(&[V1, V2]), &upcasters(&[1]), &format!("{lock}Happened two abc\n"));
        assert!(matches!(&problems[..], [SchemaProblem::BadLockLine { line: 4 }]), "{problems:?}");
    }

    #[test]
    fn an_incompatible_new_version_is_found() {
        for broken in [
            V2.replace(",\"default\":0", ""),
            V2.replace(r#""name":"a","type":"long""#, r#""name":"a","type":"string""#),
        ] {
            let set = catalogue(&[V1, &broken]);
            let problems = check(&set, &upcasters(&[1]), &lock_text(&set));
            assert!(
                matches!(&problems[..], [SchemaProblem::Incompatible { version: 2, older: 1, .. }]),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn a_missing_and_a_stray_upcaster_are_found() {
        let set = catalogue(&[V1, V2]);
        let problems = check(&set, &upcasters(&[]), &lock_text(&set));
        assert_eq!(problems, [SchemaProblem::NoPath { event_type: "Happened".to_owned(), version: 1 }]);
        let problems = check(&set, &upcasters(&[1, 2]), &lock_text(&set));
        assert_eq!(problems, [SchemaProblem::StrayUpcaster { event_type: "Happened".to_owned(), version: 2 }]);
    }

    #[test]
    fn a_gap_or_a_wrong_name_makes_no_catalogue() {
        let published = |event_type, version, definition| Published { event_type, version, definition };
        let gap = [published("Happened", 1, V1), published("Happened", 3, V2)];
        assert!(Catalogue::new("tests", "test", &gap).unwrap_err().to_string().contains("version 2 is missing"));
        let renamed = [published("Occurred", 1, V1)];
        assert!(Catalogue::new("tests", "test", &renamed).unwrap_err().to_string().contains("test.Occurred"));
        let unparsable = [published("Happened", 1, "{")];
        assert!(Catalogue::new("tests", "test", &unparsable).unwrap_err().to_string().contains("does not parse"));
    }
}
