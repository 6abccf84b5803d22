//! Validates a kernel image that does not come from an environment, before anything is started with it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The boot protocol's magic number with its offset, and the offset of the pointer to the kernel's version text.
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const VERSION_POINTER: usize = 0x20e;
/// The pointer is relative to this offset; it is 16 bits wide.
const VERSION_BASE: usize = 0x200;
const HEAD: u64 = 0x200 + 0x10000;
/// Longer than any kernel release.
const LONGEST_RELEASE: usize = 64;

/// Returns the release of the kernel in the bzImage, such as `6.12.9-pyro`.
///
/// # Errors
/// The reason why the kernel cannot be booted.
pub(crate) fn release(image: &Path) -> Result<String, GuestKernelError> {
    let head = head(image).map_err(|error| GuestKernelError::Unreadable {
        image: image.to_owned(),
        cause: error.to_string(),
    })?;
    parse(&head).ok_or_else(|| GuestKernelError::NotBzImage { image: image.to_owned() })
}

/// Why a guest kernel cannot be booted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GuestKernelError {
    /// The file cannot be read.
    #[error("the guest kernel {} cannot be read: {cause}", image.display())]
    Unreadable {
        /// The file.
        image: PathBuf,
        /// The system's error.
        cause: String,
    },
    /// The file is not a bzImage.
    #[error("the guest kernel {} is not a bzImage", image.display())]
    NotBzImage {
        /// The file.
        image: PathBuf,
    },
}

fn head(image: &Path) -> io::Result<Vec<u8>> {
    // Opening something other than a regular file, such as a pipe, could block.
    if !fs::metadata(image)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut head = Vec::new();
    File::open(image)?.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

fn parse(head: &[u8]) -> Option<String> {
    let (at, magic) = MAGIC;
    if head.get(at..at + magic.len()) != Some(magic) {
        return None;
    }
    let pointer = u16::from_le_bytes(head.get(VERSION_POINTER..VERSION_POINTER + 2)?.try_into().ok()?);
    let text = head.get(VERSION_BASE + usize::from(pointer)..).unwrap_or_default();
    // The text is untrusted and is printed on terminals.
    let release: String = text
        .iter()
        .take(LONGEST_RELEASE)
        .map(|byte| char::from(*byte))
        .take_while(char::is_ascii_graphic)
        .collect();
    Some(if pointer == 0 || release.is_empty() { "unknown".to_owned() } else { release })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(pointer: u16, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&pointer.to_le_bytes());
        bytes.extend(text);
        bytes
    }

    #[test]
    fn the_release_is_found() {
        assert_eq!(parse(&image(0x200, b"6.12.9-pyro (pyro@pyro) #1\0")).as_deref(), Some("6.12.9-pyro"));
    }

    #[test]
    fn a_kernel_that_tells_no_release_is_one_all_the_same() {
        for head in [image(0, b"6.12"), image(0x200, b""), image(0x200, b"\x1b[2J"), image(0xffff, b"6.12")] {
            assert_eq!(parse(&head).as_deref(), Some("unknown"));
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        let shown = path.display();
        let missing =
            format!("the guest kernel {shown} cannot be read: No such file or directory (os error 2)");
        assert_eq!(release(&path).unwrap_err().to_string(), missing);
        fs::write(&path, "text").unwrap();
        let error = release(&path).unwrap_err().to_string();
        assert_eq!(error, format!("the guest kernel {shown} is not a bzImage"));
        fs::write(&path, image(0x200, b"1.2.3 ")).unwrap();
        assert_eq!(release(&path), Ok("1.2.3".to_owned()));
        assert!(release(dir.path()).unwrap_err().to_string().ends_with("cannot be read: it is not a file"));
    }

    proptest! {
        #[test]
        fn every_head_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..0x600), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() > 0x210 {
                bytes[0x202..0x206].copy_from_slice(b"HdrS");
            }
            if let Some(release) = parse(&bytes) {
                prop_assert!(!release.is_empty() && release.chars().all(|c| c.is_ascii_graphic()));
            }
        }
    }
}
