//! The layout of the cache.
//!
//! ```text
//! <cache>/linux-x86_64/
//!     debian_12-1.0.0/                   an installed environment, mode 0700
//!     .debian_12-1.0.0.build.lock        held by the process that builds it
//!     .debian_12-1.0.0.use.lock          shared to run it; exclusive to remove or replace it
//!     .partial-<random>/                 a build's work directory; its `lock` is held while any of its processes lives
//!     .lock                              held while partial directories are created or checked
//! ```

use std::path::{Path, PathBuf};

use crate::catalog::PLATFORM;

pub(crate) const PARTIAL_PREFIX: &str = ".partial-";
const BUILD_LOCK: &str = ".build.lock";
const USE_LOCK: &str = ".use.lock";

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    cache: PathBuf,
}

impl Layout {
    pub(crate) fn new(cache: PathBuf) -> Self {
        Layout { cache }
    }

    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    pub(crate) fn platform_dir(&self) -> PathBuf {
        self.cache.join(PLATFORM)
    }

    pub(crate) fn install_dir(&self, dir_name: &str) -> PathBuf {
        self.platform_dir().join(dir_name)
    }

    pub(crate) fn platform_lock(&self) -> PathBuf {
        self.platform_dir().join(".lock")
    }

    pub(crate) fn build_lock(&self, dir_name: &str) -> PathBuf {
        self.platform_dir().join(format!(".{dir_name}{BUILD_LOCK}"))
    }

    pub(crate) fn use_lock(&self, dir_name: &str) -> PathBuf {
        self.platform_dir().join(format!(".{dir_name}{USE_LOCK}"))
    }

    /// Returns the name of the install directory to which a lock belongs; `None` if this is not the name of such a lock.
    pub(crate) fn locked_dir(file_name: &str) -> Option<&str> {
        let name = file_name.strip_prefix('.')?;
        let name = name.strip_suffix(BUILD_LOCK).or_else(|| name.strip_suffix(USE_LOCK))?;
        (!name.is_empty()).then_some(name)
    }
}
