use std::net::UdpSocket;

use super::*;
use crate::dns::Bindings;
use crate::limits;
use crate::policy::{DnsName, Host, HostRule};

#[test]
fn only_the_peer_of_a_flow_is_heard() {
    let mut guest = Guest::new(config(loopback()));
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(guest::LONG)).unwrap();
    let to = server.local_addr().unwrap();
    let from: SocketAddr = (GUEST, 5353).into();
    guest.send_frame(&guest::udp_frame(GUEST_MAC, from, to, b"question"));
    let mut buffer = [0; 65_536];
    let (length, flow) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"question");
    assert_ne!(flow.port(), 5353, "the guest's port is not one of the host");
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let _ = stranger.send_to(b"unsolicited", flow);
    server.send_to(b"answer", flow).unwrap();
    assert_eq!(guest.datagram(), (to, 5353, b"answer".to_vec()));
    assert!(guest.hears_nothing());
    // Large datagrams pass in one piece, both ways.
    let large = vec![7; 60_000];
    guest.send_frame(&guest::udp_frame(GUEST_MAC, from, to, &large));
    let (length, _) = server.recv_from(&mut buffer).unwrap();
    assert!(buffer[..length] == large);
    server.send_to(&large, flow).unwrap();
    assert!(guest.datagram().2 == large);
    let known = guest.ask(move |network| network.udp.local_address(&Ends { guest: from, destination: to }));
    assert_eq!(known, Some(flow));
}

#[test]
fn a_closed_port_is_reported() {
    let mut guest = Guest::new(config(loopback()));
    let to = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    guest.send_frame(&guest::udp_frame(GUEST_MAC, (GUEST, 4000).into(), to, &[7; 1000]));
    assert_eq!(guest.unreachable_code(), 3);
}

#[test]
fn the_number_of_flows_is_bounded_and_the_silent_ones_end() {
    let mut guest = Guest::new(config(loopback()));
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap();
    // Fewer than may be opened at once.
    for port in 0..400 {
        guest.send_frame(&guest::udp_frame(GUEST_MAC, (GUEST, 10_000 + port).into(), to, b"x"));
    }
    let newest = Ends { guest: (GUEST, 10_399).into(), destination: to };
    guest.wait("the last flow", |guest| guest.ask(move |network| network.udp.local_address(&newest)));
    assert_eq!(guest.ask(|network| network.udp.len()), limits::UDP_FLOWS);
    let left = guest.ask(|network| {
        network.udp.expire(Instant::now() + limits::UDP_ONE_WAY_TIME);
        network.udp.len()
    });
    assert_eq!(left, 0);
}

#[test]
fn a_guest_opens_flows_at_a_bounded_rate() {
    let mut guest = Guest::new(config(loopback()));
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let to = server.local_addr().unwrap();
    let started = Instant::now();
    let mut sources = std::collections::HashSet::new();
    for port in 0..5000 {
        guest.send_frame(&guest::udp_frame(GUEST_MAC, (GUEST, 10_000 + port).into(), to, b"x"));
        while let Ok((_, from)) = server.recv_from(&mut [0; 8]) {
            sources.insert(from);
        }
    }
    // The gateway answers after the frames before were taken.
    assert!(guest.ping(GATEWAY).is_some());
    let allowed = f64::from(limits::NEW_FLOWS_BURST)
        + started.elapsed().as_secs_f64() * f64::from(limits::NEW_FLOWS_PER_SECOND);
    while let Ok((_, from)) = server.recv_from(&mut [0; 8]) {
        sources.insert(from);
    }
    assert!((256..=allowed.ceil() as usize).contains(&sources.len()), "{} of {allowed}", sources.len());
    let denials = guest.denials();
    assert!(denials.iter().any(|denial| denial.rule == Rule::TooManyConnections), "{denials:?}");
    assert!(guest.hears_nothing(), "what is dropped is not reported");
}

#[test]
fn a_flow_is_judged_again_after_a_while() {
    let mut guest = Guest::new(config(loopback()));
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(guest::LONG)).unwrap();
    let to = server.local_addr().unwrap();
    let frame = guest::udp_frame(GUEST_MAC, (GUEST, 4000).into(), to, b"x");
    guest.send_frame(&frame);
    server.recv_from(&mut [0; 8]).unwrap();
    // What was allowed before is denied from now on, and known flows go on for a while.
    guest.ask(|network| network.shared.config.policy = Policy::default());
    guest.send_frame(&frame);
    server.recv_from(&mut [0; 8]).unwrap();
    guest.ask(|network| network.udp.age(limits::UDP_JUDGED_TIME));
    guest.send_frame(&frame);
    assert_eq!(guest.unreachable_code(), 13);
    assert_eq!(guest.ask(|network| network.udp.len()), 0);
}

/// A guest does not resolve a name again while it uses the address.
#[test]
fn a_flow_outlives_the_binding_of_its_name() {
    let mut guest = Guest::new(config(loopback()));
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(guest::LONG)).unwrap();
    let to = server.local_addr().unwrap();
    let name = || DnsName::new("server.test").unwrap();
    guest.ask(move |network| network.shared.bindings.bind(&name(), to.ip(), limits::UDP_TIME));
    let from: SocketAddr = (GUEST, 4000).into();
    guest.send_frame(&guest::udp_frame(GUEST_MAC, from, to, b"x"));
    server.recv_from(&mut [0; 8]).unwrap();
    // A name opens no loopback address, so the flow is taken for one to a private address that the name has.
    let private: SocketAddr = ([10, 255, 254, 253], to.port()).into();
    guest.ask(move |network| {
        network.udp.take_for(Ends { guest: from, destination: to }, private);
        let rule = HostRule { host: Host::Name(name()), port: None };
        network.shared.config.policy = Policy { allow_hosts: vec![rule], ..Policy::default() };
        network.shared.bindings = Bindings::default();
        network.udp.age(limits::UDP_JUDGED_TIME);
    });
    guest.send_frame(&guest::udp_frame(GUEST_MAC, from, private, b"x"));
    server.recv_from(&mut [0; 8]).unwrap();
    // Another flow needs the name.
    guest.send_frame(&guest::udp_frame(GUEST_MAC, (GUEST, 4001).into(), private, b"x"));
    assert_eq!(guest.unreachable_code(), 13);
    assert_eq!(guest.ask(|network| network.udp.len()), 1);
}
