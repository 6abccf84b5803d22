//! The hosts of package registries. Their names are those in the settings of the host's own package managers, or else what a
//! package manager itself has as its default.

mod cargo;
mod clients;
mod debian;
mod npm;
mod pypi;

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pyro_machine::spawn::Spawn;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

pub use self::clients::PackageClients;
use self::clients::{Configured, Question, Source};
use crate::{AllowedDomain, Config, Domain, Error, ErrorKind, NetworkPolicy, Preset, search_path};

/// Time limit for a package manager to report its default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of its answer in bytes.
const MAX_ANSWER: u64 = 16 << 10;

/// Why the hosts of a preset are not known. URLs are not shown, because they may contain credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusablePreset {
    #[error(
        "cannot find the hosts of @{preset}: {reason}; name them with allow_domains (CLI: --allow-domain NAME)"
    )]
    NotFound { preset: Preset, reason: &'static str },
    #[error("cannot read {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("invalid settings in {}: expected TOML", .0.display())]
    Toml(PathBuf),
    #[error(
        "invalid package host in {from}: expected a URL that starts with http:// or https:// and has a host name"
    )]
    Url { from: String },
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
pub(crate) async fn expand(policy: NetworkPolicy, config: &Config) -> Result<NetworkPolicy, UnusablePreset> {
    let mut allow_domains = Vec::new();
    for entry in &policy.allow_domains {
        match entry {
            AllowedDomain::Domain(_) => allow_domains.push(entry.clone()),
            AllowedDomain::Preset(preset) => {
                let domains = hosts(*preset, config).await?;
                allow_domains.extend(domains.into_iter().map(AllowedDomain::Domain));
            }
        }
    }
    Ok(NetworkPolicy { allow_domains, ..policy })
}

async fn hosts(preset: Preset, config: &Config) -> Result<Vec<Domain>, UnusablePreset> {
    let clients = &config.package_clients;
    let Configured { mut sources, default } = match preset {
        Preset::Debian => debian::configured(clients, config.debian_mirror.as_deref())?,
        Preset::Pypi => pypi::configured(clients)?,
        Preset::Npm => npm::configured(clients)?,
        Preset::Crates => cargo::configured(clients)?,
    };
    if let Some(question) = default {
        sources.extend(ask(&question, config).await);
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

/// Returns what a package manager reports. Nothing if it is not installed, fails, or takes too long.
async fn ask(question: &Question, config: &Config) -> Vec<Source> {
    let Some(program) = search_path::find(question.program, &config.search_path) else { return Vec::new() };
    let home = config.package_clients.home.clone().unwrap_or_default();
    let spawn = Spawn::new(program)
        .args(question.args)
        .current_dir(std::path::Path::new("/"))
        .clear_env()
        .env("PATH", &config.search_path)
        .env("HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let answer = async {
        let mut child = spawn.start().ok()?;
        let mut text = String::new();
        child.stdout.take()?.take(MAX_ANSWER).read_to_string(&mut text).await.ok()?;
        child.wait().await.ok()?.success().then_some(text)
    };
    let text = timeout(ANSWER_TIMEOUT, answer).await.ok().flatten().unwrap_or_default();
    let from = format!("the answer of {}", question.program);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|url| Source::new(url, &from)).collect()
}

#[cfg(test)]
mod tests;
