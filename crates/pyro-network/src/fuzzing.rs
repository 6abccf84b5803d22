//! Entries for the fuzz targets. Nothing of the host is reached: the policy denies everything.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::{Config, Ipv4Link, Ipv6Link, MacAddress};
use crate::dns::{Question, addresses};
use crate::inspect::server_name;
use crate::policy::{DnsName, Egress, Policy};
use crate::server::Server;

const GUEST_MAC: MacAddress = MacAddress([6, 0, 1, 2, 3, 4]);

/// Feeds a guest's network with what a guest sends: frames, each behind its length.
pub fn frames(data: &[u8]) {
    let config = Config {
        guest_mac: GUEST_MAC,
        v4: Ipv4Link {
            guest: [10, 0, 2, 15].into(),
            gateway: [10, 0, 2, 2].into(),
            resolver: [10, 0, 2, 3].into(),
        },
        v6: Some(Ipv6Link {
            guest: "fd70:7972:6f00::f".parse().unwrap_or(std::net::Ipv6Addr::LOCALHOST),
            gateway: "fd70:7972:6f00::2".parse().unwrap_or(std::net::Ipv6Addr::LOCALHOST),
        }),
        mtu: 65_520,
        resolvers: vec![(std::net::Ipv4Addr::LOCALHOST, 53).into()],
        policy: Policy { egress: Egress::Allowlist, ..Policy::default() },
    };
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    let Ok(mut server) = Server::new(ours.into(), config, None) else { return };
    for part in data.chunks(64 << 10) {
        if theirs.set_nonblocking(true).is_err() || std::io::Write::write(&mut &theirs, part).is_err() {
            return;
        }
        for _ in 0..4 {
            if !matches!(server.step(Some(Duration::ZERO)), Ok(true)) {
                return;
            }
        }
    }
}

/// Decodes a message of the guest, and takes it for an answer too.
pub fn dns(data: &[u8]) {
    let Some(name) = DnsName::new("a.test") else { return };
    let _ = addresses(data, &name);
    if let Ok(question) = Question::parse(data) {
        let _ = question.answer(data.to_vec(), 7);
        let given = [([1, 2, 3, 4].into(), Duration::from_secs(1))];
        let reply = question.addresses(&given);
        if let Some(name) = question.name() {
            assert_eq!(addresses(&reply, name), Some(given.to_vec()));
        }
    }
}

/// Reads the first bytes of a client.
pub fn first_bytes(data: &[u8]) {
    let _ = server_name(data);
}
