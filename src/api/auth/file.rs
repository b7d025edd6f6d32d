//! A file whose parsed content is renewed when the file changes, without a restart.
//!
//! A change that cannot be parsed is logged and leaves the last good content in use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::AuthError;

/// The file's time of change is looked up this often, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Parsed content of a watched file.
#[derive(Debug)]
pub(super) struct Watched<T> {
    setting: &'static str,
    path: PathBuf,
    parse: fn(&str) -> Result<T, String>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    content: Arc<T>,
    changed_at: Option<SystemTime>,
    looked_at: Instant,
}

impl<T> Watched<T> {
    /// Reads and parses the file now.
    pub(super) fn open(
        setting: &'static str,
        path: &Path,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Self, AuthError> {
        let error = |reason: String| AuthError { setting, path: path.display().to_string(), reason };
        let changed_at = changed_at(path);
        let text = std::fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
        let content = Arc::new(parse(&text).map_err(error)?);
        let state = Mutex::new(State { content, changed_at, looked_at: Instant::now() });
        Ok(Self { setting, path: path.to_owned(), parse, state })
    }

    /// The content as of the last change that could be parsed.
    pub(super) fn current(&self) -> Arc<T> {
        self.current_within(LOOK_EVERY)
    }

    pub(super) fn current_within(&self, look_every: Duration) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked_at.elapsed() < look_every {
            return state.content.clone();
        }
        state.looked_at = Instant::now();
        let now = changed_at(&self.path);
        if now != state.changed_at {
            state.changed_at = now;
            let read = std::fs::read_to_string(&self.path).map_err(|error| error.to_string());
            match read.and_then(|text| (self.parse)(&text)) {
                Ok(content) => {
                    tracing::info!(setting = self.setting, path = %self.path.display(), "read again after a change");
                    state.content = Arc::new(content);
                }
                Err(reason) => {
                    let path = self.path.display();
                    tracing::error!(setting = self.setting, %path, reason, "changed, but unusable: the last good one stays");
                }
            }
        }
        state.content.clone()
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file of a test's own, removed with it.
    pub(in crate::api::auth) struct TestFile(pub(in crate::api::auth) PathBuf);

    impl TestFile {
        pub(in crate::api::auth) fn new(content: &str) -> Self {
            let path = std::env::temp_dir().join(format!("throughline-auth-{}", uuid::Uuid::new_v4()));
            std::fs::write(&path, content).unwrap();
            Self(path)
        }

        /// Replaces the content, with a time of change that differs for certain.
        pub(in crate::api::auth) fn replace(&self, content: &str) {
            let before = changed_at(&self.0).unwrap();
            std::fs::write(&self.0, content).unwrap();
            let file = std::fs::File::options().write(true).open(&self.0).unwrap();
            file.set_modified(before + Duration::from_secs(5)).unwrap();
        }
    }

    impl Drop for TestFile {
        fn drop(&mut self) {
            drop(std::fs::remove_file(&self.0));
        }
    }

    #[test]
    fn a_change_is_taken_over_and_a_bad_one_is_not() {
        let file = TestFile::new("1");
        let watched = Watched::open("test", &file.0, |text| text.parse::<u32>().map_err(|e| e.to_string())).unwrap();
        assert_eq!(*watched.current(), 1);
        file.replace("2");
        assert_eq!(*watched.current_within(Duration::ZERO), 2);
        file.replace("x");
        assert_eq!(*watched.current_within(Duration::ZERO), 2);
    }
}
