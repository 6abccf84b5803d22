//! What a confined program may see and use, as plain data.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::Resource;

use crate::identity::Identity;
use crate::seccomp::Syscalls;

/// What a program may do with a file or directory that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Read it, and map it as code. The programs in it cannot be executed.
    Library,
    /// Read and execute it.
    Execute,
    /// Read it, write to it and change its size.
    Write,
    /// Use it as a device.
    Device,
    /// Read what is in this directory, create sockets in it, and connect to those. Any user may write to the directory; its
    /// parents keep others out.
    Sockets,
    /// Read everything in it. Only for [`confine_self`](crate::confine_self).
    Tree,
    /// Read and change everything in it: files, directories and symbolic links. Only for
    /// [`confine_self`](crate::confine_self).
    WritableTree,
}

impl Access {
    /// The program changes the file.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Device | Self::Sockets | Self::WritableTree)
    }

    /// The file's content becomes code.
    pub(crate) fn maps_code(self) -> bool {
        matches!(self, Self::Library | Self::Execute)
    }
}

/// A file or directory that a program sees, under the path that it has on the host if no other is chosen.
#[derive(Clone, Debug)]
pub struct Visible {
    /// An absolute path.
    pub path: PathBuf,
    /// The absolute path under which the program sees it. Only in a root of its own: where there can be none, no program is
    /// started.
    pub shown_at: Option<PathBuf>,
    /// What the program may do with it.
    pub access: Access,
    /// The program starts without it if it does not exist.
    pub optional: bool,
    /// The descriptor on which it was checked. The program sees this file, or is not started if another one has its path.
    pub opened: Option<Arc<File>>,
}

impl Visible {
    /// Creates one that must exist.
    pub fn new(path: impl Into<PathBuf>, access: Access) -> Self {
        Self { path: path.into(), shown_at: None, access, optional: false, opened: None }
    }

    /// Sets the descriptor on which the file was checked.
    #[must_use]
    pub fn opened(self, file: Arc<File>) -> Self {
        Self { opened: Some(file), ..self }
    }

    /// Sets the path under which the program sees it.
    #[must_use]
    pub fn shown_at(self, path: impl Into<PathBuf>) -> Self {
        Self { shown_at: Some(path.into()), ..self }
    }

    /// Creates one that may be missing.
    pub fn optional(path: impl Into<PathBuf>, access: Access) -> Self {
        Self { path: path.into(), shown_at: None, access, optional: true, opened: None }
    }
}

/// How much of a resource a process may use.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The resource.
    pub resource: Resource,
    /// The maximum. A lower limit that is in force already stays.
    pub maximum: u64,
    /// It counts the processes of a user, so it only makes sense in a user namespace, which counts its own since Linux 5.14.
    /// Without one, or with an older kernel, it is not set.
    pub per_user: bool,
}

/// How a program is confined.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The files and directories that it sees. The program itself must be among them.
    pub files: Vec<Visible>,
    /// An existing directory that only this process uses. Its root is made there; nothing of it is seen by others.
    pub staging: PathBuf,
    /// Whose rights it has.
    pub identity: Identity,
    /// The system calls that it may use. Others fail with `EPERM`.
    pub syscalls: Syscalls,
    /// What it may use.
    pub limits: Vec<Limit>,
    /// How much likelier than others the kernel ends it when memory runs out, from 0 to 1000.
    pub oom_score_adj: u32,
}

impl Policy {
    /// Whether the program can do nothing without a root of its own.
    pub(crate) fn needs_own_root(&self) -> bool {
        self.files.iter().any(|file| file.shown_at.is_some())
    }
}
