//! Collects what is wrong with flags, so that a person mends them in one go.

use std::path::Path;
use std::time::Duration;

use super::Invalid;

/// What was found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<Invalid>);

impl Checks {
    /// Notes a problem.
    pub(super) fn refuse(&mut self, flag: &'static str, problem: impl Into<String>) {
        self.0.push(Invalid { flag, problem: problem.into() });
    }

    /// The value must be an existing directory; `purpose` says what it is for.
    pub(super) fn directory(&mut self, flag: &'static str, path: &Path, purpose: &str) {
        match path.metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                self.refuse(flag, format!("{} is not a directory; it has to be {purpose}", path.display()))
            }
            Err(error) => {
                self.refuse(flag, format!("{} cannot be used ({error}); name {purpose}", path.display()));
            }
        }
    }

    /// The value must be a file that can be read; `purpose` says what it is for.
    pub(super) fn readable_file(&mut self, flag: &'static str, path: &Path, purpose: &str) {
        match path.metadata() {
            Ok(found) if found.is_dir() => {
                self.refuse(flag, format!("{} is a directory; name {purpose}", path.display()));
            }
            Ok(_) => {
                if let Err(error) = std::fs::File::open(path) {
                    self.refuse(
                        flag,
                        format!("{} cannot be read ({error}); it has to be {purpose}", path.display()),
                    );
                }
            }
            Err(error) => {
                self.refuse(flag, format!("{} cannot be used ({error}); name {purpose}", path.display()));
            }
        }
    }

    /// The value must be a length of time, and more than none.
    pub(super) fn time(&mut self, flag: &'static str, text: &str) -> Duration {
        let parsed = text.parse::<jiff::SignedDuration>().ok();
        let time = parsed.and_then(|time| Duration::try_from(time).ok()).unwrap_or_default();
        if time.is_zero() {
            self.refuse(flag, format!("{text:?} is not a length of time; write 24h or 90s"));
        }
        time
    }

    /// `value` when nothing was refused.
    pub(super) fn pass<T>(self, value: T) -> Result<T, Vec<Invalid>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}
