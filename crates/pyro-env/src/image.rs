//! The read-only base image.

use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::process::Tools;

/// File system of a base image. `Display` gives the name with which the guest mounts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RootfsFormat {
    /// EROFS, uncompressed.
    Erofs,
}

impl RootfsFormat {
    /// The format of new environments; `docs/design/0002-base-image-format.md` gives the reasons.
    pub(crate) const CHOSEN: RootfsFormat = RootfsFormat::Erofs;

    pub(crate) fn file_name(self) -> &'static str {
        match self {
            RootfsFormat::Erofs => "rootfs.erofs",
        }
    }

    /// Returns the command that writes `tree` to `image`.
    pub(crate) fn pack(self, tree: &Path, image: &Path, tools: &Tools) -> Command {
        match self {
            RootfsFormat::Erofs => {
                let mut command = tools.offline(&tools.mkfs_erofs);
                // Python compares the times of sources with those recorded in its byte code, and make compares those of
                // its inputs.
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
