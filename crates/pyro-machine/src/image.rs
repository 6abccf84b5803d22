//! The files of a guest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::artifact::Artifact;

/// The files of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestImage {
    /// Equal for equal base images and kernels with modules, and only then.
    pub digest: String,
    /// The kernel to boot.
    pub kernel: GuestKernel,
    /// Read-only base image, shared by all machines of the environment.
    pub base_image: Artifact,
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
        image: Artifact,
        /// cpio archive with the kernel modules in load order.
        modules: Artifact,
    },
    /// A kernel with everything it needs built in. No digest covers it, so the file's identity stands for its content.
    SelfContained {
        /// Kernel image.
        image: Artifact,
    },
}

impl GuestImage {
    /// Returns the files whose content the digest covers, in a fixed order: the base image, the kernel, its modules.
    pub fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        [&self.base_image, self.kernel.image()].into_iter().chain(self.kernel.modules())
    }

    /// Replaces these files, in the same order.
    #[must_use]
    pub fn with_artifacts(self, mut replace: impl FnMut(Artifact) -> Artifact) -> Self {
        let base_image = replace(self.base_image);
        let kernel = match self.kernel {
            GuestKernel::WithModules { image, modules } => {
                let image = replace(image);
                GuestKernel::WithModules { image, modules: replace(modules) }
            }
            GuestKernel::SelfContained { image } => GuestKernel::SelfContained { image: replace(image) },
        };
        Self { base_image, kernel, ..self }
    }
}

impl GuestKernel {
    /// Returns the kernel image.
    pub fn image(&self) -> &Artifact {
        match self {
            Self::WithModules { image, .. } | Self::SelfContained { image } => image,
        }
    }

    /// Returns the archive with the modules, if the kernel needs any.
    pub fn modules(&self) -> Option<&Artifact> {
        match self {
            Self::WithModules { modules, .. } => Some(modules),
            Self::SelfContained { .. } => None,
        }
    }
}
