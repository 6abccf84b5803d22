//! What the operations return: the JSON payloads of `env list`, `inspect`, `pull` and `prune`.

use std::path::PathBuf;

use serde::Serialize;

/// One environment: catalog data and what the cache holds of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Environment {
    /// Name, such as `debian:12`.
    pub name: String,
    /// Version of the environment.
    pub version: String,
    /// One line for people.
    pub description: String,
    /// Packages the environment promises to hold.
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
    /// null while nothing is installed.
    pub source_digest: Option<String>,
    /// Versions of pyro that may use it.
    pub compatibility: String,
    /// Version of the catalog that describes it.
    pub catalog_version: String,
    /// Whether the cache holds it whole.
    pub installed: bool,
    /// The cache it was looked for in.
    pub cache_dir: PathBuf,
    /// Where it is or would be installed.
    pub install_dir: PathBuf,
    /// The installed manifest; the key is absent while nothing is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub install_manifest: Option<PathBuf>,
    /// Space that its files use, in bytes; the key is absent while nothing is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// The catalog, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnvironmentList {
    /// Version of the catalog.
    pub catalog_version: String,
    /// All environments.
    pub environments: Vec<Environment>,
}

/// An environment that is now installed, and its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PulledEnvironment {
    /// The environment.
    #[serde(flatten)]
    pub environment: Environment,
    /// The guest kernel.
    pub kernel_image: PathBuf,
    /// The read-only base image.
    pub rootfs_image: PathBuf,
    /// What the image was made from, such as `debian:bookworm`.
    pub source: String,
}

/// What `prune` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Names of the removed directories, sorted.
    pub deleted_environment_dirs: Vec<String>,
    /// How many.
    pub count: usize,
}

/// An environment that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedEnvironment {
    /// Space that its files used, in bytes.
    pub freed_bytes: u64,
    /// Digests of the artifacts of its versions, without damaged ones.
    pub digests: Vec<String>,
}
