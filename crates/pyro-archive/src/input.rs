//! The reading end of a stream. No field of a header is used before it is checked.

use std::io::{self, ErrorKind, Read};

use tar::{GnuExtSparseHeader, Header};

use crate::name::{Name, printable};
use crate::output::{Attributes, BLOCK, CONTINUATION, padding};
use crate::sparse::{self, Extent, MAX_EXTENTS, stored};
use crate::{ArchiveError, MAX_NAME};

/// The last second of the year 9999, beyond which programs that show dates fail.
const LATEST: u64 = 253_402_300_799;

pub(crate) struct Entry {
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    /// The mode is at most 0o777.
    pub(crate) attributes: Attributes,
}

pub(crate) enum Kind {
    /// Its data follows, to be read with [`Input::data`].
    File {
        /// With its holes.
        size: u64,
        /// Where its data belongs, in ascending order.
        extents: Vec<Extent>,
    },
    /// `size` more bytes of the file before it, which has `position` bytes so far, to be read with [`Input::data`].
    More {
        position: u64,
        size: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
}

pub(crate) struct Input<'a, R> {
    source: &'a mut R,
    buffer: Vec<u8>,
}

impl<'a, R: Read> Input<'a, R> {
    pub(crate) fn new(source: &'a mut R) -> Self {
        Self { source, buffer: vec![0; 64 * 1024] }
    }

    /// Returns the next entry, or `None` at the end marker. Nothing is read beyond that.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let (mut long_name, mut long_target) = (None, None);
        loop {
            let Some(header) = self.header()? else {
                let whole = long_name.is_none() && long_target.is_none();
                return if whole { Ok(None) } else { Err(malformed("a long name belongs to no entry")) };
            };
            let long = match header.as_old().linkflag[0] {
                b'L' => &mut long_name,
                b'K' => &mut long_target,
                _ => {
                    let mut entry = entry(&header, long_name, long_target)?;
                    if let (b'S', Kind::File { size, extents }) =
                        (header.as_old().linkflag[0], &mut entry.kind)
                    {
                        (*size, *extents) = self.sparse(&header, *size)?;
                    }
                    return Ok(Some(entry));
                }
            };
            if long.replace(self.long(&header)?).is_some() {
                return Err(malformed("an entry has two long names"));
            }
        }
    }

    /// Passes the data of a file to `take`, a piece at a time with its position in the file.
    pub(crate) fn data(
        &mut self,
        extents: &[Extent],
        mut take: impl FnMut(u64, &[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        for extent in extents {
            let mut position = extent.offset;
            self.pieces(extent.length, |piece| {
                take(position, piece)?;
                position += piece.len() as u64;
                Ok(())
            })?;
        }
        self.fill(&mut [0; BLOCK][..padding(stored(extents))])
    }

    /// Passes the next `length` bytes to `take`.
    fn pieces(
        &mut self,
        length: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let mut remaining = length;
        while remaining > 0 {
            let wanted = usize::try_from(remaining).unwrap_or(usize::MAX).min(self.buffer.len());
            match self.source.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(count) => {
                    take(&self.buffer[..count])?;
                    remaining -= count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        Ok(())
    }

    /// Size and extents of a file with holes that has `stored` bytes of data.
    fn sparse(&mut self, header: &Header, stored: u64) -> Result<(u64, Vec<Extent>), ArchiveError> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("a header is not in the format of GNU tar"))?;
        let size = gnu.real_size().map_err(|_| malformed("a size is not a number"))?;
        let mut reader = sparse::Reader::new(size);
        reader.take(&gnu.sparse)?;
        let mut is_extended = gnu.is_extended();
        let mut blocks = 0;
        while is_extended {
            // Empty blocks would let a stream go on without end.
            blocks += 1;
            if blocks > MAX_EXTENTS {
                return Err(malformed("a sparse file has too many pieces"));
            }
            let mut block = GnuExtSparseHeader::new();
            self.fill(block.as_mut_bytes())?;
            reader.take(block.sparse())?;
            is_extended = block.is_extended();
        }
        Ok((size, reader.finish(stored)?))
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        self.fill(header.as_mut_bytes())?;
        if is_zero(header.as_bytes()) {
            self.fill(header.as_mut_bytes())?;
            return if is_zero(header.as_bytes()) {
                Ok(None)
            } else {
                Err(malformed("its end marker is incomplete"))
            };
        }
        let (before, rest) = header.as_bytes().split_at(148);
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        // The checksum itself counts as eight spaces.
        let expected = sum(before) + 8 * 32 + sum(&rest[8..]);
        if header.cksum().ok() != Some(expected) {
            return Err(malformed("a header's checksum is wrong"));
        }
        if header.as_gnu().is_none() {
            return Err(malformed("a header is not in the format of GNU tar"));
        }
        Ok(Some(header))
    }

    /// The name or target that is too long for a header. One that exceeds [`MAX_NAME`] is not read at all.
    fn long(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = header.entry_size().map_err(|_| malformed("a size is not a number"))?;
        let name = header.as_old().name;
        // Plus a slash and the zero byte.
        if size > MAX_NAME as u64 + 2 {
            return Err(ArchiveError::NameTooLong { name: printable(&name[..until_zero(&name)]) });
        }
        let mut text = Vec::new();
        self.data(&Extent::whole(size), |_, piece| {
            text.extend_from_slice(piece);
            Ok(())
        })?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ArchiveError> {
        self.source.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => ArchiveError::Truncated,
            _ => read_error(error),
        })
    }
}

fn entry(
    header: &Header,
    long_name: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
) -> Result<Entry, ArchiveError> {
    let fields = header.as_old();
    let name = match long_name {
        Some(name) => name,
        None => field(&fields.name)?.to_vec(),
    };
    let number =
        |value: io::Result<u64>| value.map_err(|_| malformed("a size, mode or time is not a number"));
    let size = number(header.entry_size())?;
    let kind = match fields.linkflag[0] {
        // The extents of a sparse one are read later.
        b'0' | 0 | b'S' => Kind::File { size, extents: Extent::whole(size) },
        CONTINUATION => Kind::More { position: position(header)?, size },
        b'5' => Kind::Directory,
        b'2' => Kind::Symlink {
            target: match &long_target {
                Some(target) => target.clone(),
                None => field(&fields.linkname)?.to_vec(),
            },
        },
        other => return Err(ArchiveError::Unsupported { name: printable(&name), kind: unsupported(other) }),
    };
    match &kind {
        Kind::File { .. } if long_target.is_none() => {}
        // An empty one would let a stream go on without end.
        Kind::More { size, .. } if long_target.is_none() && *size > 0 => {}
        Kind::Directory if long_target.is_none() && size == 0 => {}
        Kind::Symlink { target } if target.is_empty() || target.contains(&0) => {
            return Err(malformed("a symlink's target is not a path"));
        }
        Kind::Symlink { target } if target.len() > MAX_NAME => {
            return Err(ArchiveError::NameTooLong { name: printable(&name) });
        }
        Kind::Symlink { .. } if size == 0 => {}
        _ => return Err(malformed("an entry has a size or a target that its kind does not allow")),
    }
    Ok(Entry {
        name: Name::parse(&name, matches!(kind, Kind::Directory))?,
        attributes: Attributes {
            mode: number(header.mode().map(u64::from))? as u32 & 0o777,
            modified: number(header.mtime())?.min(LATEST),
        },
        kind,
    })
}

/// How many bytes of a file come before its continuation.
fn position(header: &Header) -> Result<u64, ArchiveError> {
    let mut size = Header::new_gnu();
    size.as_old_mut().size = header.as_gnu().map(|gnu| gnu.offset).unwrap_or_default();
    size.entry_size().map_err(|_| malformed("the position of a continuation is not a number"))
}

fn unsupported(flag: u8) -> &'static str {
    match flag {
        b'1' => "a hard link",
        b'3' | b'4' => "a device",
        b'6' => "a fifo",
        b'g' | b'x' => "a pax header",
        _ => "of an unknown kind",
    }
}

/// The text in a header's field, which ends with the field or with zeros.
fn field(field: &[u8]) -> Result<&[u8], ArchiveError> {
    let (text, rest) = field.split_at(until_zero(field));
    if is_zero(rest) { Ok(text) } else { Err(malformed("a name contains a zero byte")) }
}

fn until_zero(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn malformed(what: &'static str) -> ArchiveError {
    ArchiveError::Malformed { what }
}

fn read_error(source: io::Error) -> ArchiveError {
    ArchiveError::Stream { action: "read", source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Output;

    #[test]
    fn sizes_names_and_times_beyond_the_fields_come_back() {
        let mut name = Name::item();
        for _ in 0..15 {
            name = name.child(&[0xe4; 255]).unwrap();
        }
        let size = 40 << 30;
        let mut stream = Vec::new();
        let mut output = Output::new(&mut stream);
        output
            .file(&name, &Attributes { mode: 0o640, modified: u64::MAX }, size, &Extent::whole(size))
            .unwrap();
        drop(output);
        let entry = Input::new(&mut stream.as_slice()).next().unwrap().unwrap();
        assert_eq!(entry.name, name);
        assert_eq!((entry.attributes.mode, entry.attributes.modified), (0o640, LATEST));
        assert!(matches!(entry.kind, Kind::File { size: found, .. } if found == size));
    }

    #[test]
    fn names_of_every_length_come_back() {
        for length in 1..600 {
            let (name, target) = (Name::item().child(&vec![b'n'; length]).unwrap(), vec![b't'; length]);
            let attributes = Attributes { mode: 0o777, modified: 0 };
            let mut stream = Vec::new();
            let mut output = Output::new(&mut stream);
            output.symlink(&name, &attributes, &target).unwrap();
            output.directory(&name, &attributes).unwrap();
            output.end().unwrap();
            let mut rest = stream.as_slice();
            let mut input = Input::new(&mut rest);
            let link = input.next().unwrap().unwrap();
            assert_eq!(link.name, name);
            assert!(matches!(link.kind, Kind::Symlink { target: found } if found == target));
            assert_eq!(input.next().unwrap().unwrap().name, name);
            assert!(input.next().unwrap().is_none() && rest.is_empty());
        }
    }
}
