//! The private writable layer of a VM: a sparse ext4 image, copied from a pre-made empty one in a few milliseconds.

mod in_use;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

pub use self::in_use::released;
use crate::artifact::Artifact;
use crate::spawn::Spawn;

/// Why no layer could be made.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The host's disk does not have enough space for the layer.
    #[error(
        "only {free_mib} MiB are free in {}{}; a writable layer needs at least {needed_mib} MiB",
        dir.display(),
        promised(*promised_mib)
    )]
    NoSpace {
        /// Directory of the layers.
        dir: PathBuf,
        /// Free space in MiB.
        free_mib: u64,
        /// How much other layers may still grow, in MiB.
        promised_mib: u64,
        /// Minimum free space in MiB.
        needed_mib: u64,
    },
    /// `mke2fs` was not found.
    #[error("mke2fs is not installed (Debian package e2fsprogs)")]
    ToolMissing,
    /// `mke2fs` failed.
    #[error("mke2fs failed: {0}")]
    ToolFailed(String),
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn promised(mib: u64) -> String {
    match mib {
        0 => String::new(),
        mib => format!(", and the disks of other VMs and tasks may still grow by {mib} MiB"),
    }
}

/// How far the sizes of all layers together may exceed what the host's disk can hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Overcommit {
    /// All layers together may grow to this multiple of the free space. With 1, every guest can fill its disk.
    Factor(f64),
    /// Each layer must fit by itself.
    Off,
}

impl Default for Overcommit {
    fn default() -> Self {
        Self::Factor(1.0)
    }
}

impl Overcommit {
    /// Space that a new layer may have, in MiB. `promised_mib` is what others may still grow by.
    fn available_mib(self, free_mib: u64, promised_mib: u64) -> u64 {
        let usable = free_mib.saturating_sub(LayerTemplates::RESERVE_MIB);
        match self {
            Self::Off => usable,
            // The product is far below 2^53, and the conversion saturates.
            Self::Factor(factor) => ((usable as f64 * factor) as u64).saturating_sub(promised_mib),
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayerError {
    let path = path.to_owned();
    move |source| LayerError::Io { action, path, source }
}

/// Whether a layer must survive its VM's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerLifetime {
    /// It is removed with the VM: nothing written to it needs to reach the host's disk.
    OneStart,
    /// A stopped VM can be started again with it.
    ManyStarts,
}

/// Pre-made empty layers, one per size and lifetime, in a directory of the state directory.
#[derive(Clone, Debug)]
pub struct LayerTemplates {
    dir: PathBuf,
    search_path: std::ffi::OsString,
}

impl LayerTemplates {
    /// Sizes in MiB, the default first.
    const SIZES_MIB: [u64; 5] = [8192, 4096, 2048, 1024, 512];
    /// Space in MiB that a layer must leave free, for the host and for pyro's own records.
    const RESERVE_MIB: u64 = 512;

    /// Minimum free space for a layer of the smallest usual size, in MiB.
    pub const LEAST_FREE_MIB: u64 = 512 + Self::RESERVE_MIB;

    /// Keeps templates in `dir`, which is created when needed, and looks up `mke2fs` in `search_path`.
    pub fn new(dir: PathBuf, search_path: std::ffi::OsString) -> Self {
        Self { dir, search_path }
    }

    /// Returns the size of a new layer in MiB: the wanted one, or the largest of the usual ones that fits. It fits if the
    /// host's disk could hold it and what other layers may still grow by (`promised_mib`) if all guests filled their disks;
    /// `overcommit` may allow more. Blocks.
    ///
    /// # Errors
    /// [`LayerError::NoSpace`], [`LayerError::Io`].
    pub fn choose(
        &self,
        wanted_mib: Option<u64>,
        promised_mib: u64,
        overcommit: Overcommit,
    ) -> Result<u64, LayerError> {
        let free_mib = self.free_mib()?;
        let available_mib = overcommit.available_mib(free_mib, promised_mib);
        let sizes = if wanted_mib.is_some() { wanted_mib.as_slice() } else { Self::SIZES_MIB.as_slice() };
        let smallest = sizes.iter().min().copied().unwrap_or_default();
        sizes.iter().copied().find(|size| *size <= available_mib).ok_or_else(|| LayerError::NoSpace {
            dir: self.dir.clone(),
            free_mib,
            promised_mib: if overcommit == Overcommit::Off { 0 } else { promised_mib },
            needed_mib: smallest + Self::RESERVE_MIB,
        })
    }

    /// Returns the template of this size; makes it if missing. Blocks.
    ///
    /// # Errors
    /// [`LayerError`].
    pub fn of_size(&self, size_mib: u64, lifetime: LayerLifetime) -> Result<PathBuf, LayerError> {
        self.make_dir()?;
        let path = self.dir.join(match lifetime {
            LayerLifetime::OneStart => format!("scratch-{size_mib}.img"),
            LayerLifetime::ManyStarts => format!("kept-{size_mib}.img"),
        });
        if !path.exists() {
            self.make(&path, size_mib, lifetime)?;
        }
        Ok(path)
    }

    /// Creates the directory of the templates if needed.
    fn make_dir(&self) -> Result<(), LayerError> {
        rustix::fs::mkdir(&self.dir, 0o700.into())
            .or_else(|error| if error == rustix::io::Errno::EXIST { Ok(()) } else { Err(error) })
            .map_err(|error| io_error("make", &self.dir)(error.into()))
    }

    /// Returns the free space where the templates are kept.
    fn free_mib(&self) -> Result<u64, LayerError> {
        self.make_dir()?;
        let stat = rustix::fs::statvfs(&self.dir).map_err(|e| io_error("examine", &self.dir)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize) / (1024 * 1024))
    }

    /// Two processes may do this at once: each makes its own file, and the last rename wins.
    fn make(&self, path: &Path, size_mib: u64, lifetime: LayerLifetime) -> Result<(), LayerError> {
        let partial = tempfile::Builder::new()
            .prefix(".partial-")
            .tempfile_in(&self.dir)
            .map_err(io_error("make a file in", &self.dir))?;
        partial.as_file().set_len(size_mib * 1024 * 1024).map_err(io_error("size", partial.path()))?;
        let output = Spawn::new("mke2fs")
            .clear_env()
            // Debian installs it in sbin, which is not in an ordinary user's search path.
            .env("PATH", [self.search_path.as_os_str(), "/usr/sbin:/sbin".as_ref()].join(":".as_ref()))
            // No reserved blocks: everything in the guest runs as root, which may use them anyway.
            .args(["-q", "-F", "-t", "ext4", "-m", "0"])
            .args(match lifetime {
                // Without a second start there is no crash to recover from.
                LayerLifetime::OneStart => ["-O", "^has_journal,^resize_inode"].as_slice(),
                LayerLifetime::ManyStarts => ["-O", "^resize_inode", "-J", "size=16"].as_slice(),
            })
            .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
            .args([partial.path()])
            .output_blocking()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => LayerError::ToolMissing,
                _ => io_error("run mke2fs on", partial.path())(error),
            })?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(LayerError::ToolFailed(text.trim().chars().take(500).collect()));
        }
        fs::set_permissions(partial.path(), std::os::unix::fs::PermissionsExt::from_mode(0o400))
            .map_err(io_error("protect", partial.path()))?;
        partial.persist(path).map_err(|error| io_error("name", path)(error.error))?;
        Ok(())
    }
}

/// Copies a template to `target`, sharing blocks or skipping holes where possible. Leaves an existing target, the layer
/// of an earlier start, unchanged. Blocks.
///
/// # Errors
/// [`LayerError::Io`].
pub fn instantiate(template: &Artifact, target: &Path) -> Result<(), LayerError> {
    if target.exists() {
        return Ok(());
    }
    let source = template.to_file().map_err(io_error("open", template.path()))?;
    // Under another name until it is complete: a killed start must not leave half a layer for the next one.
    let partial = target.with_extension("partial");
    let copy = File::create(&partial).map_err(io_error("make", &partial))?;
    if rustix::fs::ioctl_ficlone(&copy, &source).is_err() {
        copy_sparse(&source, &copy).map_err(io_error("write", &partial))?;
    }
    fs::rename(&partial, target).map_err(io_error("name", target))
}

/// Why a layer of an earlier start cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerDefect {
    /// There is no such file.
    #[error("its file does not exist")]
    Missing,
    /// The file cannot be read.
    #[error("its file cannot be read")]
    Unreadable(#[source] io::Error),
    /// The file has no ext4 file system.
    #[error("its file has no ext4 file system")]
    NoFileSystem,
    /// The file is shorter than the file system in it.
    #[error("its file has {actual} bytes, and its file system {expected}")]
    Short {
        /// Size of the file, in bytes.
        actual: u64,
        /// Size that the file system needs, in bytes.
        expected: u64,
    },
}

/// Checks that a layer of an earlier start is there and complete, by its superblock. Blocks.
///
/// The layer was written by a guest, so the answer is of use to the guest's owner only.
///
/// # Errors
/// [`LayerDefect`].
pub fn check(layer: &Path) -> Result<(), LayerDefect> {
    let metadata = match fs::metadata(layer) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LayerDefect::Missing),
        Err(error) => return Err(LayerDefect::Unreadable(error)),
    };
    // Opening anything else, such as a FIFO, could block.
    if !metadata.is_file() {
        return Err(LayerDefect::NoFileSystem);
    }
    let mut superblock = [0; SUPERBLOCK_BYTES];
    let file = File::open(layer).map_err(LayerDefect::Unreadable)?;
    match file.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(LayerDefect::NoFileSystem),
        Err(error) => return Err(LayerDefect::Unreadable(error)),
    }
    let expected = file_system_bytes(&superblock).ok_or(LayerDefect::NoFileSystem)?;
    match metadata.len() {
        actual if actual < expected => Err(LayerDefect::Short { actual, expected }),
        _ => Ok(()),
    }
}

/// Where the superblock of ext4 begins, in bytes, and how much of it is read.
const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
/// `s_magic`.
const EXT4_MAGIC: u16 = 0xef53;
/// Bit of `s_feature_incompat`: numbers of blocks have 64 bits.
const INCOMPAT_64BIT: u32 = 0x80;

/// Returns the size of the file system with this superblock; `None` if it is not one of ext4.
fn file_system_bytes(superblock: &[u8; SUPERBLOCK_BYTES]) -> Option<u64> {
    let word = |offset: usize| {
        let bytes = superblock.get(offset..offset + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    // The state of the file system is the upper half.
    if word(0x38)? as u16 != EXT4_MAGIC {
        return None;
    }
    let high = if word(0x60)? & INCOMPAT_64BIT == 0 { 0 } else { word(0x150)? };
    let blocks = u64::from(high) << 32 | u64::from(word(0x4)?);
    let block_bytes = 1024_u64.checked_shl(word(0x18)?).filter(|bytes| *bytes <= 65_536 && *bytes > 0)?;
    blocks.checked_mul(block_bytes)
}

/// Copies the parts of a file that hold data, and preserves its holes.
fn copy_sparse(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position = 0;
    while position < length {
        let data = match rustix::fs::seek(source, SeekFrom::Data(position)) {
            Ok(data) => data,
            // No data after this position.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(source, SeekFrom::Hole(data))?;
        let (mut from, mut to) = (data, data);
        while from < hole {
            let count = usize::try_from(hole - from).unwrap_or(usize::MAX);
            if rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), count)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        position = hole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_content_and_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (template, target) = (dir.path().join("template"), dir.path().join("copy"));
        let file = File::options().read(true).write(true).create_new(true).open(&template).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"head", 0).unwrap();
        file.write_all_at(&[7; 70_000], 10 << 20).unwrap();
        file.write_all_at(b"tail", (64 << 20) - 4).unwrap();
        copy_sparse(&file, &File::create_new(&target).unwrap()).unwrap();
        assert!(fs::read(&template).unwrap() == fs::read(&target).unwrap());
        assert!(fs::metadata(&target).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_template_is_made_once_and_is_an_ext4_filesystem() {
        let dir = tempfile::tempdir().unwrap();
        #[expect(clippy::disallowed_methods, reason = "tests use the host's programs")]
        let path = std::env::var_os("PATH").unwrap();
        let templates = LayerTemplates::new(dir.path().join("layers"), path);
        for lifetime in [LayerLifetime::OneStart, LayerLifetime::ManyStarts] {
            let first = templates.of_size(512, lifetime).unwrap();
            let inode = fs::metadata(&first).unwrap().ino();
            assert_eq!(fs::metadata(templates.of_size(512, lifetime).unwrap()).unwrap().ino(), inode);
            let mut magic = [0; 2];
            File::open(&first).unwrap().read_exact_at(&mut magic, 0x438).unwrap();
            assert_eq!(magic, [0x53, 0xef]);
            check(&first).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 2, "no partial file is left");
    }

    #[test]
    fn a_layer_that_is_not_whole_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer.img");
        assert!(matches!(check(&layer), Err(LayerDefect::Missing)));
        for content in [&b""[..], &[0; 4096], &[0xff; 4096]] {
            fs::write(&layer, content).unwrap();
            assert!(matches!(check(&layer), Err(LayerDefect::NoFileSystem)));
        }
        assert!(matches!(check(dir.path()), Err(LayerDefect::NoFileSystem)));
        #[expect(clippy::disallowed_methods, reason = "tests use the host's programs")]
        let path = std::env::var_os("PATH").unwrap();
        let templates = LayerTemplates::new(dir.path().join("layers"), path);
        let whole = templates.of_size(512, LayerLifetime::ManyStarts).unwrap();
        fs::remove_file(&layer).unwrap();
        instantiate(&whole.into(), &layer).unwrap();
        check(&layer).unwrap();
        fs::set_permissions(&layer, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        File::options().write(true).open(&layer).unwrap().set_len(256 << 20).unwrap();
        let defect = check(&layer).unwrap_err();
        assert_eq!(defect.to_string(), "its file has 268435456 bytes, and its file system 536870912");
    }

    #[test]
    fn what_others_may_still_grow_by_is_not_promised_twice() {
        let one = Overcommit::default();
        assert_eq!(one.available_mib(2560, 0), 2048);
        assert_eq!(one.available_mib(2560, 1536), 512);
        assert_eq!(one.available_mib(2560, 3000), 0);
        assert_eq!(one.available_mib(100, 0), 0);
        assert_eq!(Overcommit::Factor(2.0).available_mib(2560, 1536), 2560);
        assert_eq!(Overcommit::Off.available_mib(2560, 100_000), 2048);
    }

    #[test]
    fn a_layer_that_does_not_fit_is_refused_with_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let templates = LayerTemplates::new(dir.path().join("layers"), Default::default());
        let choose = |wanted, promised| templates.choose(wanted, promised, Overcommit::default());
        let free = templates.free_mib().unwrap();
        assert_eq!(choose(Some(256), 0).unwrap(), 256);
        let error = choose(Some(256), free).unwrap_err().to_string();
        assert!(
            error.contains(&format!("may still grow by {free} MiB; a writable layer needs at least 768")),
            "{error}"
        );
        assert!(choose(None, free).unwrap_err().to_string().contains("needs at least 1024 MiB"));
        assert_eq!(templates.choose(Some(256), u64::MAX, Overcommit::Off).unwrap(), 256);
        assert_eq!(LayerTemplates::SIZES_MIB.iter().min(), Some(&(LayerTemplates::LEAST_FREE_MIB - 512)));
        let error = choose(Some(1 << 40), 0).unwrap_err().to_string();
        assert!(!error.contains("may still grow"), "{error}");
    }

    #[test]
    fn an_existing_layer_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (template, target) = (dir.path().join("template"), dir.path().join("layer.img"));
        fs::write(&template, b"empty").unwrap();
        let template = template.into();
        instantiate(&template, &target).unwrap();
        fs::write(&target, b"work").unwrap();
        instantiate(&template, &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"work");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
