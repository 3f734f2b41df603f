//! The process log: standard error, text or one JSON object per line.
//!
//! It is for the operator of the agent; what connections did is in the access records.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use super::Error;

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// What to log and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// A level, or comma-separated directives such as `info,mesh_agent::proxy=debug`.
    pub filter: String,
    /// Shape of a line.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::default() }
    }
}

/// Reads a filter.
///
/// # Errors
/// A directive is malformed.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder().parse(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}

/// Sends the process's log to standard error. To be called once, before anything logs.
///
/// # Errors
/// The filter is malformed, or logging was set up before.
pub fn install(settings: &LogSettings) -> Result<(), Error> {
    let filter = parse_filter(&settings.filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let installed = match settings.format {
        LogFormat::Text => {
            let colours = io::IsTerminal::is_terminal(&io::stderr());
            builder.with_ansi(colours).finish().try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).finish().try_init(),
    };
    installed.map_err(|_already| Error::LogInstalled)
}
