//! The files of a guest.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The files of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestImage {
    /// Equal for equal base images and kernels with modules, and only then.
    pub digest: String,
    /// The kernel to boot.
    pub kernel: GuestKernel,
    /// Read-only base image, shared by all machines of the environment.
    pub base_image: PathBuf,
    /// File system type of the base image as the guest kernel names it.
    pub base_filesystem: String,
    /// Pre-made empty ext4 image that is copied, sparsely, as the machine's writable layer.
    pub layer_template: PathBuf,
}

/// The kernel of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestKernel {
    /// A kernel that needs modules to find its disks and its host. [`GuestImage::digest`] covers both.
    WithModules {
        /// Kernel image.
        image: PathBuf,
        /// cpio archive with the kernel modules in load order.
        modules: PathBuf,
    },
    /// A kernel with everything it needs built in. No digest covers it, so the file's identity stands for its content.
    SelfContained {
        /// Kernel image.
        image: PathBuf,
    },
}

impl GuestKernel {
    /// Returns the kernel image.
    pub fn image(&self) -> &Path {
        match self {
            Self::WithModules { image, .. } | Self::SelfContained { image } => image,
        }
    }

    /// Returns the archive with the modules, if the kernel needs any.
    pub fn modules(&self) -> Option<&Path> {
        match self {
            Self::WithModules { modules, .. } => Some(modules),
            Self::SelfContained { .. } => None,
        }
    }
}
