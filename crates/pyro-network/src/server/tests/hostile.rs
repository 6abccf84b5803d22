//! Frames that no kernel would send.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::config::Ipv6Link;
use crate::dns::tests::ask;
use crate::policy::Egress;

/// Frames that are decoded to their last byte.
fn good_frames() -> Vec<Vec<u8>> {
    let from: SocketAddr = (GUEST, 4000).into();
    let arp = [
        &[0xff; 6][..],
        &GUEST_MAC.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &GUEST_MAC.0,
        &GUEST.octets(),
        &[0; 6],
        &GATEWAY.octets(),
    ];
    vec![
        arp.concat(),
        guest::syn_frame(from, "5.6.7.8:443".parse().unwrap()),
        guest::syn_frame(from, (RESOLVER, 53).into()),
        guest::udp_frame(GUEST_MAC, from, "5.6.7.8:443".parse().unwrap(), b"hello"),
        guest::udp_frame(GUEST_MAC, from, (RESOLVER, 53).into(), &ask(7, "a.test", 1)),
        guest::udp_frame(
            GUEST_MAC,
            "[fd70:7972:6f00::f]:4000".parse().unwrap(),
            "[2a00::1]:443".parse().unwrap(),
            b"hello",
        ),
        guest::echo_frame(GATEWAY),
    ]
}

/// Nothing of the host is reached.
fn closed() -> Config {
    let v6 = Ipv6Link {
        guest: "fd70:7972:6f00::f".parse().unwrap(),
        gateway: "fd70:7972:6f00::2".parse().unwrap(),
    };
    Config { v6: Some(v6), ..config(Policy { egress: Egress::Allowlist, ..Policy::default() }) }
}

fn feed(bytes: &[u8]) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut server = Server::new(ours.into(), closed(), None).unwrap();
    (&theirs).write_all(bytes).unwrap();
    for _ in 0..8 {
        if !matches!(server.step(Some(Duration::ZERO)), Ok(true)) {
            return;
        }
    }
}

/// A frame with some bytes changed, and cut off or not.
fn changed_frame() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(good_frames()), changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut frame, changes, end, is_cut)| {
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            if is_cut {
                frame.truncate(end.index(frame.len()));
            }
            frame
        },
    )
}

proptest! {
    #[test]
    fn no_frames_end_the_network(frames in prop::collection::vec(changed_frame(), 1..20)) {
        let framed = |frame: &Vec<u8>| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
        feed(&frames.iter().flat_map(framed).collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        feed(&bytes);
    }
}
