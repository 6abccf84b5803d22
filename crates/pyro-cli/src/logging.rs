//! The log for people who look for a fault: off unless `PYRO_LOG` asks for it (supervisors always log warnings), and always on stderr.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use crate::config::{self, ConfigError, Variables};

/// Sets up the log of this process. Costs one look at the environment when it is off.
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
