//! The kernel as Firecracker loads it: an ELF file. A bzImage, which distributions have, contains one in compressed form.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::artifact::Artifact;

/// Maximum sizes of an image and of the kernel in it.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
const MAX_KERNEL_BYTES: usize = 256 << 20;

const ELF: &[u8] = b"\x7fELF";

/// Fields of the boot protocol, which is little-endian: number of 512-byte sectors before the protected-mode code, magic
/// number, version, and place and length of the compressed kernel behind those sectors.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first version that has the last two.
const MIN_VERSION: u16 = 0x208;

/// LZ4's legacy format: a magic number, then blocks behind their lengths, each of at most so much data.
const LZ4: &[u8] = b"\x02\x21\x4c\x18";
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// How other formats begin.
const OTHER_FORMATS: [(&[u8], &str); 6] = [
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ", "xz"),
    (b"BZh", "bzip2"),
    (b"\x5d\x00\x00", "LZMA"),
    (b"\x89LZO", "LZO"),
];

/// Whether an image must be unpacked, and if so, writes the kernel in it to the new file `target`. Blocks.
pub(super) fn unpack(image: &Artifact, target: &Path) -> io::Result<bool> {
    let mut bytes = Vec::new();
    let mut reader = image.reader()?.take(MAX_IMAGE_BYTES);
    reader.by_ref().take(ELF.len() as u64).read_to_end(&mut bytes)?;
    if bytes == ELF {
        return Ok(false);
    }
    reader.read_to_end(&mut bytes)?;
    let kernel = unpacked(&bytes)?;
    // The VMM of root runs as another user. Only pyro's user can enter the directory.
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(target)?;
    file.write_all(&kernel)?;
    Ok(true)
}

/// Returns the kernel in a bzImage.
fn unpacked(image: &[u8]) -> io::Result<Vec<u8>> {
    let (at, magic) = MAGIC;
    if image.get(at..at + magic.len()) != Some(magic) {
        return Err(invalid("the guest kernel is neither an ELF file nor a bzImage"));
    }
    let version =
        image.get(VERSION..).and_then(|rest| rest.first_chunk()).map(|bytes| u16::from_le_bytes(*bytes));
    if version.is_none_or(|version| version < MIN_VERSION) {
        return Err(invalid("the guest kernel is too old: expected boot protocol 2.08 or later"));
    }
    let payload = || {
        let sectors = match image.get(SETUP_SECTORS)? {
            0 => 4,
            sectors => usize::from(*sectors),
        };
        let start = (sectors + 1) * 512 + number(image, PAYLOAD_OFFSET)?;
        image.get(start..start.checked_add(number(image, PAYLOAD_LENGTH)?)?)
    };
    let payload = payload().ok_or_else(|| invalid("the guest kernel is truncated"))?;
    let Some(blocks) = payload.strip_prefix(LZ4) else {
        let format = OTHER_FORMATS.iter().find(|(start, _)| payload.starts_with(start));
        let format = format.map_or("an unknown format", |(_, name)| name);
        return Err(invalid(format!(
            "the guest kernel is compressed with {format}: expected an ELF file (vmlinux), or a bzImage with LZ4"
        )));
    };
    let kernel = from_lz4(blocks).ok_or_else(|| invalid("the guest kernel is damaged"))?;
    if !kernel.starts_with(ELF) {
        return Err(invalid("the guest kernel contains no ELF file"));
    }
    Ok(kernel)
}

/// Decompresses blocks, behind which the size of the result follows.
fn from_lz4(mut blocks: &[u8]) -> Option<Vec<u8>> {
    let (rest, size) = blocks.split_last_chunk()?;
    blocks = rest;
    let size = usize::try_from(u32::from_le_bytes(*size)).ok().filter(|size| *size <= MAX_KERNEL_BYTES)?;
    let mut kernel = vec![0; size];
    let mut position = 0;
    while !blocks.is_empty() {
        let length = number(blocks, 0)?;
        let block = blocks.get(4..length.checked_add(4)?)?;
        blocks = &blocks[4 + block.len()..];
        let end = size.min(position + LZ4_BLOCK_BYTES);
        position += lz4_flex::block::decompress_into(block, &mut kernel[position..end]).ok()?;
    }
    (position == size).then_some(kernel)
}

/// Returns the 32-bit number at this place.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bzImage with this compressed kernel.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTORS] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend([0xcc; 16]);
        image.extend(payload);
        image.extend([0xcc; 16]);
        image
    }

    /// A block of literals only, as LZ4 encodes what it cannot compress.
    fn literals(bytes: &[u8]) -> Vec<u8> {
        let mut block = vec![0xf0];
        let mut rest = bytes.len() - 15;
        while rest >= 255 {
            block.push(255);
            rest -= 255;
        }
        block.push(u8::try_from(rest).unwrap());
        block.extend(bytes);
        block
    }

    fn payload(blocks: &[&[u8]], size: u32) -> Vec<u8> {
        let mut payload = LZ4.to_vec();
        for block in blocks {
            payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            payload.extend(*block);
        }
        payload.extend(size.to_le_bytes());
        payload
    }

    fn kernel() -> Vec<u8> {
        let mut kernel = ELF.to_vec();
        kernel.extend((0..996_u32).map(|n| n.to_le_bytes()[0]));
        kernel
    }

    #[test]
    fn the_kernel_in_a_bzimage_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bzImage");
        let kernel = kernel();
        let (first, second) = kernel.split_at(600);
        // Four literals, and ten more bytes that repeat the last one.
        let with_match = [&[0x46][..], b"\x7fELF", &[1, 0], &[0x50], b"tail!"].concat();
        std::fs::write(&path, image(&payload(&[&literals(first), &literals(second)], 1000))).unwrap();
        let target = dir.path().join("vmlinux");
        assert!(unpack(&path.clone().into(), &target).unwrap());
        assert_eq!(std::fs::read(&target).unwrap(), kernel);

        let repeated = unpacked(&image(&payload(&[&with_match], 19))).unwrap();
        assert_eq!(repeated, [ELF, &[b'F'; 10], b"tail!"].concat());
    }

    #[test]
    fn an_elf_file_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        std::fs::write(&path, kernel()).unwrap();
        let target = dir.path().join("target");
        assert!(!unpack(&path.into(), &target).unwrap());
        assert!(!target.exists());
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let reason = |image: &[u8]| unpacked(image).unwrap_err().to_string();
        assert_eq!(reason(b"text"), "the guest kernel is neither an ELF file nor a bzImage");
        let zstd = reason(&image(b"\x28\xb5\x2f\xfd"));
        assert!(zstd.starts_with("the guest kernel is compressed with Zstandard: expected"), "{zstd}");
        assert!(reason(&image(b"what")).contains("an unknown format"));
        let whole = image(&payload(&[&literals(&kernel())], 1000));
        assert_eq!(reason(&whole[..whole.len() - 100]), "the guest kernel is truncated");
        for damaged in [
            payload(&[&literals(&kernel())], 999),
            payload(&[&literals(&kernel())], 1001),
            payload(&[&literals(&kernel())], u32::MAX),
            payload(&[b"\xff"], 1000),
        ] {
            assert_eq!(reason(&image(&damaged)), "the guest kernel is damaged");
        }
        let text = [b'x'; 100];
        assert_eq!(
            reason(&image(&payload(&[&literals(&text)], 100))),
            "the guest kernel contains no ELF file"
        );
        let mut old = whole;
        old[VERSION] = 7;
        assert!(reason(&old).contains("too old"));
    }

    proptest! {
        #[test]
        fn every_payload_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 0..4000_u32) {
            let payload = [LZ4, &bytes, &size.to_le_bytes()].concat();
            let _ = unpacked(&image(&payload));
            let _ = unpacked(&bytes);
        }
    }
}
