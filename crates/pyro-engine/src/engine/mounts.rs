//! Directories of this host in guests: which may be mounted, and the processes that serve them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};
use std::process::Stdio;
use std::time::Duration;

use pyro_api::check_mounts;
use pyro_machine::Confinement;
use pyro_machine::spawn::Spawn;
use pyro_mount::{DIRECTORY_FD, REPORT_FD, SOCKET_FD, is_of_kernel};
use pyro_supervisor::{MountPoint, MountSockets};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::{Engine, Shared};
use crate::config::{Config, MountRoots};
use crate::{DirectoryMount, Error, ErrorKind, Hint};

/// Name of the hidden subcommand that serves one directory.
pub const MOUNT_COMMAND: &str = "mount-server";

/// Time limit for a server to confine itself.
const REPORT_LIMIT: Duration = Duration::from_secs(10);
/// Maximum size of its report, and of what it prints, in bytes.
const REPORT_BYTES: u64 = 16 << 10;
/// Size of a socket's buffer, in bytes: more than the largest message.
const BUFFER_BYTES: usize = 256 << 10;
/// Directories of the host that are never mounted, nor what is below them.
const REFUSED: [&str; 3] = ["/proc", "/sys", "/dev"];

impl Engine {
    /// Returns the mounts of a new guest, with the true paths of their directories.
    ///
    /// # Errors
    /// `InvalidInput` if a directory does not exist or may not be mounted.
    pub(super) async fn check_mounts(&self, mounts: &[DirectoryMount]) -> Result<Vec<DirectoryMount>, Error> {
        check_mounts(mounts)?;
        if mounts.is_empty() {
            return Ok(Vec::new());
        }
        let mut mounts = mounts.to_vec();
        // A directory is mounted before what is mounted in it.
        mounts.sort_by(|a, b| a.guest.cmp(&b.guest));
        self.blocking(move |shared| mounts.into_iter().map(|mount| resolve(shared, mount)).collect()).await
    }

    /// Starts the servers of a guest's directories.
    ///
    /// # Errors
    /// `BootFailed` if a directory is not there any more; `VmUnavailable` if a server cannot be started or confined.
    pub(super) async fn serve_mounts(
        &self,
        mounts: &[DirectoryMount],
    ) -> Result<(Vec<MountPoint>, MountSockets), Error> {
        let mut points = Vec::new();
        let mut sockets = Vec::new();
        for mount in mounts {
            sockets.push(self.serve_mount(mount).await?);
            points.push(mount_point(mount));
        }
        Ok((points, sockets.into_iter().collect()))
    }

    /// Starts the server of a directory, and returns the guest's end of its socket. The server ends when that is closed.
    pub(super) async fn serve_mount(&self, mount: &DirectoryMount) -> Result<OwnedFd, Error> {
        let checked = mount.clone();
        let directory = self.blocking(move |shared| open(shared, &checked)).await?;
        let started = start(&self.config().program, mount, directory).await;
        let (socket, confinement) = started.map_err(|error| {
            let message = format!("the server of {} cannot be started", mount.host);
            Error::new(ErrorKind::VmUnavailable, message).caused_by(error)
        })?;
        let missing = confinement.missing_self_applied();
        if self.config().requires_full_confinement && !missing.is_empty() {
            let missing: Vec<_> =
                missing.into_iter().map(|(layer, reason)| format!("{layer} ({reason})")).collect();
            let message =
                format!("the server of {} cannot be confined fully: {}", mount.host, missing.join(", "));
            return Err(Error::new(ErrorKind::VmUnavailable, message));
        }
        Ok(socket)
    }
}

pub(super) fn mount_point(mount: &DirectoryMount) -> MountPoint {
    let DirectoryMount { host, guest, writable, uid } = mount.clone();
    MountPoint { host: host.into(), guest, writable, owner: uid }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message).naming("mounts")
}

/// Checks a directory, and returns the mount with its true path. Blocks.
fn resolve(shared: &Shared, mount: DirectoryMount) -> Result<DirectoryMount, Error> {
    let DirectoryMount { host, .. } = &mount;
    let path = fs::canonicalize(host)
        .map_err(|error| invalid(format!("cannot mount {host}: no such directory")).caused_by(error))?;
    if !path.is_dir() {
        return Err(invalid(format!("cannot mount {host}: it is not a directory")));
    }
    let Some(path) = path.to_str() else {
        return Err(invalid(format!("cannot mount {host}: its path is not valid UTF-8")));
    };
    let mount = DirectoryMount { host: path.to_owned(), ..mount };
    check_place(&shared.config, &mount)?;
    let opened = open_without_links(Path::new(&mount.host))
        .map_err(|errno| invalid(format!("cannot mount {}", mount.host)).caused_by(io::Error::from(errno)))?;
    check_file_system(&mount, &opened)?;
    Ok(mount)
}

/// Checks that a directory, whose path is without symbolic links, may be mounted. Blocks.
fn check_place(config: &Config, mount: &DirectoryMount) -> Result<(), Error> {
    let (shown, path) = (&mount.host, Path::new(&mount.host));
    if config.mount_roots == MountRoots::Off {
        return Err(invalid("directories of this host cannot be mounted: PYRO_MOUNTS is off".to_owned()));
    }
    if !config.mount_roots.include(path) {
        return Err(invalid(format!("cannot mount {shown}: PYRO_MOUNTS does not allow it")));
    }
    if let Some(roots) = &config.client_mounts
        && !roots.iter().any(|root| root.allows(mount))
    {
        let read_only = DirectoryMount { writable: false, ..mount.clone() };
        let text = match roots.iter().any(|root| root.allows(&read_only)) {
            true => "the server that was asked allows it read-only (--allow-mount)",
            false => "the server that was asked does not allow it (--allow-mount)",
        };
        return Err(invalid(format!("cannot mount {shown}: {text}")));
    }
    if path == Path::new("/") || REFUSED.iter().any(|refused| path.starts_with(refused)) {
        return Err(invalid(format!("cannot mount {shown}: choose a directory with files of yours")));
    }
    for own in [&config.base_dir, &config.cache_dir] {
        let own = fs::canonicalize(own).unwrap_or_else(|_| own.clone());
        if path.starts_with(&own) || own.starts_with(path) {
            let text = "pyro's own files, which guests must not reach, are in it or above it";
            return Err(invalid(format!("cannot mount {shown}: {text}")));
        }
    }
    Ok(())
}

/// Opens a directory that was checked when its guest was created. Blocks.
fn open(shared: &Shared, mount: &DirectoryMount) -> Result<OwnedFd, Error> {
    let (shown, path) = (&mount.host, Path::new(&mount.host));
    let lost = |cause: io::Error| {
        let message = format!("cannot mount {shown}: the directory is not there any more");
        Error::new(ErrorKind::BootFailed, message)
            .caused_by(cause)
            .hint(Hint::RestoreDirectory { path: shown.clone() })
    };
    if fs::canonicalize(path).map_err(lost)? != path {
        return Err(invalid(format!("cannot mount {shown}: it is a symbolic link now")));
    }
    check_place(&shared.config, mount)?;
    let opened = open_without_links(path).map_err(|errno| lost(errno.into()))?;
    check_file_system(mount, &opened)?;
    Ok(opened)
}

/// Checks that the files of a directory are not made by the kernel, wherever their file system is mounted. Blocks.
fn check_file_system(mount: &DirectoryMount, opened: &OwnedFd) -> Result<(), Error> {
    let shown = &mount.host;
    match is_of_kernel(opened) {
        Ok(false) => Ok(()),
        Ok(true) => Err(invalid(format!("cannot mount {shown}: its files are made by this host's kernel"))),
        Err(error) => Err(invalid(format!("cannot mount {shown}")).caused_by(error)),
    }
}

/// Opens a directory, one name at a time: a guest that may change a directory above it must not lead this elsewhere.
fn open_without_links(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty())?;
    let mut names = path.components().filter(|part| *part != Component::RootDir);
    names.try_fold(root, |directory, name| openat(directory, name.as_os_str(), flags, Mode::empty()))
}

/// Starts a server, and waits until it is confined.
async fn start(
    program: &Path,
    mount: &DirectoryMount,
    directory: OwnedFd,
) -> io::Result<(OwnedFd, Confinement)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for socket in [ours.as_fd(), theirs.as_fd()] {
        // The kernel may give less, which is enough for the largest message by default.
        let _ = sockopt::set_socket_send_buffer_size(socket, BUFFER_BYTES);
    }
    let (report, writer) = io::pipe()?;
    let access = if mount.writable { "rw" } else { "ro" };
    let mut server = Spawn::new(program)
        // The path tells in a list of processes what it serves.
        .args([MOUNT_COMMAND, access, &mount.uid.to_string(), &mount.host])
        .current_dir(Path::new("/"))
        .clear_env()
        .stderr(Stdio::piped())
        .inherit(theirs, SOCKET_FD)
        .inherit(directory, DIRECTORY_FD)
        .inherit(writer, REPORT_FD)
        .own_process_group()
        .outlive_handle()
        .start()?;
    let mut report = pipe::Receiver::from_owned_fd(report.into())?.take(REPORT_BYTES);
    let mut text = Vec::new();
    let reported = timeout(REPORT_LIMIT, report.read_to_end(&mut text)).await;
    match serde_json::from_slice(&text) {
        Ok(confinement) => Ok((ours, confinement)),
        Err(_) => {
            drop(ours);
            let _ = server.start_kill();
            let mut message = String::new();
            if let Some(stderr) = server.stderr.take() {
                let _ = timeout(REPORT_LIMIT, stderr.take(REPORT_BYTES).read_to_string(&mut message)).await;
            }
            reported??;
            Err(io::Error::other(message.trim().to_owned()))
        }
    }
}

/// Serves one directory, on the descriptors that the parent process has passed. `words` are the arguments of
/// [`MOUNT_COMMAND`]. The process does nothing else.
///
/// # Errors
/// The descriptors were not passed, or the connection to the guest failed.
pub fn serve_mount(words: &[std::ffi::OsString]) -> Result<(), pyro_mount::RunError> {
    let word = |index: usize| words.get(index).and_then(|word| word.to_str()).unwrap_or_default();
    pyro_mount::run_from_parent(word(0) == "rw", word(1).parse().unwrap_or_default())
}

#[cfg(test)]
mod tests;
