//! Files with holes (type `S`) and files in parts (type `M`), as a hostile end might send them.

use std::fs;

use pyro_archive::{ArchiveError, Links};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::streams::{LIMITS, Stream, header};
use crate::trees::Outside;

/// Maximum number of blocks with extents that are read.
const MAX_BLOCKS: usize = 1 << 16;

fn set(field: &mut [u8; 12], value: u64) {
    let mut header = Header::new_gnu();
    header.set_size(value);
    *field = header.as_old().size;
}

fn field(offset: u64, length: u64) -> GnuSparseHeader {
    let mut field = GnuSparseHeader { offset: [0; 12], numbytes: [0; 12] };
    set(&mut field.offset, offset);
    set(&mut field.numbytes, length);
    field
}

/// The header of a file of `size` bytes with these extents, at most four, of which `stored` bytes follow.
fn sparse(name: &str, size: u64, extents: &[(u64, u64)], stored: u64) -> Header {
    let mut header = header(EntryType::GNUSparse, name.as_bytes(), stored);
    let gnu = header.as_gnu_mut().unwrap();
    set(&mut gnu.realsize, size);
    for (place, (offset, length)) in gnu.sparse.iter_mut().zip(extents) {
        *place = field(*offset, *length);
    }
    header
}

/// A file whose first half is a hole as large as its data.
pub(crate) fn with_hole(stream: Stream, name: &str, data: &[u8]) -> Stream {
    let length = data.len() as u64;
    stream.header(sparse(name, 2 * length, &[(length, length)], length)).data(data)
}

/// A part of the file `name`, which has `position` bytes so far.
pub(crate) fn part(stream: Stream, name: &str, position: u64, data: &[u8]) -> Stream {
    let mut header = header(EntryType::new(b'M'), name.as_bytes(), data.len() as u64);
    set(&mut header.as_gnu_mut().unwrap().offset, position);
    stream.header(header).data(data)
}

/// Nothing is made of a stream for a single file that is refused.
fn is_refused(stream: Stream, is_expected: impl Fn(&ArchiveError) -> bool) {
    let outside = Outside::new();
    let error = stream.unpack(&outside).unwrap_err();
    assert!(is_expected(&error), "{error:?}");
    assert!(!outside.place().exists());
}

fn is_malformed(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Malformed { .. })
}

fn is_out_of_order(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::OutOfOrder { .. })
}

fn is_too_large(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::TooLarge { .. })
}

#[test]
fn holes_count_against_the_limit() {
    for size in [LIMITS.max_bytes + 1, 1 << 40, u64::MAX >> 1] {
        is_refused(Stream::default().header(sparse("item", size, &[(0, 1)], 1)).data(b"x"), is_too_large);
        is_refused(Stream::default().header(sparse("item", size, &[], 0)), is_too_large);
    }
    let outside = Outside::new();
    let stream = Stream::default().header(sparse("item", LIMITS.max_bytes, &[(2, 1)], 1)).data(b"x");
    assert_eq!(stream.unpack(&outside).unwrap().bytes, LIMITS.max_bytes);
    let contents = fs::read(outside.place()).unwrap();
    assert!(contents.len() as u64 == LIMITS.max_bytes && contents.starts_with(b"\0\0x\0"));
    // With the files before it.
    let half = vec![0; LIMITS.max_bytes as usize / 2];
    let stream = Stream::directory().file("item/a", &half);
    let result = stream.header(sparse("item/b", LIMITS.max_bytes / 2 + 1, &[], 0)).unpack(&Outside::new());
    assert!(matches!(result, Err(ArchiveError::TooLarge { .. })), "{result:?}");
}

#[test]
fn extents_that_overlap_or_lead_beyond_the_end_are_refused() {
    for extents in [&[(0, 5), (4, 5)][..], &[(5, 5), (0, 5)], &[(95, 6)], &[(101, 1)], &[(u64::MAX >> 1, 1)]]
    {
        let stored = extents.iter().map(|(_, length)| length).sum();
        let stream = Stream::default().header(sparse("item", 100, extents, stored)).data(&[b'x'; 10]);
        is_refused(stream, is_malformed);
    }
    // Another sum than what follows.
    for stored in [0, 4, 6] {
        let stream = Stream::default().header(sparse("item", 100, &[(0, 5)], stored));
        is_refused(stream.data(&vec![b'x'; stored as usize]), is_malformed);
    }
    let mut no_number = sparse("item", 100, &[(0, 5)], 5);
    no_number.as_gnu_mut().unwrap().realsize.fill(b'9');
    is_refused(Stream::default().header(no_number).data(b"xxxxx"), is_malformed);
}

#[test]
fn a_list_of_extents_has_an_end() {
    let mut first = sparse("item", 100, &[], 0);
    first.as_gnu_mut().unwrap().isextended = [1];
    let mut block = GnuExtSparseHeader::new();
    block.isextended = [1];
    let endless = |blocks| {
        let mut stream = Stream::default().header(first.clone());
        stream.bytes.extend(block.as_bytes().repeat(blocks));
        stream
    };
    is_refused(endless(MAX_BLOCKS + 1), is_malformed);
    // Within the maximum, it is the end of the stream that is not a block.
    let outside = Outside::new();
    let result = outside.unpack(&endless(3).bytes, &LIMITS, Links::Inside);
    assert!(matches!(result, Err(ArchiveError::Truncated)), "{result:?}");
}

#[test]
fn parts_follow_their_file_without_a_gap() {
    let outside = Outside::new();
    let stream = part(part(Stream::default().file("item", b"one"), "item", 3, b"two"), "item", 6, b"!");
    assert_eq!(stream.unpack(&outside).unwrap().bytes, 7);
    assert_eq!(fs::read(outside.place()).unwrap(), b"onetwo!");

    let one = || Stream::default().file("item", b"one");
    for position in [0, 2, 4, u64::MAX >> 1] {
        is_refused(part(one(), "item", position, b"two"), is_out_of_order);
    }
    is_refused(part(Stream::default(), "item", 0, b"one"), is_out_of_order);
    is_refused(part(one(), "item/a", 3, b"two"), is_out_of_order);
    is_refused(part(part(one(), "item", 3, b"two"), "item", 3, b"two"), is_out_of_order);
    is_refused(part(one(), "item", 3, b"two").file("item", b"again"), is_out_of_order);
    is_refused(part(one(), "other", 3, b"two"), |error| matches!(error, ArchiveError::BadName { .. }));
    // An empty part could go on without end.
    is_refused(part(one(), "item", 3, b""), is_malformed);
    // A file in a directory has no parts.
    let stream = part(Stream::directory().file("item/a", b"one"), "item/a", 3, b"two");
    let result = stream.unpack(&Outside::new());
    assert!(matches!(result, Err(ArchiveError::OutOfOrder { .. })), "{result:?}");
}

#[test]
fn parts_count_against_the_limit() {
    let half = vec![b'x'; LIMITS.max_bytes as usize / 2];
    let position = half.len() as u64;
    let stream = || part(Stream::default().file("item", &half), "item", position, &half);
    assert_eq!(stream().unpack(&Outside::new()).unwrap().bytes, LIMITS.max_bytes);
    is_refused(part(stream(), "item", LIMITS.max_bytes, b"x"), is_too_large);
}

#[test]
fn parts_may_follow_holes() {
    let outside = Outside::new();
    let stream = Stream::default().header(sparse("item", 6, &[(1, 2)], 2)).data(b"ab");
    let report = part(stream, "item", 6, b"end").unpack(&outside).unwrap();
    assert_eq!((report.entries, report.bytes), (1, 9));
    assert_eq!(fs::read(outside.place()).unwrap(), b"\0ab\0\0\0end");
}
