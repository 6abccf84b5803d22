//! What is packed, and what is not.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use pyro_archive::{ArchiveError, Limits, Links, MAX_DEPTH, Report, pack};
use tempfile::tempdir;

use crate::streams::LIMITS;
use crate::trees::{Outside, set_mode, tree};

fn packed(source: &Path, limits: &Limits) -> Result<(Vec<u8>, Report), ArchiveError> {
    let mut stream = Vec::new();
    pack(source, &mut stream, limits).map(|report| (stream, report))
}

/// Names and kinds as another reader sees them.
fn listing(stream: &[u8]) -> Vec<(String, u8)> {
    let mut archive = tar::Archive::new(stream);
    let entries = archive.entries().unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            (name, entry.header().entry_type().as_byte())
        })
        .collect()
}

#[test]
fn a_stream_is_sorted_tar_that_others_can_read() {
    let dir = tempdir().unwrap();
    let long = "long".repeat(50);
    fs::create_dir_all(dir.path().join(&long)).unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    for file in ["b", "a/z", "a.", "A"] {
        fs::write(dir.path().join(file), file).unwrap();
    }
    symlink(&long, dir.path().join("c")).unwrap();
    let (stream, report) = packed(dir.path(), &LIMITS).unwrap();
    let expected = [
        ("item/".to_owned(), b'5'),
        ("item/A".to_owned(), b'0'),
        ("item/a/".to_owned(), b'5'),
        ("item/a/z".to_owned(), b'0'),
        ("item/a.".to_owned(), b'0'),
        ("item/b".to_owned(), b'0'),
        ("item/c".to_owned(), b'2'),
        (format!("item/{long}/"), b'5'),
    ];
    assert_eq!(listing(&stream), expected);
    assert_eq!((report.entries, report.bytes, report.left_out), (8, 7, 0));
    assert_eq!(packed(dir.path(), &LIMITS).unwrap().0, stream);
    assert!(stream.ends_with(&[0; 1024]));
}

#[test]
fn a_file_that_says_it_is_empty_is_read_all_the_same() {
    let (stream, report) = packed(Path::new("/proc/version"), &LIMITS).unwrap();
    let mut archive = tar::Archive::new(stream.as_slice());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let mut text = String::new();
    io::Read::read_to_string(&mut entry, &mut text).unwrap();
    assert_eq!(text, fs::read_to_string("/proc/version").unwrap());
    assert_eq!((report.entries, report.bytes), (1, text.len() as u64));
    let refused = packed(Path::new("/proc/version"), &Limits { max_bytes: 5, ..LIMITS }).unwrap_err();
    assert!(matches!(refused, ArchiveError::TooLarge { limit: 5 }), "{refused:?}");
    let unread = packed(Path::new("/proc/self/mem"), &LIMITS).unwrap_err();
    assert!(matches!(unread, ArchiveError::Io { action: "read", .. }), "{unread:?}");
}

#[test]
fn what_the_kernel_makes_up_is_copied_one_file_at_a_time() {
    // Its size is 4096 bytes.
    let file = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    let file = if file.exists() { file } else { Path::new("/proc/sys/kernel/ostype") };
    let (stream, report) = packed(file, &LIMITS).unwrap();
    let contents = pyro_archive::read_contents(&mut stream.as_slice(), 4096).unwrap();
    assert_eq!(contents, fs::read(file).unwrap());
    assert_eq!(report.bytes, contents.len() as u64);
    let refused = packed(Path::new("/proc/self"), &LIMITS).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "/proc/self belongs to the kernel: only single files of it can be copied"
    );
}

#[test]
fn holes_take_no_space() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("disk");
    let file = File::create(&path).unwrap();
    let size = 6 << 30;
    let limits = Limits { max_bytes: size, ..LIMITS };
    for data in [None, Some(3 << 30), Some(0), Some(size - 1)] {
        file.set_len(size).unwrap();
        if let Some(offset) = data {
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", offset).unwrap();
        }
        let (stream, report) = packed(&path, &limits).unwrap();
        assert_eq!(report.bytes, size);
        assert!(stream.len() < 1 << 20, "{} bytes", stream.len());
        assert_eq!(listing(&stream), [("item".to_owned(), b'S')]);
        let outside = Outside::new();
        assert_eq!(outside.unpack(&stream, &limits, Links::Any).unwrap().bytes, size);
        let metadata = fs::metadata(outside.place()).unwrap();
        assert_eq!(metadata.len(), size);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
        assert!(blocks < 4096, "{blocks} blocks");
        if let Some(offset) = data {
            let mut byte = [0];
            let copy = File::open(outside.place()).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&copy, &mut byte, offset).unwrap();
            assert_eq!(&byte, b"x");
        }
        let refused = packed(&path, &Limits { max_bytes: size - 1, ..LIMITS }).unwrap_err();
        assert!(matches!(refused, ArchiveError::TooLarge { .. }), "{refused:?}");
    }
}

#[test]
fn others_can_read_a_file_with_many_holes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("disk");
    let file = File::create(&path).unwrap();
    for piece in 0..30u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[piece as u8 + 1; 1000], piece << 18).unwrap();
    }
    file.set_len(31 << 18).unwrap();
    let (stream, _) = packed(&path, &Limits { max_bytes: 1 << 30, ..LIMITS }).unwrap();
    assert!(stream.len() < 1 << 20, "{} bytes", stream.len());
    let expected = fs::read(&path).unwrap();
    let mut archive = tar::Archive::new(stream.as_slice());
    let mut read = Vec::new();
    io::Read::read_to_end(&mut archive.entries().unwrap().next().unwrap().unwrap(), &mut read).unwrap();
    assert!(read == expected);
    assert!(pyro_archive::read_contents(&mut stream.as_slice(), 1 << 30).unwrap() == expected);
}

#[test]
fn nothing_says_whose_it_is() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "x").unwrap();
    set_mode(&path, 0o4751);
    let (stream, _) = packed(&path, &LIMITS).unwrap();
    let header = tar::Header::from_byte_slice(&stream[..512]);
    assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mode().unwrap()), (0, 0, 0o751));
    assert_eq!(header.username().unwrap().unwrap_or_default(), "");
}

#[test]
fn links_are_followed_only_at_the_source_itself() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    symlink("/etc", dir.path().join("real/etc")).unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    let (stream, _) = packed(&dir.path().join("link"), &LIMITS).unwrap();
    assert_eq!(listing(&stream), [("item/".to_owned(), b'5'), ("item/etc".to_owned(), b'2')]);
    symlink("link/etc/passwd", dir.path().join("file")).unwrap();
    let (stream, _) = packed(&dir.path().join("file"), &LIMITS).unwrap();
    assert_eq!(listing(&stream), [("item".to_owned(), b'0')]);
}

#[test]
fn what_has_no_place_in_a_stream_is_left_out() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let sockets: Vec<_> =
        (0..7).map(|number| UnixListener::bind(dir.path().join(format!("s{number}"))).unwrap()).collect();
    let fifo = dir.path().join("fifo\n");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let (stream, report) = packed(dir.path(), &LIMITS).unwrap();
    assert_eq!(listing(&stream).len(), 2);
    assert_eq!((report.entries, report.left_out), (2, sockets.len() as u64 + 1));
    let sockets = (0..4).map(|number| format!("item/s{number}: a socket"));
    assert_eq!(
        report.examples,
        ["item/fifo\\n: a fifo".to_owned()].into_iter().chain(sockets).collect::<Vec<_>>()
    );
    for source in [fifo.as_path(), Path::new("/dev/null")] {
        assert!(matches!(packed(source, &LIMITS), Err(ArchiveError::NotAnItem { .. })));
    }
    let missing = packed(&dir.path().join("missing"), &LIMITS);
    assert!(matches!(missing, Err(ArchiveError::Io { action: "examine", .. })), "{missing:?}");
}

#[test]
fn limits_hold() {
    let dir = tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(dir.path().join(name), [0; 100]).unwrap();
    }
    let limits = |max_entries, max_bytes| Limits { max_entries, max_bytes };
    assert_eq!(packed(dir.path(), &limits(4, 300)).unwrap().1.bytes, 300);
    let result = packed(dir.path(), &limits(3, 300));
    assert!(matches!(result, Err(ArchiveError::TooManyEntries { limit: 3 })), "{result:?}");
    let result = packed(dir.path(), &limits(4, 299));
    assert!(matches!(result, Err(ArchiveError::TooLarge { limit: 299 })), "{result:?}");
    let file = dir.path().join("a");
    assert!(packed(&file, &limits(1, 100)).is_ok());
    assert!(matches!(packed(&file, &limits(0, 100)), Err(ArchiveError::TooManyEntries { .. })));
}

#[test]
fn what_is_as_deep_as_allowed_comes_back() {
    let dir = tempdir().unwrap();
    let deepest = (1..MAX_DEPTH).fold(dir.path().to_owned(), |path, _| path.join("d"));
    fs::create_dir_all(&deepest).unwrap();
    let (stream, _) = packed(dir.path(), &LIMITS).unwrap();
    let outside = Outside::new();
    assert_eq!(outside.unpack(&stream, &LIMITS, Links::Inside).unwrap().entries, MAX_DEPTH as u64);
    assert_eq!(tree(&outside.place()).len(), MAX_DEPTH);
    fs::write(deepest.join("one more"), "").unwrap();
    assert!(matches!(packed(dir.path(), &LIMITS), Err(ArchiveError::TooDeep { .. })));
}

/// Does something to a file when its first bytes arrive, while there are more to read.
struct Meddling<F>(Vec<u8>, Option<F>);

impl<F: FnOnce()> Write for Meddling<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(meddle) = self.1.take() {
            meddle();
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_is_stored_as_it_was_or_not_at_all() {
    const SIZE: usize = 1 << 19;
    let dir = tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![1; SIZE]).unwrap();
    let grow = || File::options().append(true).open(&path).unwrap().write_all(&[2; 5000]).unwrap();
    let mut sink = Meddling(Vec::new(), Some(grow));
    assert_eq!(pack(&path, &mut sink, &LIMITS).unwrap().bytes, SIZE as u64);
    let outside = Outside::new();
    outside.unpack(&sink.0, &LIMITS, Links::Inside).unwrap();
    assert!(fs::read(outside.place()).unwrap() == vec![1; SIZE]);

    let shrink = || File::options().write(true).open(&path).unwrap().set_len(SIZE as u64 / 2).unwrap();
    let mut sink = Meddling(Vec::new(), Some(shrink));
    let result = pack(&path, &mut sink, &LIMITS);
    assert!(matches!(result, Err(ArchiveError::Changed { .. })), "{result:?}");
    let outside = Outside::new();
    let result = outside.unpack(&sink.0, &LIMITS, Links::Inside);
    assert!(matches!(result, Err(ArchiveError::Truncated)), "{result:?}");
}

#[test]
fn a_sink_that_fails_is_an_error() {
    let dir = tempdir().unwrap();
    let mut small = [0; 1000];
    let result = pack(dir.path(), &mut small.as_mut_slice(), &LIMITS);
    assert!(matches!(result, Err(ArchiveError::Stream { action: "write", .. })), "{result:?}");
}
