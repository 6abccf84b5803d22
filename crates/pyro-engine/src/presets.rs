//! The hosts of package registries. Their names are those in the settings of the host's own package managers, or else what a
//! package manager itself has as its default.

mod cargo;
mod clients;
mod debian;
mod default_hosts;
mod npm;
mod pypi;

use std::path::PathBuf;

use self::clients::Configured;
pub use self::clients::PackageClients;
pub(crate) use self::default_hosts::DefaultHosts;
use crate::host_file::UnusableFile;
use crate::{AllowedDomain, Config, Domain, Error, ErrorKind, NetworkPolicy, Preset};

/// Why the hosts of a preset are not known. URLs are not shown, because they may contain credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusablePreset {
    #[error(
        "cannot find the hosts of @{preset}: {reason}; name them with allow_domains (CLI: --allow-domain NAME)"
    )]
    NotFound { preset: Preset, reason: &'static str },
    #[error("cannot read {}: {cause}", path.display())]
    Read { path: PathBuf, cause: UnusableFile },
    #[error("invalid settings in {}: expected TOML", .0.display())]
    Toml(PathBuf),
    #[error(
        "invalid package host in {from}: expected a URL that starts with http:// or https:// and has a host name"
    )]
    Url { from: String },
    #[error(
        "invalid package host in {from}: a preset opens names only, and this is an address; in place of the preset, open it with allow_hosts (CLI: --allow-host HOST:PORT) and others with allow_domains (CLI: --allow-domain NAME)"
    )]
    Address { from: String },
    #[error(
        "{} has more than one index that Cargo's config.toml does not name, and any may be the default; name the hosts with allow_domains (CLI: --allow-domain NAME)", .0.display()
    )]
    ManyIndexes(PathBuf),
    #[error("the settings of the package managers were not read: {0}")]
    Lost(#[from] tokio::task::JoinError),
}

impl From<UnusablePreset> for Error {
    fn from(error: UnusablePreset) -> Self {
        Self::new(ErrorKind::InvalidInput, error.to_string())
    }
}

/// Returns the policy with the hosts of its presets in their place.
///
/// # Errors
/// [`UnusablePreset`].
pub(crate) async fn expand(
    policy: NetworkPolicy,
    config: &Config,
    defaults: &DefaultHosts,
) -> Result<NetworkPolicy, UnusablePreset> {
    let mut allow_domains = Vec::new();
    for entry in &policy.allow_domains {
        match entry {
            AllowedDomain::Domain(_) => allow_domains.push(entry.clone()),
            AllowedDomain::Preset(preset) => {
                let domains = hosts(*preset, config, defaults).await?;
                allow_domains.extend(domains.into_iter().map(AllowedDomain::Domain));
            }
        }
    }
    Ok(NetworkPolicy { allow_domains, ..policy })
}

async fn hosts(
    preset: Preset,
    config: &Config,
    defaults: &DefaultHosts,
) -> Result<Vec<Domain>, UnusablePreset> {
    let (clients, debian_mirror) = (config.package_clients.clone(), config.debian_mirror.clone());
    // Their files may be on a server that does not respond.
    let configured = move || match preset {
        Preset::Debian => debian::configured(&clients, debian_mirror.as_deref()),
        Preset::Pypi => pypi::configured(&clients),
        Preset::Npm => npm::configured(&clients),
        Preset::Crates => cargo::configured(&clients),
    };
    let Configured { mut sources, default } = tokio::task::spawn_blocking(configured).await??;
    if let Some(question) = default {
        sources.extend(defaults.of(&question, config).await);
    }
    let mut domains = Vec::new();
    for source in sources {
        let domain = source.domain()?;
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    match domains.is_empty() {
        true => Err(UnusablePreset::NotFound { preset, reason: reason(preset) }),
        false => Ok(domains),
    }
}

fn reason(preset: Preset) -> &'static str {
    match preset {
        Preset::Debian => {
            "PYRO_DEBIAN_MIRROR is not set, and /etc/apt/sources.list and /etc/apt/sources.list.d name no archive"
        }
        Preset::Pypi => {
            "neither PIP_INDEX_URL, UV_DEFAULT_INDEX nor pip.conf names an index, and python3 with pip did not report one"
        }
        Preset::Npm => "neither NPM_CONFIG_REGISTRY nor .npmrc names a registry, and npm did not report one",
        Preset::Crates => {
            "Cargo's config.toml replaces no source, and Cargo has no index of its default registry in its home yet"
        }
    }
}

#[cfg(test)]
mod tests;
