//! The available environments. The list is data (`catalog.json`); this module provides types and look-up.

use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;
use thiserror::Error;

/// The catalog's version, which is the package's version.
pub const CATALOG_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The host platform whose environments this build can create and store.
pub(crate) const PLATFORM: &str = "linux-x86_64";

/// Versions of pyro that may use an environment of this catalog.
pub(crate) const COMPATIBILITY: &str = ">=2.0.0,<3.0.0";

/// One environment as described by the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CatalogEntry {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) description: String,
    pub(crate) distribution: String,
    pub(crate) distribution_version: String,
    pub(crate) platform: String,
    /// Codename of the release in the distribution's archive.
    pub(crate) suite: String,
    /// Package whose newest dependency is the guest kernel.
    pub(crate) kernel_package: String,
    /// Shell that runs commands unless their caller chooses another: `sh` or `bash`.
    pub(crate) shell: String,
    /// Packages that the environment promises to contain.
    pub(crate) default_packages: Vec<String>,
    /// Packages installed in addition, so that the promised ones are usable (certificates, headers).
    pub(crate) extra_packages: Vec<String>,
    /// Free space that a build needs, with a margin: tree, packages, kernel, and image at the same time.
    pub(crate) build_space_mib: u64,
}

impl CatalogEntry {
    /// Returns the name of the install directory below the platform's directory.
    pub(crate) fn dir_name(&self) -> String {
        dir_name(&self.name, &self.version)
    }

    /// Returns the version that this catalog describes.
    pub(crate) fn latest(&self) -> EnvironmentVersion {
        EnvironmentVersion::new(&self.name, &self.version)
    }

    /// Returns what the image is made from, as recorded in the manifest.
    pub(crate) fn source(&self) -> String {
        format!("{}:{}", self.distribution, self.suite)
    }

    /// Returns all packages to install in addition to the minimal system.
    pub(crate) fn packages(&self) -> impl Iterator<Item = &str> {
        self.default_packages.iter().chain(&self.extra_packages).map(String::as_str)
    }
}

/// Returns the name of the install directory of a version.
pub(crate) fn dir_name(name: &str, version: &str) -> String {
    format!("{}-{version}", name.replace(':', "_"))
}

/// One version of an environment, possibly older than the one that the catalog describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentVersion {
    /// Name of the environment.
    pub name: String,
    /// Its version, such as `1.0.0`.
    pub version: String,
}

impl EnvironmentVersion {
    /// Maximum length of a version.
    const MAX_VERSION_BYTES: usize = 32;

    /// The version `version` of the environment `name`.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into() }
    }

    /// Returns the name of the install directory; `None` if the catalog has no environment of this name, or the version is not
    /// one. Both may come from a record that someone has changed.
    pub(crate) fn dir_name(&self) -> Option<String> {
        find(&self.name).ok()?;
        let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let is_version =
            self.version.len() <= Self::MAX_VERSION_BYTES && self.version.split('.').all(is_part);
        is_version.then(|| dir_name(&self.name, &self.version))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogFile {
    environments: Vec<CatalogEntry>,
}

static CATALOG: LazyLock<Vec<CatalogEntry>> = LazyLock::new(|| {
    let file: CatalogFile =
        serde_json::from_str(include_str!("catalog.json")).expect("catalog.json is checked by a test");
    let mut environments = file.environments;
    environments.sort_by(|a, b| a.name.cmp(&b.name));
    environments
});

/// Returns all entries, sorted by name.
pub(crate) fn entries() -> &'static [CatalogEntry] {
    &CATALOG
}

/// Returns the shell that runs commands in an environment, if that is not `/bin/sh`.
pub fn shell_of(environment: &str) -> Option<&'static str> {
    find(environment).ok().map(|entry| entry.shell.as_str()).filter(|shell| *shell != "sh")
}

/// Returns the free space that the installation of an environment needs, in MiB.
///
/// # Errors
/// The catalog does not have the name.
pub fn build_space_mib(environment: &str) -> Result<u64, UnknownEnvironment> {
    find(environment).map(|entry| entry.build_space_mib)
}

pub(crate) fn find(name: &str) -> Result<&'static CatalogEntry, UnknownEnvironment> {
    let entry = entries().iter().find(|entry| entry.name == name);
    entry.ok_or_else(|| UnknownEnvironment { name: name.to_owned() })
}

/// The name is not in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct UnknownEnvironment {
    /// The requested name.
    pub name: String,
}

impl fmt::Display for UnknownEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<&str> = entries().iter().map(|entry| entry.name.as_str()).collect();
        write!(f, "unknown environment '{}'; expected one of: {}", self.name, known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_catalog_is_valid_and_holds_the_promised_environments() {
        let packages: Vec<(&str, Vec<&str>)> = entries()
            .iter()
            .map(|e| (e.name.as_str(), e.default_packages.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(
            packages,
            [
                ("debian:12", vec!["bash", "coreutils", "git"]),
                (
                    "debian:12-agent",
                    vec![
                        "bash",
                        "coreutils",
                        "git",
                        "gcc",
                        "make",
                        "python3",
                        "nodejs",
                        "jq",
                        "ripgrep",
                        "tmux"
                    ]
                ),
                ("debian:12-base", vec!["bash", "coreutils"]),
                ("debian:12-build", vec!["bash", "coreutils", "git", "gcc", "make", "cmake", "python3"]),
            ]
        );
        let dirs: BTreeSet<String> = entries().iter().map(CatalogEntry::dir_name).collect();
        assert_eq!(dirs.len(), entries().len(), "two environments share a directory");
        for entry in entries() {
            assert!(EnvironmentVersion::new(&entry.name, &entry.version).dir_name().is_some());
            assert_eq!(entry.platform, PLATFORM);
            assert!(["sh", "bash"].contains(&&*entry.shell));
            // These words become arguments of package tools, so they must not look like an option or a pattern.
            for word in entry.packages().chain([entry.suite.as_str(), &entry.kernel_package]) {
                assert!(word.starts_with(|c: char| c.is_ascii_lowercase()), "{word}");
                assert!(word.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)), "{word}");
            }
        }
    }

    /// Commands of agents rely on them.
    #[test]
    fn the_catalog_holds_the_small_tools_beside_the_promised_packages() {
        let packages: Vec<(&str, String)> =
            entries().iter().map(|entry| (entry.name.as_str(), entry.extra_packages.join(" "))).collect();
        let expected = [
            ("debian:12", "ca-certificates curl file less patch procps unzip xz-utils"),
            (
                "debian:12-agent",
                "bc ca-certificates curl file g++ gdb iproute2 iputils-ping less libc6-dev npm openssh-client patch procps psmisc python-is-python3 python3-pip python3-venv rsync strace sudo tree unzip vim-tiny xz-utils zip",
            ),
            ("debian:12-base", "ca-certificates"),
            (
                "debian:12-build",
                "ca-certificates curl file g++ less libc6-dev patch procps python-is-python3 python3-pip python3-venv unzip xz-utils",
            ),
        ];
        assert_eq!(packages, expected.map(|(name, packages)| (name, packages.to_owned())));
    }

    #[test]
    fn a_version_names_a_directory_of_the_cache_and_no_other() {
        let dir_name = |name, version| EnvironmentVersion::new(name, version).dir_name();
        assert_eq!(dir_name("debian:12", "0.9.rc1").as_deref(), Some("debian_12-0.9.rc1"));
        let too_long = "1".repeat(33);
        for version in ["", ".", "..", "1..0", "1/../..", "1.0 ", "1_0", &too_long] {
            assert_eq!(dir_name("debian:12", version), None, "{version}");
        }
        assert_eq!(dir_name("debian:12/..", "1.0.0"), None);
    }

    #[test]
    fn only_the_environment_for_agents_has_another_shell() {
        let shells: Vec<_> = entries().iter().filter_map(|entry| shell_of(&entry.name)).collect();
        assert_eq!((shells, shell_of("debian:12-agent")), (vec!["bash"], Some("bash")));
        assert_eq!(shell_of("x"), None);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = find("x").expect_err("no such environment");
        assert_eq!(
            error.to_string(),
            "unknown environment 'x'; expected one of: debian:12, debian:12-agent, debian:12-base, debian:12-build"
        );
    }

    proptest! {
        #[test]
        fn only_catalogued_names_are_found(name in ".{0,20}") {
            prop_assert_eq!(find(&name).is_ok(), entries().iter().any(|e| e.name == name));
        }

        #[test]
        fn directory_names_are_one_safe_component(name in "[a-z]{1,8}(:[a-z0-9-]{1,8})?", version in "[0-9.]{1,6}") {
            let dir = dir_name(&name, &version);
            prop_assert!(!dir.contains(['/', ':']));
            prop_assert!(!dir.starts_with('.'));
            let expected = format!("-{version}");
            prop_assert!(dir.ends_with(&expected));
        }
    }
}
