//! Copies files into and out of a task.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use bytes::Bytes;
use futures::Stream;
use pyro_supervisor::{ArchiveLimits, Client, CopyError, Pack, Report, Unpack};
use tokio_util::sync::CancellationToken;

use crate::engine::exec::not_asked;
use crate::engine::{Engine, unless_cancelled};
use crate::{CopyLimits, Error, ErrorKind, ExecutionMode, Hint, TaskCopied, VmId, convert};

/// A copy from a task to this host.
#[derive(Clone, Copy, Debug)]
pub struct CopyFromGuest<'a> {
    /// File or directory in the task, relative to `/workspace` unless it is absolute.
    pub path: &'a str,
    /// Where the copy goes. If it is a directory, the copy is placed in it under its own name, otherwise the copy gets
    /// this name.
    pub target: &'a Path,
    /// Limits of the copy.
    pub limits: CopyLimits,
    /// Keep the modes of the guest's files, whatever the umask of this process says.
    pub preserve_mode: bool,
    /// Something that is left out is an error.
    pub strict: bool,
}

/// A copy from this host to a task.
#[derive(Clone, Copy, Debug)]
pub struct CopyToGuest<'a> {
    /// File or directory on this host. Symbolic links are copied as links.
    pub source: &'a Path,
    /// Where the copy goes in the task, as [`CopyFromGuest::target`] says.
    pub path: &'a str,
    /// Limits of the copy.
    pub limits: CopyLimits,
    /// Something that is left out is an error.
    pub strict: bool,
}

impl Engine {
    /// Copies a file or a directory out of a task. Existing files are replaced, and directories are merged.
    ///
    /// Only that copy is written on this host, whatever the guest sends: no symbolic link that leads out of it is
    /// followed or created, no other kind of file is created, and no special permission is set. Modes are subject to the
    /// umask of this process unless they are to be preserved.
    ///
    /// # Errors
    /// `FileFailed` if the file does not exist or cannot be copied, the copy would exceed `limits`, or something is left out of
    /// a strict copy. Part of a directory may have been copied by then. `InvalidInput`, `NotFound`, `Expired`, `WrongState`,
    /// `NotDelivered`, `OutcomeUnknown`, `Cancelled`.
    pub async fn copy_from_task(
        &self,
        task_id: &str,
        copy: CopyFromGuest<'_>,
        cancel: &CancellationToken,
    ) -> Result<TaskCopied, Error> {
        let CopyFromGuest { path, target, limits, preserve_mode, strict } = copy;
        let (id, guest) = self.guest_of_task(task_id).await?;
        check_path(path)?;
        let own_name = Path::new(pyro_supervisor::WORKSPACE).join(path);
        let place = pyro_supervisor::destination(target, own_name.file_name())
            .map_err(|error| copy_error(&id, CopyError::Host(error)))?;
        let pack = Pack { path: path.to_owned(), limits: convert::archive_limits(limits) };
        let mask = if preserve_mode { 0 } else { umask() };
        let copy = async { guest.copy_out(pack, place, mask).await.map_err(|error| copy_error(&id, error)) };
        copied(&id, unless_cancelled(cancel, copy).await?, strict)
    }

    /// Copies a file or a directory of this host into a task, by the same rules.
    ///
    /// # Errors
    /// As [`Engine::copy_from_task`].
    pub async fn copy_to_task(
        &self,
        task_id: &str,
        copy: CopyToGuest<'_>,
        cancel: &CancellationToken,
    ) -> Result<TaskCopied, Error> {
        let CopyToGuest { source, path, limits, strict } = copy;
        let (id, guest) = self.guest_of_task(task_id).await?;
        check_path(path)?;
        let given = source;
        let source = absolute(given)?;
        let name = source.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("{} has no name that a guest could use", source.display()),
            )
        })?;
        let unpack = Unpack {
            path: path.to_owned(),
            name: name.to_owned(),
            limits: convert::archive_limits(limits),
            exact: false,
        };
        let named = given.display().to_string();
        let copy = async {
            guest.copy_in(source.clone(), named, unpack).await.map_err(|error| copy_error(&id, error))
        };
        copied(&id, unless_cancelled(cancel, copy).await?, strict)
    }

    /// Writes the contents of a file of a task to `sink`, with zeros for its holes. Returns how many bytes it has.
    ///
    /// # Errors
    /// As [`Engine::copy_from_task`]; also `FileFailed` if it is not a regular file. Part of the contents may have been written.
    pub async fn read_task_file_to(
        &self,
        task_id: &str,
        path: &str,
        max_bytes: u64,
        sink: impl io::Write + Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<u64, Error> {
        let (id, guest) = self.guest_of_task(task_id).await?;
        check_path(path)?;
        let pack = Pack { path: path.to_owned(), limits: ArchiveLimits { max_entries: 1, max_bytes } };
        let copy = async { guest.read_file_to(pack, sink).await.map_err(|error| copy_error(&id, error)) };
        unless_cancelled(cancel, copy).await
    }

    /// Makes or writes over a file of a task with what `pieces` give, at most `max_bytes`, as [`Engine::write_task_file`] does. Until
    /// they have ended, the file is unchanged.
    ///
    /// # Errors
    /// As [`Engine::copy_to_task`]; `FileFailed` if a piece cannot be read.
    pub async fn write_task_file_from(
        &self,
        task_id: &str,
        path: &str,
        max_bytes: u64,
        pieces: impl Stream<Item = io::Result<Bytes>> + Unpin,
        cancel: &CancellationToken,
    ) -> Result<TaskCopied, Error> {
        let (id, guest) = self.guest_of_task(task_id).await?;
        check_path(path)?;
        let unpack = Unpack {
            path: path.to_owned(),
            name: String::new(),
            limits: ArchiveLimits { max_entries: 1, max_bytes },
            exact: true,
        };
        let copy = async {
            guest.write_file_from(pieces, 0o644, unpack).await.map_err(|error| copy_error(&id, error))
        };
        let bytes = unless_cancelled(cancel, copy).await?;
        copied(&id, Report { entries: 1, bytes, ..Report::default() }, false)
    }

    pub(super) async fn guest_of_task(&self, task_id: &str) -> Result<(VmId, Client), Error> {
        let id = self.task_id(task_id).await?;
        let record = self.record_for_use(&id, None).await?;
        let dir = self.vm_dir(&id);
        match record.execution_mode {
            ExecutionMode::HostCompat => {
                let message = format!("commands of task {id} run on the host, and so its files are here");
                Err(Error::new(ErrorKind::InvalidInput, message)
                    .hint(Hint::HostWorkspace { path: dir.join("workspace").display().to_string() }))
            }
            ExecutionMode::GuestVsock | ExecutionMode::Pending => Ok((id, Client::new(dir).at(self.pace()))),
        }
    }
}

/// Returns the canonical path, so that the last component is a real name and not `.` or `..`.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|error| {
        Error::new(ErrorKind::FileFailed, format!("{} cannot be read", path.display()))
            .hint(Hint::CheckPath)
            .caused_by(error)
    })
}

pub(super) fn check_path(path: &str) -> Result<(), Error> {
    if path.is_empty() || path.len() > 4095 || path.contains('\0') {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a path in a task must have 1 to 4095 bytes and no NUL character",
        ));
    }
    Ok(())
}

/// Returns the umask of this process. It cannot be asked for without a change, which other threads would see, so the kernel's
/// report of the process is read.
fn umask() -> u32 {
    /// The usual one, if the kernel does not say.
    const USUAL: u32 = 0o022;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(USUAL)
}

pub(super) fn copied(id: &VmId, report: Report, strict: bool) -> Result<TaskCopied, Error> {
    let Report { entries, bytes, left_out, examples } = report;
    if strict && left_out > 0 {
        let more = if left_out > examples.len() as u64 { ", and more" } else { "" };
        let message = format!("left out of the copy: {left_out} ({}{more})", examples.join(", "));
        return Err(Error::new(ErrorKind::FileFailed, message));
    }
    Ok(TaskCopied { task_id: id.clone(), entries, bytes, left_out, left_out_examples: examples })
}

pub(super) fn copy_error(id: &VmId, error: CopyError) -> Error {
    match error {
        CopyError::NotDelivered(error) => not_asked(error),
        CopyError::Refused { .. } => {
            Error::new(ErrorKind::NotDelivered, error.to_string()).hint(Hint::NothingWasDone)
        }
        CopyError::Lost => Error::new(
            ErrorKind::OutcomeUnknown,
            format!("connection to task {id} was lost while files were copied"),
        )
        .hint(Hint::CopyAgain),
        CopyError::Stalled => Error::new(
            ErrorKind::OutcomeUnknown,
            format!("the guest of task {id} stopped responding while files were copied"),
        )
        .hint(Hint::CopyAgain)
        .caused_by(error),
        CopyError::Guest { .. } | CopyError::Host(_) | CopyError::Unexpected => {
            let message = error.to_string();
            let copy = Error::new(ErrorKind::FileFailed, message);
            match error.source() {
                Some(_) => copy.with_causes_of(&error),
                None => copy,
            }
        }
    }
}
