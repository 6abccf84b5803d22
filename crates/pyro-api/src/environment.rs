//! Environments: their catalog data and installation state.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One environment: its catalog data and whether it is installed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Environment {
    /// Name, such as `debian:12`.
    pub name: String,
    /// Version of the environment.
    pub version: String,
    /// Description in one line.
    pub description: String,
    /// Packages that the environment includes.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub default_packages: Vec<String>,
    /// Distribution, such as `debian`.
    pub distribution: String,
    /// Release of the distribution, such as `12`.
    pub distribution_version: String,
    /// Host platform, `linux-x86_64`.
    pub platform: String,
    /// Shell that runs commands unless their caller chooses another: `sh` or `bash`.
    pub shell: String,
    /// Always null: the environments are built from the distribution's archive, not pulled from a registry.
    pub oci_registry: Option<String>,
    /// Always null, see `oci_registry`.
    pub oci_repository: Option<String>,
    /// Always null, see `oci_registry`.
    pub oci_reference: Option<String>,
    /// SHA-256 over the sorted `name=version` lines of every package in the installed image and its kernel;
    /// null if the environment is not installed.
    pub source_digest: Option<String>,
    /// Compatible versions of pyro.
    pub compatibility: String,
    /// Version of the catalog that lists it.
    pub catalog_version: String,
    /// Whether it is installed completely.
    pub installed: bool,
    /// Directory of the environment cache.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::path()"))]
    pub cache_dir: PathBuf,
    /// Installation directory, whether or not it is installed.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::path()"))]
    pub install_dir: PathBuf,
    /// Path of the manifest; absent if the environment is not installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, proptest(strategy = "proptest::option::of(crate::strategies::path())"))]
    pub install_manifest: Option<PathBuf>,
    /// Size of its files, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// The catalog, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct EnvironmentList {
    /// Version of the catalog.
    pub catalog_version: String,
    /// All environments.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub environments: Vec<Environment>,
}

/// An installed environment and its files.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct PulledEnvironment {
    /// The environment.
    #[serde(flatten)]
    pub environment: Environment,
    /// The guest kernel.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::path()"))]
    pub kernel_image: PathBuf,
    /// The read-only base image.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::path()"))]
    pub rootfs_image: PathBuf,
    /// Source of the image, such as `debian:bookworm`.
    pub source: String,
}

/// An environment that was removed from the cache.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RemovedEnvironment {
    /// Name, such as `debian:12`.
    pub environment: String,
    /// Space that its files used in the cache, in bytes.
    pub freed_bytes: u64,
    /// Number of templates that were removed with it.
    pub deleted_templates: usize,
}

/// The environments that `prune` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct PruneReport {
    /// Names of the removed directories, sorted.
    pub deleted_environment_dirs: Vec<String>,
    /// Number of removed directories.
    pub count: usize,
}
