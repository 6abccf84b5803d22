//! What guests get of this host's settings where they are asked for: certification authorities to trust, and proxies. Both
//! are read at each start, so that only the choice is recorded.

mod ca;
mod proxy;

use std::path::Path;

use pyro_machine::network::HostRule;
use pyro_supervisor::{HostSettings, MAX_HOST_SETTINGS_BYTES};

pub(crate) use self::ca::CaSource;
use self::ca::UnusableBundle;
use self::proxy::{Proxies, UnusableProxy};
use crate::{Config, Error, ErrorKind, HostCa, VmSpec};

/// Which of its host's settings a VM gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostChoice {
    /// The certification authorities that it trusts; `None`: those of its image.
    pub(crate) ca: Option<CaSource>,
    /// The proxy settings.
    pub(crate) proxy: bool,
}

/// The settings that were chosen.
#[derive(Debug, Default)]
pub(crate) struct ChosenSettings {
    /// What the guest gets.
    pub(crate) guest: HostSettings,
    /// The proxies that it may reach.
    pub(crate) proxies: Vec<HostRule>,
}

/// Why the settings cannot be given to a guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusableSettings {
    #[error(transparent)]
    Bundle(#[from] UnusableBundle),
    #[error(transparent)]
    Proxy(#[from] UnusableProxy),
    #[error(
        "the host's certificates and proxy settings have {0} bytes; the maximum is {MAX_HOST_SETTINGS_BYTES}"
    )]
    TooLarge(usize),
}

impl From<UnusableSettings> for Error {
    fn from(error: UnusableSettings) -> Self {
        Self::new(ErrorKind::InvalidInput, error.to_string())
    }
}

impl HostChoice {
    /// Returns what a request asks for, or else the configuration.
    pub(crate) fn of(spec: &VmSpec, config: &Config) -> Self {
        let ca = match spec.host_ca.as_ref().or(config.host_ca.as_ref()) {
            None | Some(HostCa::Host(false)) => None,
            Some(HostCa::Host(true)) => Some(CaSource::Host),
            Some(HostCa::Bundle(path)) => Some(CaSource::Bundle(path.into())),
        };
        Self { ca, proxy: spec.network && spec.host_proxy.unwrap_or(config.host_proxy) }
    }

    /// Returns the file with certificates that a request or the configuration named.
    pub(crate) fn bundle(&self) -> Option<&Path> {
        match &self.ca {
            Some(CaSource::Bundle(path)) => Some(path),
            Some(CaSource::Host) | None => None,
        }
    }

    /// Returns how it is shown.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = (String, String)> {
        let ca = self.ca.as_ref().map(|source| ("host_ca".to_owned(), source.to_string()));
        let proxy = self.proxy.then(|| ("host_proxy".to_owned(), "true".to_owned()));
        ca.into_iter().chain(proxy)
    }

    /// Reads what was chosen. Blocks.
    ///
    /// # Errors
    /// [`UnusableSettings`], which contains no credentials.
    pub(crate) fn read(&self, config: &Config) -> Result<ChosenSettings, UnusableSettings> {
        let ca_bundle = self.ca.as_ref().map(|source| source.read(config.ssl_cert_file.as_deref()));
        let ca_bundle = ca_bundle.transpose()?;
        let Proxies { variables, rules: proxies } = match self.proxy {
            true => Proxies::of(&config.proxy_variables.0)?,
            false => Proxies::default(),
        };
        let bytes = ca_bundle.as_ref().map_or(0, String::len)
            + variables.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        match bytes > MAX_HOST_SETTINGS_BYTES {
            true => Err(UnusableSettings::TooLarge(bytes)),
            false => Ok(ChosenSettings { guest: HostSettings { variables, ca_bundle }, proxies }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new("/state".into(), "/cache".into(), "/bin/pyro".into())
    }

    #[test]
    fn a_request_comes_before_the_configuration() {
        let asked =
            |host_ca, host_proxy| VmSpec { network: true, host_ca, host_proxy, ..VmSpec::new("debian:12") };
        let on = Config { host_ca: Some(HostCa::Host(true)), host_proxy: true, ..config() };
        let both = HostChoice { ca: Some(CaSource::Host), proxy: true };
        assert_eq!(HostChoice::of(&asked(None, None), &on), both);
        assert_eq!(HostChoice::of(&asked(Some(HostCa::Host(true)), Some(true)), &config()), both);
        assert_eq!(HostChoice::of(&asked(None, None), &config()), HostChoice::default());
        assert_eq!(
            HostChoice::of(&asked(Some(HostCa::Host(false)), Some(false)), &on),
            HostChoice::default()
        );
        let bundle = HostChoice::of(&asked(Some(HostCa::Bundle("/ca.pem".to_owned())), Some(false)), &on);
        assert_eq!(bundle, HostChoice { ca: Some(CaSource::Bundle("/ca.pem".into())), proxy: false });
        // A guest without a network has no use for a proxy.
        let without_network = HostChoice::of(&VmSpec::new("debian:12"), &on);
        assert_eq!(without_network, HostChoice { ca: Some(CaSource::Host), proxy: false });
    }

    #[test]
    fn the_choice_is_shown_without_its_content() {
        let choice = HostChoice { ca: Some(CaSource::Bundle("/ca.pem".into())), proxy: true };
        let shown: Vec<_> = choice.metadata().collect();
        assert_eq!(
            shown,
            [("host_ca", "/ca.pem"), ("host_proxy", "true")].map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
        assert_eq!(HostChoice::default().metadata().count(), 0);
    }

    #[test]
    fn nothing_that_is_not_chosen_is_read() {
        let config = Config {
            ssl_cert_file: Some("/absent".into()),
            proxy_variables: crate::SecretVariables(vec![("HTTP_PROXY".to_owned(), "not a proxy".into())]),
            ..config()
        };
        let chosen = HostChoice::default().read(&config).unwrap();
        assert_eq!(chosen.guest, HostSettings::default());
        assert!(HostChoice { ca: Some(CaSource::Host), proxy: false }.read(&config).is_err());
        assert!(HostChoice { ca: None, proxy: true }.read(&config).is_err());
    }
}
