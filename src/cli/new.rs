//! `throughline new`: a package of one's own that builds, runs and passes its tests from the first minute.
//!
//! What it writes is in `new/`, as it is written, but for the name. Never overwrites anything.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::WrongUsage;
use crate::app;
use crate::avro::{Catalogue, Published, lock};

/// Files of a package, by path; `thing` in a path is the name as Rust writes modules.
const FILES: [(&str, &str); 10] = [
    (".gitignore", "/target\n"),
    ("Cargo.toml", include_str!("new/Cargo.toml.template")),
    ("README.md", include_str!("new/README.md.template")),
    ("src/main.rs", include_str!("new/main.rs.template")),
    ("src/lib.rs", include_str!("new/lib.rs.template")),
    ("src/thing.rs", include_str!("new/thing.rs.template")),
    ("tests/walk.rs", include_str!("new/walk.rs.template")),
    ("schemas/Opened.v1.avsc", include_str!("new/Opened.v1.avsc.template")),
    ("schemas/Renamed.v1.avsc", include_str!("new/Renamed.v1.avsc.template")),
    ("schemas/Closed.v1.avsc", include_str!("new/Closed.v1.avsc.template")),
];
/// What no package and no module may be called: words of Rust, files and crates of the package, and names that its
/// types would hide.
const TAKEN: &str = "abstract as async await become box break const continue crate do dyn else enum extern false final fn \
    for gen if impl in let loop macro match mod move mut override priv pub ref return self static struct super trait true \
    try type typeof unsafe unsized use virtual where while yield \
    main lib test alloc core std throughline serde garde schemars tokio \
    aggregate app clone context debug decision default err none ok option published refusal result route routes schema \
    schemas some string upcaster upcasters validate vec";

#[derive(Debug, clap::Args)]
pub struct NewArgs {
    /// What one stream is, such as `parcel`; the package, the context and the aggregate are named for it
    name: String,
    /// Where to write it (default: a directory of that name)
    #[arg(long, value_name = "DIRECTORY")]
    path: Option<PathBuf>,
    /// Where the library lies (default: where this program was built from)
    #[arg(long, value_name = "DIRECTORY")]
    library: Option<PathBuf>,
}

pub fn run(args: NewArgs) -> anyhow::Result<ExitCode> {
    let names = Names::of(&args.name)?;
    let directory = args.path.unwrap_or_else(|| PathBuf::from(&args.name));
    if directory.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty: choose another --path, or empty it", directory.display());
    }
    let library = library(args.library)?;
    for (path, text) in FILES {
        write(&directory.join(path.replace("thing", &names.module)), &names.filled(text, &library))?;
    }
    write(&directory.join("schemas/schemas.lock"), &names.lock()?)?;
    let place = directory.display();
    println!("{place} is written. Next:\n\n  cd {place}\n  cargo test\n  cargo run -- dev\n\nIts README.md goes on.");
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(failed)?;
    }
    std::fs::write(path, text).with_context(failed)
}

/// How a manifest names the library: by its path, or by version where this program has left its source behind.
fn library(given: Option<PathBuf>) -> anyhow::Result<String> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = match given {
        Some(path) => {
            let path = path.canonicalize().with_context(|| format!("--library {}", path.display()))?;
            if !path.join("src/lib.rs").is_file() {
                bail!("--library {}: no library lies there: there is no src/lib.rs", path.display());
            }
            path
        }
        None if built_from.join("src/lib.rs").is_file() => built_from.to_owned(),
        None => return Ok(format!("throughline = \"{}\"", env!("CARGO_PKG_VERSION"))),
    };
    // A path is no more TOML than any other text.
    Ok(format!("throughline.path = {}", serde_json::Value::from(path.to_string_lossy())))
}

/// One name as it is written in different places.
struct Names {
    /// `parcel-label`: package, context, topics, paths.
    name: String,
    /// `parcel_label`: module, tables.
    module: String,
    /// `ParcelLabel`.
    kind: String,
    /// `parcelLabelId`.
    id: String,
    /// `parcel label`.
    words: String,
}

impl Names {
    fn of(name: &str) -> Result<Self, WrongUsage> {
        let wrong = |reason: &str| WrongUsage(format!("{reason}; `parcel` and `parcel-label` are such names"));
        app::check_name(name).map_err(|error| wrong(&error.to_string()))?;
        let words: Vec<&str> = name.split('-').collect();
        if words.iter().any(|word| !word.starts_with(|first: char| first.is_ascii_lowercase())) {
            return Err(wrong(&format!("`{name}`: what is between hyphens begins with a letter")));
        }
        if TAKEN.split_whitespace().any(|taken| taken == name) {
            return Err(wrong(&format!("`{name}` means something else in Rust, or in such a package")));
        }
        let capital = |word: &&str| format!("{}{}", word[..1].to_ascii_uppercase(), &word[1..]);
        let kind: String = words.iter().map(capital).collect();
        let id = format!("{}{}Id", words[0], &kind[words[0].len()..]);
        Ok(Self { name: name.to_owned(), module: words.join("_"), words: words.join(" "), kind, id })
    }

    fn filled(&self, text: &str, library: &str) -> String {
        [
            ("{{library}}", library),
            ("{{name}}", &self.name),
            ("{{module}}", &self.module),
            ("{{kind}}", &self.kind),
            ("{{id}}", &self.id),
            ("{{words}}", &self.words),
        ]
        .iter()
        .fold(text.to_owned(), |text, (place, name)| text.replace(place, name))
    }

    fn lock(&self) -> anyhow::Result<String> {
        let schemas = FILES.iter().filter_map(|(path, text)| {
            let event_type = path.strip_prefix("schemas/")?.strip_suffix(".v1.avsc")?;
            Some((event_type, self.filled(text, "")))
        });
        let schemas: Vec<(&'static str, String)> = schemas.collect();
        let published: Vec<Published<'_>> = schemas
            .iter()
            .map(|(event_type, definition)| Published { event_type, version: 1, definition: definition.as_str() })
            .collect();
        let namespace = format!("example.{}", self.module);
        Ok(lock::lock_text(&Catalogue::new(&format!("{}-events", self.name), &namespace, &published)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_is_written_as_each_place_wants_it() {
        let names = Names::of("parcel-label2").unwrap();
        let all = [names.name, names.module, names.kind, names.id, names.words];
        assert_eq!(all, ["parcel-label2", "parcel_label2", "ParcelLabel2", "parcelLabel2Id", "parcel label2"]);
        for wrong in [
            "", "Parcel", "1st", "a_b", "a b", "a-", "a--b", "a-1", "../x", "fn", "self", "lib", "tokio", "string",
            "route",
        ] {
            let said = Names::of(wrong).err().unwrap_or_else(|| panic!("{wrong} is a name")).to_string();
            assert!(said.contains("`parcel`"), "{said}");
        }
    }

    #[test]
    fn no_place_is_left_unfilled() {
        let names = Names::of("parcel").unwrap();
        for (path, text) in FILES {
            let filled = names.filled(text, "throughline = \"1\"");
            assert!(!filled.contains("{{") && !filled.contains("}}"), "{path}: {filled}");
        }
        assert_eq!(names.lock().unwrap().lines().count(), 4);
    }
}
