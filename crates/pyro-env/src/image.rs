//! The read-only base image.

use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::process::Tools;

/// File system of a base image. `Display` gives the name the guest mounts it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RootfsFormat {
    /// EROFS, uncompressed.
    Erofs,
}

impl RootfsFormat {
    /// What new environments are built as; `docs/design/0002-base-image-format.md` says why.
    pub(crate) const CHOSEN: RootfsFormat = RootfsFormat::Erofs;

    pub(crate) fn file_name(self) -> &'static str {
        match self {
            RootfsFormat::Erofs => "rootfs.erofs",
        }
    }

    /// The command that writes `tree` to `image`.
    pub(crate) fn pack(self, tree: &Path, image: &Path, tools: &Tools) -> Command {
        match self {
            RootfsFormat::Erofs => {
                let mut command = tools.confined(&tools.mkfs_erofs);
                // Python compares source times with those in its byte code, make those of its inputs.
                command.args(["--quiet", "--preserve-mtime"]).arg(image).arg(tree);
                command
            }
        }
    }
}

impl fmt::Display for RootfsFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RootfsFormat::Erofs => "erofs",
        })
    }
}
