//! What a guest might send.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use pyro_archive::{ArchiveError, Limits, Links, MAX_DEPTH, MAX_NAME, unpack};
use tar::{EntryType, Header};

use crate::streams::{LIMITS, Stream, header};
use crate::trees::{Outside, Thing, tree};

/// What is in the place after a stream was refused.
fn names_after(stream: Stream, is_expected: impl Fn(&ArchiveError) -> bool) -> Vec<String> {
    let outside = Outside::new();
    let error = stream.unpack(&outside).unwrap_err();
    assert!(is_expected(&error), "{error:?}");
    if !outside.place().exists() {
        return Vec::new();
    }
    tree(&outside.place()).into_keys().map(|path| path.into_os_string().into_string().unwrap()).collect()
}

fn is_bad_name(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::BadName { .. })
}

fn is_out_of_order(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::OutOfOrder { .. })
}

fn is_malformed(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Malformed { .. })
}

fn is_unsupported(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Unsupported { .. })
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let names =
        ["/etc/passwd", "../evil", "item/../evil", "item/..", "evil", "./item/a", "item//a", "item/a/"];
    for name in names {
        assert_eq!(names_after(Stream::directory().file(name, b"x"), is_bad_name), [""], "{name}");
        assert!(names_after(Stream::default().file(name, b"x"), is_bad_name).is_empty(), "{name}");
    }
    let long = format!("item/{}/../evil", "x".repeat(200));
    let stream = Stream::directory().entry(EntryType::GNULongName, b"item/a", b"", long.as_bytes());
    assert_eq!(names_after(stream.file("item/a", b"x"), is_bad_name), [""]);
}

#[test]
fn a_zero_byte_hides_nothing() {
    let mut hidden = header(EntryType::Regular, b"item/a", 0);
    hidden.as_old_mut().name[8] = b'x';
    assert_eq!(names_after(Stream::directory().header(hidden), is_malformed), [""]);
    let stream = Stream::directory().entry(EntryType::GNULongName, b"", b"", b"item/a\0b\0");
    assert_eq!(names_after(stream.file("item/a", b""), is_bad_name), [""]);
    let stream = Stream::directory().entry(EntryType::GNULongLink, b"", b"", b"a\0b");
    assert_eq!(names_after(stream.link("item/a", "a"), is_malformed), [""]);
}

#[test]
fn nothing_is_written_through_a_symlink_of_the_stream() {
    for links in [Links::Inside, Links::Any] {
        let outside = Outside::new();
        let target = outside.path().to_str().unwrap().to_owned();
        let stream = Stream::directory().link("item/up", &target).file("item/up/secret", b"evil");
        let error = stream.unpack_with(&outside, &LIMITS, links).unwrap_err();
        assert!(is_out_of_order(&error), "{error:?}");
        // The same with the directory said to be one, where it is a symlink already.
        let stream = Stream::directory().dir("item/up").file("item/up/secret", b"evil");
        let result = stream.unpack_with(&outside, &LIMITS, links);
        match links {
            Links::Inside => assert_eq!(result.unwrap().entries, 3),
            Links::Any => assert!(matches!(result, Err(ArchiveError::InTheWay { .. })), "{result:?}"),
        }
    }
    // Within one stream nothing has two natures.
    let stream = Stream::directory().link("item/a", ".").dir("item/a");
    assert_eq!(names_after(stream, is_out_of_order), ["", "a"]);
}

#[test]
fn entries_come_in_order_and_once() {
    let cases = [
        Stream::directory().file("item/b", b"").file("item/a", b""),
        Stream::directory().file("item/a", b"").file("item/a", b""),
        Stream::directory().dir("item/a").dir("item/b").file("item/a/x", b""),
        Stream::directory().dir("item/a").file("item/a", b""),
        Stream::directory().file("item/a", b"").dir("item/a"),
        Stream::directory().file("item/a", b"").file("item/a/x", b""),
        Stream::directory().dir("item"),
        Stream::directory().file("item", b""),
        Stream::directory().file("item/a/b", b""),
        Stream::default().file("item/a", b""),
        Stream::default().file("item", b"").file("item", b""),
        Stream::default().file("item", b"").file("item/a", b""),
    ];
    for stream in cases {
        names_after(stream, is_out_of_order);
    }
    names_after(Stream::default(), is_malformed);
    names_after(Stream::default().link("item", "parent"), is_malformed);
}

#[test]
fn other_kinds_are_refused() {
    let kinds = b"13467ADKLNVXgx\x01\xff9";
    for kind in kinds.iter().filter(|kind| !b"KL".contains(kind)) {
        let kind = EntryType::new(*kind);
        let stream = Stream::directory().entry(kind, b"item/a", b"../../secret", b"");
        assert_eq!(names_after(stream, is_unsupported), [""], "{kind:?}");
        let stream = Stream::default().entry(kind, b"item", b"../../secret", b"");
        assert!(names_after(stream, is_unsupported).is_empty(), "{kind:?}");
    }
}

#[test]
fn only_gnu_headers_with_right_numbers_are_read() {
    for mut other in [Header::new_ustar(), Header::new_old()] {
        other.as_mut_bytes()[..148]
            .copy_from_slice(&header(EntryType::Regular, b"item", 0).as_bytes()[..148]);
        names_after(Stream::default().header(other), is_malformed);
    }
    let mut numbers = [Header::new_gnu(), Header::new_gnu(), Header::new_gnu()];
    for (index, number) in numbers.iter_mut().enumerate() {
        *number = header(EntryType::Regular, b"item", 0);
        let fields = number.as_old_mut();
        [fields.size.as_mut_slice(), &mut fields.mode, &mut fields.mtime][index].fill(b'9');
        names_after(Stream::default().header(number.clone()), is_malformed);
    }
    let mut stream = Stream::default().file("item", b"x");
    stream.bytes[10] ^= 1;
    names_after(stream, is_malformed);
    let mut stream = Stream::default().file("item", b"x").data(&[0; 512]);
    stream.bytes.push(1);
    names_after(stream.data(b""), is_malformed);
}

#[test]
fn sizes_and_targets_belong_to_what_has_them() {
    names_after(Stream::directory().entry(EntryType::Directory, b"item/a", b"", b"x"), is_malformed);
    names_after(Stream::directory().entry(EntryType::Symlink, b"item/a", b"b", b"x"), is_malformed);
    names_after(Stream::directory().link("item/a", ""), is_malformed);
    let long = |kind| Stream::directory().entry(kind, b"", b"", b"item/long\0");
    names_after(long(EntryType::GNULongLink).file("item/a", b""), is_malformed);
    names_after(long(EntryType::GNULongLink), is_malformed);
    names_after(long(EntryType::GNULongName), is_malformed);
    let twice = long(EntryType::GNULongName).entry(EntryType::GNULongName, b"", b"", b"item/long\0");
    names_after(twice.file("item/a", b""), is_malformed);
}

#[test]
fn no_special_bits_are_set() {
    let outside = Outside::new();
    let mut file = header(EntryType::Regular, b"item/a", 0);
    file.set_mode(0o107_755);
    let mut dir = header(EntryType::Directory, b"item/b", 0);
    dir.set_mode(0o47_777);
    Stream::directory().header(file).header(dir).unpack(&outside).unwrap();
    assert_eq!(fs::metadata(outside.place().join("a")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(outside.place().join("b")).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn links_out_of_the_item_are_left_out_or_made_as_asked() {
    let stream = || {
        let stream = Stream::directory().link("item/abs", "/etc/passwd").dir("item/d");
        let stream = stream.link("item/d/in", "../x/y").link("item/d/out", "../../secret");
        stream.link("item/d/tricky", "in/../../..").link("item/in", "d/in").link("item/out", "..")
    };
    let outside = Outside::new();
    let report = stream().unpack(&outside).unwrap();
    assert_eq!((report.entries, report.left_out), (4, 4));
    let left_out = ["item/abs", "item/d/out", "item/d/tricky", "item/out"];
    assert_eq!(report.examples, left_out.map(|name| format!("{name}: a symlink that leads out of the copy")));
    let things = tree(&outside.place());
    assert_eq!(things.len(), 4);
    assert_eq!(things["d/in".as_ref() as &std::path::Path], Thing::Symlink("../x/y".into()));

    let outside = Outside::new();
    let report = stream().unpack_with(&outside, &LIMITS, Links::Any).unwrap();
    assert_eq!((report.entries, report.left_out), (8, 0));
    assert_eq!(fs::read_link(outside.place().join("abs")).unwrap().to_str(), Some("/etc/passwd"));
}

#[test]
fn too_many_entries_are_refused_also_when_they_are_left_out() {
    let limits = Limits { max_entries: 10, max_bytes: 100 };
    for (count, is_right) in [(9, true), (10, false)] {
        for target in [None, Some("x"), Some("/x")] {
            let stream = (0..count).fold(Stream::directory(), |stream, number| match target {
                None => stream.file(&format!("item/{number:03}"), b""),
                Some(target) => stream.link(&format!("item/{number:03}"), target),
            });
            let result = stream.unpack_with(&Outside::new(), &limits, Links::Inside);
            match result {
                Ok(report) => assert!(is_right && report.entries + report.left_out == 10),
                Err(error) => {
                    assert!(
                        !is_right && matches!(error, ArchiveError::TooManyEntries { limit: 10 }),
                        "{error:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn too_many_bytes_are_refused_before_they_are_written() {
    let is_too_large = |error: &ArchiveError| matches!(error, ArchiveError::TooLarge { .. });
    for size in [LIMITS.max_bytes + 1, 1 << 40, 1 << 62, u64::MAX] {
        let stream = Stream::default().header(header(EntryType::Regular, b"item", size));
        assert!(names_after(stream, is_too_large).is_empty());
    }
    let half = vec![0; LIMITS.max_bytes as usize / 2];
    let stream = Stream::directory().file("item/a", &half).file("item/b", &half);
    assert_eq!(stream.unpack(&Outside::new()).unwrap().bytes, LIMITS.max_bytes);
    let stream = Stream::directory().file("item/a", &half).file("item/b", &half).file("item/c", b"x");
    assert_eq!(names_after(stream, is_too_large), ["", "a", "b"]);
}

#[test]
fn too_deep_or_long_names_are_refused() {
    let stream = |depth: usize| {
        (0..depth).fold((Stream::directory(), "item".to_owned()), |(stream, name), _| {
            let name = format!("{name}/d");
            (stream.entry(EntryType::GNULongName, b"", b"", name.as_bytes()).dir(&name), name)
        })
    };
    assert_eq!(stream(MAX_DEPTH - 1).0.unpack(&Outside::new()).unwrap().entries, MAX_DEPTH as u64);
    names_after(stream(MAX_DEPTH).0, |error| matches!(error, ArchiveError::TooDeep { .. }));
    for kind in [EntryType::GNULongName, EntryType::GNULongLink] {
        let long = format!("item/{}", "x/".repeat(MAX_NAME));
        let stream = Stream::directory().entry(kind, b"item/a", b"", &long.as_bytes()[..MAX_NAME + 2]);
        names_after(stream.link("item/a", "b"), |error| matches!(error, ArchiveError::NameTooLong { .. }));
    }
}

/// Gives out a stream and fails when more is asked for, as one that goes on for long must not be read.
struct Watched<'a>(&'a [u8]);

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!self.0.is_empty(), "more was read than needed");
        self.0.read(buffer)
    }
}

#[test]
fn long_names_of_any_declared_size_are_not_read() {
    let outside = Outside::new();
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader]
    {
        for size in [MAX_NAME as u64 + 3, 10 << 30, u64::MAX] {
            let stream = Stream::directory().header(header(kind, b"item/a", size)).bytes;
            let mut source = Watched(&stream);
            unpack(&mut source, &outside.parent(), "place".as_ref(), &LIMITS, Links::Any).unwrap_err();
            assert!(source.0.is_empty());
        }
    }
}

#[test]
fn nothing_is_read_beyond_the_end() {
    let stream = Stream::directory().end().bytes;
    let outside = Outside::new();
    let mut source = Watched(&stream);
    unpack(&mut source, &outside.parent(), "place".as_ref(), &LIMITS, Links::Any).unwrap();
}

#[test]
fn messages_do_not_steer_terminals() {
    let name = "item/\u{1b}[2J\u{202e}".to_owned() + &"\n".repeat(80);
    let error = Stream::directory().entry(EntryType::Fifo, name.as_bytes(), b"", b"").unpack(&Outside::new());
    let text = error.unwrap_err().to_string();
    assert!(text.chars().all(|character| !character.is_control() && character != '\u{202e}'), "{text:?}");
    assert!(text.chars().count() < 300, "{text}");

    let report = Stream::directory().link(&name, "/").unpack(&Outside::new()).unwrap();
    assert!(report.examples[0].starts_with("item/\\u{1b}[2J\\u{202e}\\n"), "{report:?}");
    assert!(report.examples[0].chars().all(|character| !character.is_control()), "{report:?}");
}

#[test]
fn the_item_has_one_name() {
    let stream = Stream::directory().end().bytes;
    let outside = Outside::new();
    for name in ["", ".", "..", "/", "a/b", "a/", "/a", "../a", "a\0b"] {
        let result = unpack(&mut stream.as_slice(), &outside.parent(), name.as_ref(), &LIMITS, Links::Any);
        assert!(matches!(result, Err(ArchiveError::NotOneName { .. })), "{name:?}: {result:?}");
        outside.assert_unchanged();
    }
}
