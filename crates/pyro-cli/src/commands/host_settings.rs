//! What guests get of this host's settings, as arguments of several commands.

use std::path::PathBuf;

use clap::Args;
use pyro_engine::{Config, HostCa};

use crate::error::CliError;

/// The settings of this host that guests get.
#[derive(Debug, Args)]
pub(crate) struct HostSettingsArgs {
    /// Let guests trust the certification authorities that this host trusts, or those in the PEM file BUNDLE, instead of those of
    /// their image [default: off, or PYRO_HOST_CA]
    #[arg(long, value_name = "BUNDLE", num_args = 0..=1, require_equals = true)]
    host_ca: Option<Option<PathBuf>>,
    /// Give guests with a network this host's proxy settings (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), credentials
    /// included, and access to these proxies [default: off, or PYRO_HOST_PROXY]
    #[arg(long)]
    host_proxy: bool,
}

impl HostSettingsArgs {
    /// Returns the certification authorities that are asked for; `None` without the option.
    ///
    /// # Errors
    /// The path is relative, and there is no current directory.
    pub(crate) fn host_ca(&self) -> Result<Option<HostCa>, CliError> {
        let of_path = |path: &PathBuf| {
            let path = std::path::absolute(path)
                .map_err(|error| CliError::System(format!("cannot find {}", path.display()), error))?;
            Ok(HostCa::Bundle(path.to_string_lossy().into_owned()))
        };
        match &self.host_ca {
            None => Ok(None),
            Some(None) => Ok(Some(HostCa::Host(true))),
            Some(Some(path)) => of_path(path).map(Some),
        }
    }

    /// Returns whether the proxy settings are asked for; `None` without the option.
    pub(crate) fn host_proxy(&self) -> Option<bool> {
        self.host_proxy.then_some(true)
    }

    /// Makes the options the defaults of all guests.
    ///
    /// # Errors
    /// As [`HostSettingsArgs::host_ca`].
    pub(crate) fn apply(&self, config: &mut Config) -> Result<(), CliError> {
        if let Some(host_ca) = self.host_ca()? {
            config.host_ca = Some(host_ca);
        }
        config.host_proxy |= self.host_proxy;
        Ok(())
    }
}
