//! Errors: one enum per operation, each with a coarse [`ErrorKind`] and, where a remedy is known, a hint.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

use crate::catalog::UnknownEnvironment;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The name is not in the catalog.
    UnknownEnvironment,
    /// The environment must be pulled first.
    NotInstalled,
    /// The installed files have changed since they were installed.
    Damaged,
    /// A running VM uses it.
    InUse,
    /// The configuration cannot be used.
    InvalidConfig,
    /// A program, file or permission that the build needs is missing on the host.
    ToolMissing,
    /// A build tool failed, or its result is unusable.
    BuildFailed,
    /// The cache's disk does not have enough free space.
    NoSpace,
    /// The caller cancelled the operation.
    Cancelled,
    /// The operating system returned an error.
    Io,
}

/// A failed file operation, with its path.
#[derive(Debug, Error)]
#[error("cannot {action} {}", .path.display())]
pub struct IoError {
    /// The attempted action, as a verb.
    pub action: &'static str,
    /// The path.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl IoError {
    /// Wraps an error of `action` on `path`, for use with `map_err`.
    pub(crate) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> IoError + 'a {
        move |source| IoError { action, path: path.to_owned(), source }
    }

    /// Returns [`ErrorKind::NoSpace`] if the disk or quota is full, otherwise [`ErrorKind::Io`].
    pub fn kind(&self) -> ErrorKind {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        }
    }
}

/// Why `list` failed.
#[derive(Debug, Error)]
pub enum ListError {
    /// The cache cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Why `inspect` failed.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The name is not in the catalog.
    #[error(transparent)]
    Unknown(#[from] UnknownEnvironment),
    /// The cache cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// What is wrong with an installed environment.
#[derive(Debug, Error)]
pub enum Damage {
    /// `environment.json` is not a manifest that this program writes.
    #[error("{} is not a manifest: {reason}", .path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is missing.
    #[error("{} is missing", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file's size differs from the installed size.
    #[error("{} has {actual} bytes, but {expected} were installed", .path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Installed size, in bytes.
        expected: u64,
        /// Current size, in bytes.
        actual: u64,
    },
    /// A file was modified after it was installed.
    #[error("{} was changed after it was installed", .path.display())]
    Modified {
        /// The file.
        path: PathBuf,
    },
}

/// A file or directory of an environment, or a parent, that other users could change.
#[derive(Debug, Error)]
#[error("{} {problem}", .path.display())]
pub struct Untrusted {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: TrustProblem,
}

/// How other users could change a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustProblem {
    /// It is theirs.
    Owner,
    /// Its mode lets them.
    Writable,
}

impl fmt::Display for TrustProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Owner => "belongs to another user",
            Self::Writable => "may be written by other users",
        })
    }
}

impl Untrusted {
    fn remedy(&self) -> Remedy {
        match self.problem {
            TrustProblem::Owner => Remedy::OtherCacheDir,
            TrustProblem::Writable => Remedy::ProtectFromOthers { path: self.path.clone() },
        }
    }
}

/// Why `open` failed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The name is not in the catalog.
    #[error(transparent)]
    Unknown(#[from] UnknownEnvironment),
    /// The environment must be pulled first.
    #[error("environment '{name}' is not installed")]
    NotInstalled {
        /// The environment.
        name: String,
    },
    /// The installed files have changed since they were installed.
    #[error("environment '{name}' is damaged")]
    Damaged {
        /// The environment.
        name: String,
        /// The first damage found.
        #[source]
        damage: Damage,
    },
    /// Other users could have changed it, or could change it while it is used.
    #[error("environment '{name}' cannot be trusted")]
    Untrusted {
        /// The environment.
        name: String,
        /// The first problem found.
        #[source]
        problem: Untrusted,
    },
    /// The cache cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Why `pull` failed.
#[derive(Debug, Error)]
pub enum PullError {
    /// The name is not in the catalog.
    #[error(transparent)]
    Unknown(#[from] UnknownEnvironment),
    /// The installed environment is damaged, and cannot be replaced while a VM runs on it.
    #[error("environment '{name}' is damaged and cannot be replaced while it is in use")]
    InUse {
        /// The environment.
        name: String,
    },
    /// The configured mirror cannot be used.
    #[error("the mirror '{mirror}' cannot be used: {reason}")]
    InvalidMirror {
        /// The mirror as configured.
        mirror: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The path of the cache directory cannot be passed to the build tools.
    #[error("the cache directory {} cannot be used: {reason}", .path.display())]
    InvalidCacheDir {
        /// The path as configured.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Other users could change what is built.
    #[error("the cache directory cannot be trusted")]
    Untrusted {
        /// The first problem found.
        #[source]
        problem: Untrusted,
    },
    /// A program or file that the build needs is missing on this host.
    #[error("'{tool}' not found; it is needed to build an environment")]
    ToolMissing {
        /// The program or file.
        tool: String,
        /// The package that provides it.
        package: &'static str,
    },
    /// This user may not create the namespaces that a build runs in.
    #[error("cannot create the namespaces that a build runs in: {reason}")]
    NoNamespaces {
        /// The message of the kernel or its helper.
        reason: String,
        /// The user is root, whose remedy differs.
        is_root: bool,
    },
    /// A tool failed.
    #[error("{tool} {failure}{}", Tail(.stderr_tail))]
    BuildFailed {
        /// The tool.
        tool: &'static str,
        /// How it failed.
        failure: ToolFailure,
        /// The end of its standard error.
        stderr_tail: Vec<String>,
    },
    /// The tools succeeded, but their result is unusable.
    #[error("the build produced an unusable environment: {reason}")]
    BadResult {
        /// What is wrong.
        reason: String,
    },
    /// There is not enough free space for a build.
    #[error("{} has {available_mib} MiB free, and building this environment needs {needed_mib} MiB", .path.display())]
    NoSpace {
        /// The cache directory.
        path: PathBuf,
        /// Free space, in MiB.
        available_mib: u64,
        /// Space needed during a build, in MiB.
        needed_mib: u64,
    },
    /// The caller cancelled the operation.
    #[error("cancelled")]
    Cancelled,
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// How a build tool failed.
#[derive(Debug)]
pub enum ToolFailure {
    /// It could not be started, or the operating system does not report how it ended.
    Run(io::Error),
    /// It exited with this status, which is not success.
    Ended(ExitStatus),
    /// It was stopped because it printed nothing for this long.
    Silent {
        /// The time without output.
        limit: Duration,
    },
}

impl fmt::Display for ToolFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(error) => write!(f, "cannot be run: {error}"),
            Self::Ended(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "failed with exit status {code}"),
                (None, Some(signal)) => write!(f, "was killed by signal {signal}"),
                (None, None) => write!(f, "failed with {status}"),
            },
            Self::Silent { limit } => {
                write!(f, "was stopped because it made no progress for {} s", limit.as_secs())
            }
        }
    }
}

/// Why an environment cannot be removed.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// The name is not in the catalog.
    #[error(transparent)]
    Unknown(#[from] UnknownEnvironment),
    /// The cache does not have it.
    #[error("environment '{name}' is not installed")]
    NotInstalled {
        /// The environment.
        name: String,
    },
    /// A VM runs on it.
    #[error("environment '{name}' is in use")]
    InUse {
        /// The environment.
        name: String,
    },
    /// A file cannot be read or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl RemoveError {
    /// Returns the kind of the error, which says what a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RemoveError::Unknown(_) => ErrorKind::UnknownEnvironment,
            RemoveError::NotInstalled { .. } => ErrorKind::NotInstalled,
            RemoveError::InUse { .. } => ErrorKind::InUse,
            RemoveError::Io(error) => error.kind(),
        }
    }
}

/// Why `prune` failed. Everything that could be removed has been removed.
#[derive(Debug, Error)]
pub enum PruneError {
    /// A directory cannot be read or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ListError {
    /// Returns the kind of the error, which says what a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        let ListError::Io(error) = self;
        error.kind()
    }
}

impl InspectError {
    /// Returns the kind of the error, which says what a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            InspectError::Unknown(_) => ErrorKind::UnknownEnvironment,
            InspectError::Io(error) => error.kind(),
        }
    }
}

impl OpenError {
    /// Returns the kind of the error, which says what a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            OpenError::Unknown(_) => ErrorKind::UnknownEnvironment,
            OpenError::NotInstalled { .. } => ErrorKind::NotInstalled,
            OpenError::Damaged { .. } => ErrorKind::Damaged,
            OpenError::Untrusted { .. } => ErrorKind::InvalidConfig,
            OpenError::Io(error) => error.kind(),
        }
    }

    /// Returns the remedy, if one is known.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            OpenError::NotInstalled { name } => Some(Remedy::Pull { name: name.clone() }),
            OpenError::Damaged { name, .. } => Some(Remedy::PruneAndPull { name: name.clone() }),
            OpenError::Untrusted { problem, .. } => Some(problem.remedy()),
            OpenError::Unknown(_) | OpenError::Io(_) => None,
        }
    }
}

impl PullError {
    /// Returns the kind of the error, which says what a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PullError::Unknown(_) => ErrorKind::UnknownEnvironment,
            PullError::InUse { .. } => ErrorKind::InUse,
            PullError::InvalidMirror { .. }
            | PullError::InvalidCacheDir { .. }
            | PullError::Untrusted { .. } => ErrorKind::InvalidConfig,
            PullError::ToolMissing { .. } | PullError::NoNamespaces { .. } => ErrorKind::ToolMissing,
            PullError::BuildFailed { stderr_tail, .. } if disk_full(stderr_tail) => ErrorKind::NoSpace,
            PullError::BuildFailed { .. } | PullError::BadResult { .. } => ErrorKind::BuildFailed,
            PullError::NoSpace { .. } => ErrorKind::NoSpace,
            PullError::Cancelled => ErrorKind::Cancelled,
            PullError::Io(error) => error.kind(),
        }
    }

    /// Returns the remedy, if one is known.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            PullError::InUse { .. } => Some(Remedy::DeleteUsers),
            PullError::Untrusted { problem } => Some(problem.remedy()),
            PullError::ToolMissing { package, .. } => Some(Remedy::InstallPackage { package }),
            PullError::NoNamespaces { is_root: true, .. } => Some(Remedy::NamespacesForRoot),
            PullError::NoNamespaces { .. } => Some(Remedy::NamespacesForUser),
            PullError::NoSpace { .. } => Some(Remedy::FreeSpace),
            PullError::BuildFailed { stderr_tail, .. } if disk_full(stderr_tail) => Some(Remedy::FreeSpace),
            PullError::BuildFailed { failure, stderr_tail, .. } => {
                let silent = matches!(failure, ToolFailure::Silent { .. });
                let unreachable = silent || unreachable_archive(stderr_tail);
                unreachable.then_some(Remedy::CheckNetworkOrMirror)
            }
            _ => None,
        }
    }
}

/// The remedy for an error. Front ends word it for their readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Install the environment.
    Pull {
        /// Its name.
        name: String,
    },
    /// Remove the damaged environment, then install it again.
    PruneAndPull {
        /// Its name.
        name: String,
    },
    /// Delete the VMs that run on the environment.
    DeleteUsers,
    /// Install a package of the host's distribution.
    InstallPackage {
        /// Its name.
        package: &'static str,
    },
    /// Build where root may create namespaces.
    NamespacesForRoot,
    /// Give this user what it needs to create namespaces.
    NamespacesForUser,
    /// Free space on the disk of the cache, or use another cache directory.
    FreeSpace,
    /// Check the network, or configure another mirror.
    CheckNetworkOrMirror,
    /// Use a cache directory that belongs to this user.
    OtherCacheDir,
    /// Take the write permission of other users away, or use another cache directory.
    ProtectFromOthers {
        /// The file or directory.
        path: PathBuf,
    },
}

impl PruneError {
    /// Returns the kind of the error, which says what a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        let PruneError::Io(error) = self;
        error.kind()
    }
}

fn disk_full(stderr: &[String]) -> bool {
    stderr.iter().any(|line| line.contains("No space left on device"))
}

fn unreachable_archive(stderr: &[String]) -> bool {
    const SIGNS: [&str; 6] = [
        "Could not connect",
        "Could not resolve",
        "Temporary failure resolving",
        "Connection timed out",
        "Connection failed",
        "Unable to connect",
    ];
    stderr.iter().any(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

struct Tail<'a>(&'a [String]);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_tool_is_described_by_its_end() {
        let error = |failure, stderr_tail: &[&str]| PullError::BuildFailed {
            tool: "mmdebstrap",
            failure,
            stderr_tail: stderr_tail.iter().map(|&line| line.to_owned()).collect(),
        };
        let ended = |status| ToolFailure::Ended(ExitStatus::from_raw(status));
        let silent = error(ToolFailure::Silent { limit: Duration::from_secs(90) }, &[]);
        assert_eq!(silent.to_string(), "mmdebstrap was stopped because it made no progress for 90 s");
        assert_eq!(silent.remedy(), Some(Remedy::CheckNetworkOrMirror));
        let killed = error(ended(9), &["E: No space left on device"]);
        assert_eq!(killed.to_string(), "mmdebstrap was killed by signal 9\n  E: No space left on device");
        assert_eq!((killed.kind(), killed.remedy()), (ErrorKind::NoSpace, Some(Remedy::FreeSpace)));
        let missing = error(ToolFailure::Run(io::ErrorKind::NotFound.into()), &[]);
        assert_eq!(missing.to_string(), "mmdebstrap cannot be run: entity not found");
        let plain = error(ended(0x100), &[]);
        assert_eq!(plain.to_string(), "mmdebstrap failed with exit status 1");
        assert_eq!((plain.kind(), plain.remedy()), (ErrorKind::BuildFailed, None));
    }
}
