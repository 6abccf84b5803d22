//! Where the package managers of a host keep their settings.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::UnusablePreset;
use super::default_hosts::Question;
use crate::host_file::{self, UnusableFile};
use crate::{Domain, SecretVariables};

/// Maximum size of a file with settings, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where the package managers of a host keep their settings.
#[derive(Debug, Clone, Default)]
pub struct PackageClients {
    /// Where `/etc` is; empty: in `/`.
    pub root: PathBuf,
    /// The user's home.
    pub home: Option<PathBuf>,
    /// Variables such as `PIP_INDEX_URL`.
    pub variables: SecretVariables,
}

/// What is configured.
pub(super) struct Configured {
    pub(super) sources: Vec<Source>,
    /// How to find out the default, which is used too.
    pub(super) default: Option<Question>,
}

/// A URL, and where it was found.
pub(super) struct Source {
    url: String,
    from: String,
}

impl Source {
    pub(super) fn new(url: &str, from: &str) -> Self {
        Self { url: url.to_owned(), from: from.to_owned() }
    }

    /// Returns the host, with the port if the URL names one.
    pub(super) fn domain(&self) -> Result<Domain, UnusablePreset> {
        let invalid = || UnusablePreset::Url { from: self.from.clone() };
        let url = self.url.strip_prefix("sparse+").unwrap_or(&self.url);
        let rest =
            url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).ok_or_else(invalid)?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if is_address(host) {
            return Err(UnusablePreset::Address { from: self.from.clone() });
        }
        let domain: Domain = host.parse().map_err(|_| invalid())?;
        // A pattern is not a host.
        if domain.is_wildcard() { Err(invalid()) } else { Ok(domain) }
    }
}

impl PackageClients {
    /// A path below `/etc` and the like.
    pub(super) fn system(&self, path: &str) -> PathBuf {
        let root = if self.root.as_os_str().is_empty() { Path::new("/") } else { &self.root };
        root.join(path.trim_start_matches('/'))
    }

    /// A path in the user's home.
    pub(super) fn in_home(&self, path: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(path))
    }

    /// A variable, unless it is empty or not UTF-8.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.to_str().filter(|value| !value.is_empty())
    }

    /// The sources in variables, in which white space separates several.
    pub(super) fn in_variables(&self, names: &[&str]) -> Vec<Source> {
        let named = names.iter().filter_map(|name| Some((name, self.variable(name)?)));
        named.flat_map(|(name, value)| value.split_whitespace().map(|url| Source::new(url, name))).collect()
    }
}

/// Whether the host of a URL is an address, perhaps with a port.
fn is_address(host: &str) -> bool {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    host.starts_with('[') || name.parse::<IpAddr>().is_ok()
}

/// Returns a file's text; `None` if there is no such file. Blocks.
pub(super) fn read(path: &Path) -> Result<Option<String>, UnusablePreset> {
    let unusable = |cause| Err(UnusablePreset::Read { path: path.to_owned(), cause });
    match host_file::read(path, MAX_FILE_BYTES) {
        Ok(content) => match String::from_utf8(content) {
            Ok(text) => Ok(Some(text)),
            Err(error) => unusable(io::Error::new(io::ErrorKind::InvalidData, error).into()),
        },
        Err(UnusableFile::Read(error))
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => unusable(error),
    }
}

/// Returns the names and values of a file with lines of `NAME = VALUE`, or with another separator; a line that begins with
/// white space continues the value before it. Names in all sections count.
pub(super) fn assignments(text: &str, separators: &[char]) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';', '[']) {
            continue;
        }
        match (line.starts_with(char::is_whitespace), found.last_mut(), trimmed.split_once(separators)) {
            (true, Some((_, value)), _) => {
                value.push('\n');
                value.push_str(trimmed);
            }
            (_, _, Some((name, value))) => found.push((name.trim().to_owned(), value.trim().to_owned())),
            _ => {}
        }
    }
    found
}
