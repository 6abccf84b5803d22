//! The initrd of a guest: the guest agent, then the archive of kernel modules, if the kernel needs any. The kernel
//! unpacks concatenated cpio archives one after the other.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cpio::newc::{self, ModeFileType};
use pyro_guest_image::EXECUTABLE;

use crate::artifact::Artifact;

/// The kernel requires an alignment of 4 for consecutive archives; 512 is easier to read in a hex dump.
const ALIGNMENT: usize = 512;

/// An initrd could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct InitrdError {
    /// The initrd.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Writes the initrd to `target`: the agent, then the cpio archive `modules`.
///
/// # Errors
/// The archive cannot be read or the initrd not be written.
pub fn write(target: &Path, modules: Option<&Artifact>) -> Result<(), InitrdError> {
    try_write(target, modules).map_err(|source| InitrdError { path: target.to_owned(), source })
}

fn try_write(target: &Path, modules: Option<&Artifact>) -> io::Result<()> {
    let file = File::create(target)?;
    // The VMM of root runs as another user. Only pyro's user can enter the directory.
    file.set_permissions(Permissions::from_mode(0o644))?;
    let mut out = BufWriter::with_capacity(256 * 1024, file);
    write_agent_archive(&mut out)?;
    if let Some(modules) = modules {
        io::copy(&mut modules.reader()?, &mut out)?;
    }
    out.flush()
}

fn write_agent_archive(out: &mut impl Write) -> io::Result<()> {
    let mut archive = Vec::with_capacity(EXECUTABLE.len() + 4 * ALIGNMENT);
    // The kernel opens /dev/console for PID 1 before the agent runs.
    let console = newc::Builder::new("dev/console")
        .ino(2)
        .mode(0o600)
        .set_mode_file_type(ModeFileType::Char)
        .rdev_major(5)
        .rdev_minor(1);
    let dev = newc::Builder::new("dev").ino(1).mode(0o755).set_mode_file_type(ModeFileType::Directory);
    let init = newc::Builder::new("init").ino(3).mode(0o755).set_mode_file_type(ModeFileType::Regular);
    for (entry, content) in [(dev, &[][..]), (console, &[]), (init, EXECUTABLE)] {
        // Files of 4 GiB do not occur here.
        let mut entry = entry.write(&mut archive, content.len() as u32);
        entry.write_all(content)?;
        entry.finish()?;
    }
    newc::trailer(&mut archive)?;
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_starts_with_the_agent_and_ends_with_the_modules() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("modules.cpio");
        std::fs::write(&modules, b"MODULES").unwrap();
        let target = dir.path().join("initrd");
        write(&target, Some(&modules.into())).unwrap();

        let bytes = std::fs::read(&target).unwrap();
        assert_eq!((bytes.len() - b"MODULES".len()) % ALIGNMENT, 0);
        assert!(bytes.ends_with(b"MODULES"));
        write(&target, None).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), bytes[..bytes.len() - b"MODULES".len()]);
        let mut rest = &bytes[..];
        let mut names = Vec::new();
        loop {
            let entry = newc::Reader::new(rest).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            names.push((entry.entry().name().to_owned(), entry.entry().mode() & 0o777));
            rest = entry.finish().unwrap();
        }
        assert_eq!(names, [("dev".into(), 0o755), ("dev/console".into(), 0o600), ("init".into(), 0o755)]);
    }
}
