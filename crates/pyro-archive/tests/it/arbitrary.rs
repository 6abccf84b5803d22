//! Whatever arrives, nothing changes outside the place.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use pyro_archive::{Limits, Links};
use tar::{EntryType, Header};

use crate::pieces;
use crate::streams::{LIMITS, Stream, header};
use crate::trees::Outside;

const SMALL: Limits = Limits { max_entries: 12, max_bytes: 2000 };

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn links() -> impl Strategy<Value = Links> {
    select(&[Links::Inside, Links::Any][..])
}

/// Names and targets made of what an attack would need.
fn path() -> impl Strategy<Value = String> {
    let part = select(&["item", "a", "b", "link", "..", ".", "", "secret", "neighbour"][..]);
    let free = vec(part.clone(), 1..5).prop_map(|parts| parts.join("/"));
    let below = vec(select(&["a", "b", "link"][..]), 0..4)
        .prop_map(|parts| ["item"].into_iter().chain(parts).collect::<Vec<_>>().join("/"));
    prop_oneof![1 => free, 4 => below]
}

fn entries() -> impl Strategy<Value = Stream> {
    let kind = select(b"00055555222221LKxSM".as_slice());
    let entry = (kind, path(), path(), vec(any::<u8>(), 0..600));
    (vec(entry, 0..10), any::<bool>()).prop_map(|(mut entries, in_order)| {
        if in_order {
            entries.sort_by(|one, other| one.1.split('/').cmp(other.1.split('/')));
            entries.dedup_by(|one, other| one.1 == other.1);
        }
        entries.into_iter().fold(Stream::directory(), |stream, (kind, name, target, data)| {
            let kind = EntryType::new(kind);
            let data = match kind {
                EntryType::Regular => data,
                EntryType::GNULongName | EntryType::GNULongLink => target.clone().into_bytes(),
                EntryType::GNUSparse => return pieces::with_hole(stream, &name, &data),
                kind if kind == EntryType::new(b'M') => return pieces::part(stream, &name, 0, &data),
                _ => Vec::new(),
            };
            stream.entry(kind, name.as_bytes(), target.as_bytes(), &data)
        })
    })
}

fn valid() -> Stream {
    let stream = Stream::directory().file("item/a", b"data").dir("item/b").link("item/b/link", "../a");
    let stream =
        stream.entry(EntryType::GNULongName, b"", b"", b"item/b/name\0").file("item/b/name", b"more");
    pieces::with_hole(stream, "item/c", b"data").end()
}

/// A file in parts, the first of which has holes.
fn valid_in_parts() -> Stream {
    let stream = pieces::with_hole(Stream::default(), "item", b"data");
    pieces::part(stream, "item", 8, b"more").end()
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn of_bytes(bytes in vec(any::<u8>(), 0..3000), links in links()) {
        let outside = Outside::new();
        prop_assert!(outside.unpack(&bytes, &SMALL, links).is_err());
    }

    #[test]
    fn of_a_header(bytes in vec(any::<u8>(), 512..513), name in path(), links in links()) {
        let outside = Outside::new();
        let mut odd = Header::new_gnu();
        odd.as_mut_bytes()[100..257].copy_from_slice(&bytes[100..257]);
        odd.as_mut_bytes()[265..].copy_from_slice(&bytes[265..]);
        let plain = header(EntryType::Regular, name.as_bytes(), 0);
        odd.as_mut_bytes()[..100].copy_from_slice(&plain.as_bytes()[..100]);
        let _ = Stream::directory().header(odd).unpack_with(&outside, &SMALL, links);
    }

    #[test]
    fn of_a_changed_stream(
        changes in vec((any::<Index>(), any::<u8>()), 1..6),
        right in any::<bool>(),
        in_parts in any::<bool>(),
        links in links(),
    ) {
        let outside = Outside::new();
        let mut bytes = if in_parts { valid_in_parts() } else { valid() }.bytes;
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
            let block = &mut bytes[index / 512 * 512..][..512];
            // Behind a wrong checksum nothing is looked at.
            if right && block[257..262] == *b"ustar" {
                let mut header = Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let _ = outside.unpack(&bytes, &SMALL, links);
    }

    #[test]
    fn of_entries(stream in entries(), again in entries(), links in links()) {
        let outside = Outside::new();
        let first = stream.unpack_with(&outside, &SMALL, links);
        if let Ok(report) = first {
            prop_assert!(report.entries + report.left_out <= SMALL.max_entries);
            prop_assert!(report.bytes <= SMALL.max_bytes);
        }
        // Into what the first has left.
        let _ = again.unpack_with(&outside, &SMALL, links);
    }
}

#[test]
fn the_streams_that_are_changed_are_good_ones() {
    assert_eq!(Outside::new().unpack(&valid().bytes, &LIMITS, Links::Inside).unwrap().entries, 6);
    assert_eq!(Outside::new().unpack(&valid_in_parts().bytes, &LIMITS, Links::Inside).unwrap().bytes, 12);
}
