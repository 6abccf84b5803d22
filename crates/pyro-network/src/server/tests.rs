//! A guest of smoltcp on one end of a socket pair, the network on the other, and servers on the loopback interface, which
//! the policy of these tests opens.

mod dns;
mod guest;
mod hostile;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};

use self::guest::{GATEWAY, GUEST, GUEST_MAC, Guest, RESOLVER, config, loopback};
use super::*;
use crate::config::MacAddress;
use crate::policy::{Policy, Protocol, Rule};

#[test]
fn frames_with_a_foreign_source_are_dropped() {
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap();
    server.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(config(loopback()));
    let from: SocketAddr = (GUEST, 1000).into();
    guest.send_frame(&guest::udp_frame(MacAddress([6, 0, 9, 9, 9, 9]), from, to, b"mac"));
    guest.send_frame(&guest::udp_frame(GUEST_MAC, "10.0.2.16:1000".parse().unwrap(), to, b"ip"));
    guest.send_frame(&guest::udp_frame(GUEST_MAC, "127.0.0.1:1000".parse().unwrap(), to, b"loopback"));
    let mut fragment = guest::udp_frame(GUEST_MAC, from, to, b"fragment");
    fragment[14 + 6] = 0x20;
    guest.send_frame(&fragment);
    guest.send_frame(&guest::udp_frame(GUEST_MAC, from, to, b"good"));
    server.set_nonblocking(false).unwrap();
    let mut buffer = [0; 32];
    let length = server.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"good");
}

#[test]
fn the_gateway_answers_pings_and_requests_for_addresses() {
    let mut guest = Guest::new(config(Policy::default()));
    let reply = guest.ping(GATEWAY);
    assert_eq!(reply, Some(b"data".to_vec()));
}

#[test]
fn what_is_denied_is_refused_at_once_and_logged() {
    let mut guest = Guest::new(config(Policy::default()));
    for address in ["127.0.0.1", "10.9.9.9", "169.254.169.254", "224.0.0.1"] {
        let to: SocketAddr = (address.parse::<IpAddr>().unwrap(), 80).into();
        guest.send_frame(&guest::syn_frame((GUEST, 4000).into(), to));
        assert_eq!(guest.unreachable_code(), 13, "TCP to {address}");
        guest.send_frame(&guest::udp_frame(GUEST_MAC, (GUEST, 4000).into(), to, b"hello"));
        assert_eq!(guest.unreachable_code(), 13, "UDP to {address}");
    }
    let denials = guest.denials();
    let found: Vec<_> = denials.iter().map(|denial| (denial.protocol, denial.rule)).collect();
    assert_eq!(
        found[..4],
        [
            (Protocol::Tcp, Rule::Loopback),
            (Protocol::Udp, Rule::Loopback),
            (Protocol::Tcp, Rule::Private),
            (Protocol::Udp, Rule::Private),
        ]
    );
    assert_eq!(denials[0].port, Some(80));
}

#[test]
fn the_link_leads_nowhere_but_to_its_services() {
    let mut guest = Guest::new(config(loopback()));
    for to in [GATEWAY, RESOLVER] {
        assert!(!guest.connects((to, 80).into()), "{to}");
    }
    guest.send_frame(&guest::udp_frame(GUEST_MAC, (GUEST, 4000).into(), (GATEWAY, 53).into(), b"hello"));
    assert_eq!(guest.unreachable_code(), 3);
    assert!(guest.denials().is_empty());
}

#[test]
fn a_peer_that_breaks_the_framing_ends_the_network() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut server = Server::new(ours.into(), config(Policy::default()), None).unwrap();
    std::io::Write::write_all(&mut &theirs, &[0xff; 8]).unwrap();
    let ended = (0..100).find_map(|_| server.step(Some(Duration::from_millis(10))).err());
    assert!(matches!(ended, Some(RunError::Frame(_))), "{ended:?}");
}

#[test]
fn a_link_that_closes_ends_the_network() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut server = Server::new(ours.into(), config(Policy::default()), None).unwrap();
    drop(theirs);
    assert!((0..100).any(|_| !server.step(Some(Duration::from_millis(10))).unwrap()));
}
