//! The directory that a machine shares with its Firecracker: the configuration, sockets, and the unpacked kernel.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use tokio::net::UnixListener;

/// The directory, which is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    dir: OwnedFd,
}

impl Scratch {
    /// Creates the directory, in place of one that a killed supervisor has left. Firecracker may run as another user, and
    /// only pyro's can enter the parent.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o777).create(&path)?;
        // Whatever the umask is.
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        let dir = open_dir(&path)?;
        Ok(Self { path, dir })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a path of a socket that is short enough for its address, however long that of the directory is.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        in_dir(&self.dir).join(name)
    }

    /// Listens on a socket to which Firecracker may connect.
    pub(super) fn listen(&self, name: &str) -> io::Result<UnixListener> {
        let listener = listen(&self.path.join(name))?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    /// Writes a file that Firecracker may read.
    pub(super) fn write(&self, name: &str, content: &Value) -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(self.path.join(name))?;
        file.write_all(content.to_string().as_bytes())
    }
}

/// Listens on a socket to which other users may connect who can enter its directory.
pub(super) fn listen(path: &Path) -> io::Result<StdUnixListener> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = open_dir(parent)?;
    let listener = StdUnixListener::bind(in_dir(&parent).join(name))?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Returns a path of an open directory that is short enough for the address of a socket in it.
fn in_dir(dir: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", dir.as_raw_fd()).into()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next start of this VM removes what is left, and so does the end of the VM.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn sockets_work_however_long_the_path_is_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("x".repeat(200));
        fs::create_dir(&parent).unwrap();
        let path = parent.join("run");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("left"), "").unwrap();
        let scratch = Scratch::create(path.clone()).unwrap();
        assert_eq!(scratch.path(), path);
        assert!(!path.join("left").exists());
        let listener = scratch.listen("socket").unwrap();
        let (connected, accepted) =
            tokio::join!(UnixStream::connect(scratch.socket("socket")), listener.accept());
        connected.unwrap();
        accepted.unwrap();
        scratch.write("config", &Value::Null).unwrap();
        assert_eq!(fs::read(path.join("config")).unwrap(), b"null");
        drop(scratch);
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
    }
}
