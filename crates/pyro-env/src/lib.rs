//! Environments: the catalog, their build from Debian's signed archive, and a verified cache.
//!
//! An environment consists of a guest kernel, the modules for its initrd, and a read-only base image. It is built on
//! the user's machine from the distribution's archive, whose signatures apt checks. Running it is outside the scope of
//! this crate.
//!
//! All operations block. The crate prints nothing; configuration is a value ([`CacheConfig`]).

mod build;
mod cache;
mod cancel;
mod catalog;
mod child;
mod debian;
mod error;
mod fsio;
mod image;
mod installed;
mod kernel;
mod layout;
mod lock;
mod manifest;
mod modules;
mod observer;
mod partial;
mod payload;
mod process;
mod prune;
mod remove;
mod trust;
mod verified;

pub use cache::{CacheConfig, EnvironmentCache};
pub use cancel::CancelFlag;
pub use catalog::{CATALOG_VERSION, EnvironmentVersion, UnknownEnvironment, build_space_mib, shell_of};
pub use error::{
    Damage, ErrorKind, InspectError, IoError, ListError, OpenError, PruneError, PullError, Remedy,
    RemoveError, ToolFailure, TrustProblem, Untrusted,
};
pub use image::RootfsFormat;
pub use installed::InstalledEnvironment;
pub use manifest::OpenFiles;
pub use observer::{PullObserver, PullStep, SilentObserver};
pub use payload::{Environment, EnvironmentList, PruneReport, PulledEnvironment, RemovedEnvironment};
pub use process::Tools;
pub use trust::check_path;

/// Entry points for the fuzz targets; they exist only in fuzzing builds.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use crate::manifest::Manifest;

    /// Decodes an `environment.json`.
    pub fn manifest(bytes: &[u8]) {
        if let Ok(manifest) = Manifest::decode(bytes) {
            assert_eq!(Manifest::decode(&manifest.encode()).expect("decodes"), manifest);
        }
    }

    /// Finds the dependencies of a kernel module.
    pub fn module(bytes: &[u8]) {
        let _ = crate::modules::dependencies(bytes);
    }
}
