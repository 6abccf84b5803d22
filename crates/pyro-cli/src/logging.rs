//! The log, for debugging: on stderr, and off unless `PYRO_LOG` turns it on. Supervisors always log warnings.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use crate::config::{self, ConfigError, Variables};

/// Sets up the log of this process. When it is off, this only reads a variable.
pub(crate) fn start(variables: &Variables, default_filter: Option<&str>) -> Result<(), ConfigError> {
    let filter = config::log_filter(variables)?.or(default_filter.map(str::to_owned));
    let Some(filter) = filter else { return Ok(()) };
    let parsed = EnvFilter::try_new(&filter).map_err(|_| config::bad_log_filter(&filter))?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}
