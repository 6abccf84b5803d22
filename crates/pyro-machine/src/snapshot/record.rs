//! What a snapshot looked like when it was made.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::SnapshotError;
use super::layout::{self, LAYER, MEMORY, PARTS, STATE};
use crate::artifact::Artifact;

/// A record is a few hundred bytes; more is damage.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// Content of `template.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) kernel_release: String,
    /// Digest of the guest's environment.
    pub(super) environment: String,
    /// The base image of that environment. Absent in the record of an older release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base_image: Option<PathBuf>,
    /// The boot of the host in which it was made.
    pub(super) boot_id: String,
    /// Digest of the agent in it.
    pub(super) agent: String,
    files: BTreeMap<String, FileRecord>,
}

/// The files of a snapshot, open.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) memory: Artifact,
    pub(super) state: Artifact,
    pub(super) layer: Artifact,
}

/// One file of a snapshot.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    modified_seconds: i64,
    modified_nanos: i64,
    inode: u64,
    /// The time of the inode's last change, which no program can set: it reveals a file whose content was changed and whose
    /// other time was put back.
    changed_seconds: i64,
    changed_nanos: i64,
    /// Over the parts that hold data, each after its position.
    sha256: String,
}

impl Record {
    /// Makes the snapshot's files read-only and describes them.
    pub(super) fn of(dir: &Path, kernel_release: String, environment: &str) -> Result<Self, SnapshotError> {
        let mut files = BTreeMap::new();
        for name in PARTS {
            let path = dir.join(name);
            let describe = || {
                // The VMMs of root run as other users, each as its own. Only pyro's user can enter the directory.
                own(&path)?;
                let file = open_part(&path)?;
                file.set_permissions(fs::Permissions::from_mode(0o444))?;
                let sha256 = digest(&file)?;
                Ok::<_, io::Error>(FileRecord { sha256, ..FileRecord::look(&file)? })
            };
            let record = describe().map_err(SnapshotError::io("read", &path))?;
            files.insert(name.to_owned(), record);
        }
        Ok(Self {
            kernel_release,
            environment: environment.to_owned(),
            base_image: None,
            boot_id: layout::host_boot_id()?,
            agent: pyro_guest_image::SHA256.to_owned(),
            files,
        })
    }

    /// The same with the path of the environment's base image.
    pub(super) fn with_base_image(self, path: &Path) -> Self {
        Self { base_image: Some(path.to_owned()), ..self }
    }

    /// Reads the record. `None`: there is no valid one.
    ///
    /// # Errors
    /// It cannot be read now, which says nothing about it.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut text = Vec::new();
        match File::open(path).and_then(|file| file.take(MAX_RECORD_BYTES).read_to_end(&mut text)) {
            Ok(_) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if is_lasting(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the record, which only its owner may read and change, whatever the umask is.
    pub(super) fn write(&self, path: &Path) -> Result<(), SnapshotError> {
        let write = || {
            let text = serde_json::to_vec_pretty(self)?;
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(path)?.write_all(&text)
        };
        write().map_err(SnapshotError::io("write", path))
    }

    /// Opens the files in `dir`, if they look as they did, without reading them.
    pub(super) fn check(&self, dir: &Path) -> Result<Parts, Damage> {
        let open = |name| {
            let recorded = self.files.get(name).ok_or(Damage::NotRecorded(name))?;
            let path = dir.join(name);
            let unreadable = |error| Damage::Unreadable(name, error);
            let file = open_part(&path).map_err(unreadable)?;
            let found = FileRecord::look(&file).map_err(unreadable)?;
            let found = FileRecord { sha256: recorded.sha256.clone(), ..found };
            if &found != recorded {
                return Err(Damage::Changed(name));
            }
            Ok(Artifact::opened(path, Arc::new(file)))
        };
        Ok(Parts { memory: open(MEMORY)?, state: open(STATE)?, layer: open(LAYER)? })
    }

    /// Opens the files in `dir` and compares their contents with the digests, which reads all of them.
    pub(super) fn verify(&self, dir: &Path) -> Result<(), Damage> {
        let Parts { memory, state, layer } = self.check(dir)?;
        for (name, part) in [(MEMORY, memory), (STATE, state), (LAYER, layer)] {
            let digest = part.to_file().and_then(|file| digest(&file));
            let digest = digest.map_err(|error| Damage::Unreadable(name, error))?;
            if self.files.get(name).is_none_or(|recorded| recorded.sha256 != digest) {
                return Err(Damage::Modified(name));
            }
        }
        Ok(())
    }
}

/// Why a snapshot's files are not what its record says.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The record lacks a file.
    #[error("{0} is not recorded")]
    NotRecorded(&'static str),
    /// A file cannot be examined.
    #[error("{0}: {1}")]
    Unreadable(&'static str, io::Error),
    /// A file's size, times, or inode differ.
    #[error("{0} has changed since it was made")]
    Changed(&'static str),
    /// A file's content differs.
    #[error("{0} does not match its digest")]
    Modified(&'static str),
}

impl Damage {
    /// Whether the files are certainly not what the record says. Otherwise they may only be unreadable for now, as when
    /// this process has too many open files.
    pub(super) fn is_certain(&self) -> bool {
        match self {
            Self::Unreadable(_, error) => is_lasting(error),
            Self::NotRecorded(_) | Self::Changed(_) | Self::Modified(_) => true,
        }
    }
}

/// Whether an error of opening a file will be the same next time: it does not exist, or is a link or a directory.
fn is_lasting(error: &io::Error) -> bool {
    const LASTING: [Errno; 4] = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::ISDIR];
    Errno::from_io_error(error).is_some_and(|errno| LASTING.contains(&errno))
}

impl FileRecord {
    fn look(file: &File) -> io::Result<Self> {
        let file = file.metadata()?;
        Ok(Self {
            bytes: file.size(),
            modified_seconds: file.mtime(),
            modified_nanos: file.mtime_nsec(),
            inode: file.ino(),
            changed_seconds: file.ctime(),
            changed_nanos: file.ctime_nsec(),
            sha256: String::new(),
        })
    }
}

/// Opens one of the snapshot's own files. Fails for a link.
fn open_part(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Takes back a file that was given to the user of a VMM.
fn own(path: &Path) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if fs::metadata(path)?.uid() != own {
        std::os::unix::fs::chown(path, Some(own), Some(rustix::process::getegid().as_raw()))?;
    }
    Ok(())
}

/// A digest that does not read holes, of which guest memory mostly consists.
fn digest(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let mut sha256 = Sha256::new();
    let mut position = 0;
    let mut buffer = vec![0; 1 << 20];
    while position < length {
        let data = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        sha256.update(data.to_le_bytes());
        let mut at = data;
        while at < hole {
            let wanted = buffer.len().min(usize::try_from(hole - at).unwrap_or(usize::MAX));
            match file.read_at(&mut buffer[..wanted], at)? {
                0 => break,
                count => {
                    sha256.update(&buffer[..count]);
                    at += count as u64;
                }
            }
        }
        position = hole;
    }
    Ok(hex::encode(sha256.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in PARTS {
            fs::write(dir.path().join(name), name).unwrap();
        }
        dir
    }

    #[test]
    fn a_whole_template_matches_and_a_changed_one_does_not() {
        for name in PARTS {
            let dir = template();
            let record = Record::of(dir.path(), "6.1".into(), "digest").unwrap();
            record.write(&dir.path().join("record")).unwrap();
            let record = Record::read(&dir.path().join("record")).unwrap().unwrap();
            record.check(dir.path()).unwrap();

            let path = dir.path().join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(1).unwrap();
            assert!(record.check(dir.path()).unwrap_err().to_string().starts_with(name));
            fs::remove_file(&path).unwrap();
            assert!(record.check(dir.path()).unwrap_err().to_string().starts_with(name));
        }
    }

    #[test]
    fn writing_it_out_to_the_disk_does_not_change_it() {
        let dir = template();
        let memory = File::create(dir.path().join(layout::MEMORY)).unwrap();
        memory.set_len(64 << 20).unwrap();
        // Scattered data, for which the file system allocates blocks of its own when it gets to it.
        for position in (0..64).map(|n| n << 20) {
            memory.write_all_at(&[1; 4096], position).unwrap();
        }
        let record = Record::of(dir.path(), "6.1".into(), "digest").unwrap();
        memory.sync_all().unwrap();
        record.check(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_record_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert!(Record::read(&path).unwrap().is_none());
        for text in [&b""[..], b"{}", b"{\"kernel_release\":1}", &[b'[', 0xff], &[b'['; 100_000]] {
            fs::write(&path, text).unwrap();
            assert!(Record::read(&path).unwrap().is_none());
        }
    }

    #[test]
    fn only_its_owner_may_change_a_record() {
        let dir = template();
        let path = dir.path().join("record");
        Record::of(dir.path(), "6.1".into(), "digest").unwrap().write(&path).unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_shortage_of_this_process_is_not_damage() {
        for (errno, expected) in [
            (Errno::NOENT, true),
            (Errno::LOOP, true),
            (Errno::MFILE, false),
            (Errno::NFILE, false),
            (Errno::NOMEM, false),
            (Errno::INTR, false),
        ] {
            assert_eq!(Damage::Unreadable(MEMORY, errno.into()).is_certain(), expected, "{errno}");
        }
        assert!(Damage::Changed(MEMORY).is_certain());
    }

    #[test]
    fn the_digest_tells_data_and_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let digest_of = |position: u64, byte: u8| {
            let path = dir.path().join("file");
            let file = File::create(&path).unwrap();
            file.set_len(8 << 20).unwrap();
            file.write_all_at(&[byte; 4096], position).unwrap();
            digest(&File::open(&path).unwrap()).unwrap()
        };
        let digests = [digest_of(0, 1), digest_of(0, 2), digest_of(4 << 20, 1)];
        assert!(digests[0] != digests[1] && digests[0] != digests[2]);
        assert_eq!(digests[0], digest_of(0, 1));
    }
}
