//! Why a guest could not do what it was asked to do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounded::{self, MAX_TEXT_BYTES};

/// A step that failed in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{step}: {cause}")]
pub struct Failure {
    /// What kind of failure it is, for programs.
    pub kind: FailureKind,
    /// The step, in words a user understands.
    #[serde(deserialize_with = "bounded::text")]
    #[schemars(length(max = MAX_TEXT_BYTES))]
    pub step: String,
    /// The cause in words.
    #[serde(deserialize_with = "bounded::text")]
    #[schemars(length(max = MAX_TEXT_BYTES))]
    pub cause: String,
    /// `errno` of the guest's kernel. Absent: the kernel reported no error.
    #[serde(default, deserialize_with = "bounded::errno")]
    pub errno: Option<i32>,
}

/// Kinds of failures in a guest.
///
/// They describe why a step could not be done at all. A program that a command's shell does not find or may not execute is
/// the shell's exit status 127 or 126, not a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The first word of an argument list is not a program.
    CommandNotFound,
    /// The program to start cannot be executed.
    NotExecutable,
    /// The shell that the caller chose, or the guest's own, does not exist.
    ShellNotFound,
    /// The user is not in the guest's `/etc/passwd`.
    UserNotFound,
    /// The group is not in the guest's `/etc/group`.
    GroupNotFound,
    /// The user is not in one of the forms `NAME`, `UID`, `NAME:GROUP` and `UID:GID`.
    InvalidUser,
    /// The working directory does not exist.
    DirectoryNotFound,
    /// A file or directory does not exist.
    FileNotFound,
    /// What should be a directory is something else.
    NotADirectory,
    /// The guest's kernel denies access.
    PermissionDenied,
    /// The command and its environment are larger than the kernel accepts.
    ArgumentListTooLong,
    /// The guest's memory is exhausted.
    OutOfMemory,
    /// The guest's disk is full.
    NoSpace,
    /// The guest cannot start another process.
    TooManyProcesses,
    /// The guest's kernel or the agent cannot do this.
    Unsupported,
    /// Anything else; [`Failure::errno`] and [`Failure::cause`] say more.
    Other,
}

impl FailureKind {
    /// Every kind once.
    pub const ALL: [Self; 16] = [
        Self::CommandNotFound,
        Self::NotExecutable,
        Self::ShellNotFound,
        Self::UserNotFound,
        Self::GroupNotFound,
        Self::InvalidUser,
        Self::DirectoryNotFound,
        Self::FileNotFound,
        Self::NotADirectory,
        Self::PermissionDenied,
        Self::ArgumentListTooLong,
        Self::OutOfMemory,
        Self::NoSpace,
        Self::TooManyProcesses,
        Self::Unsupported,
        Self::Other,
    ];
}
