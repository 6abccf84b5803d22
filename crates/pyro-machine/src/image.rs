//! Files that a guest is made of.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Files that make up a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestImage {
    /// Equal for equal base images and kernels with modules, and only then.
    pub digest: String,
    /// What boots.
    pub kernel: GuestKernel,
    /// Read-only base image, shared by all machines of the environment.
    pub base_image: PathBuf,
    /// Filesystem type of the base image as the guest kernel names it.
    pub base_filesystem: String,
    /// Pre-made empty ext4 image that is copied, sparsely, as the machine's writable layer.
    pub layer_template: PathBuf,
}

/// The kernel of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestKernel {
    /// One that needs modules to find its disks and its host. [`GuestImage::digest`] covers both.
    WithModules {
        /// Kernel image.
        image: PathBuf,
        /// cpio archive with the kernel modules in load order.
        modules: PathBuf,
    },
    /// One that has all it needs built in. No digest covers it, so the identity of the file stands for its content.
    SelfContained {
        /// Kernel image.
        image: PathBuf,
    },
}

impl GuestKernel {
    /// Kernel image.
    pub fn image(&self) -> &Path {
        match self {
            Self::WithModules { image, .. } | Self::SelfContained { image } => image,
        }
    }

    /// Archive with the modules, if it needs any.
    pub fn modules(&self) -> Option<&Path> {
        match self {
            Self::WithModules { modules, .. } => Some(modules),
            Self::SelfContained { .. } => None,
        }
    }
}
