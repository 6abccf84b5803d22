use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};

use smoltcp::wire::DnsRcode;

use super::*;
use crate::dns::tests::{addresses, answer, ask, code};
use crate::limits;
use crate::policy::tests::domain_rule;
use crate::policy::{DnsName, Egress};

const POINTER: &[u8] = &[0xc0, 12];

/// Records: owner, type, time, data.
type Records<'a> = &'a [(&'a [u8], u16, u32, &'a [u8])];

/// A resolver of the host, by UDP and TCP on one port.
struct Resolver {
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
}

impl Resolver {
    fn new() -> Self {
        loop {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = tcp.local_addr().unwrap();
            if let Ok(udp) = UdpSocket::bind(address) {
                udp.set_read_timeout(Some(guest::LONG)).unwrap();
                return Self { udp, tcp, address };
            }
        }
    }

    fn guest(&self, policy: Policy) -> Guest {
        let address = self.address;
        Guest::with(config(policy), move |network| network.dns.set_resolvers(&[address]))
    }

    /// Takes one question by UDP and answers it.
    fn answer(&self, records: Records<'_>) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let (length, from) = self.udp.recv_from(&mut buffer).unwrap();
        self.udp.send_to(&answer(&buffer[..length], records), from).unwrap();
        buffer[..length].to_vec()
    }
}

fn ask_frame(port: u16, message: &[u8]) -> Vec<u8> {
    guest::udp_frame(GUEST_MAC, (GUEST, port).into(), (RESOLVER, 53).into(), message)
}

fn allowlist(domains: &[&str]) -> Policy {
    Policy {
        egress: Egress::Allowlist,
        allow_domains: domains.iter().map(|rule| domain_rule(rule)).collect(),
        ..Policy::default()
    }
}

fn name(text: &str) -> DnsName {
    DnsName::new(text).unwrap()
}

#[test]
fn questions_are_forwarded_with_an_identifier_of_our_own() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(Policy::default());
    let mut asked = Vec::new();
    for n in 0..8_u16 {
        guest.send_frame(&ask_frame(4000 + n, &ask(7, "a.test", 16)));
        asked.push(resolver.answer(&[(POINTER, 16, 60, b"\x04text")])[..2].to_vec());
        let (from, port, reply) = guest.datagram();
        assert_eq!((from, port), ((RESOLVER, 53).into(), 4000 + n));
        assert_eq!(reply, answer(&ask(7, "a.test", 16), &[(POINTER, 16, 60, b"\x04text")]));
    }
    asked.dedup();
    assert!(asked.len() > 4, "{asked:?}");
}

/// Each exchange is one more pair of a port and an identifier that a forged answer can hit.
#[test]
fn equal_questions_are_asked_once_and_all_answered() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(allowlist(&["a.test", "b.test"]));
    // More than a browser that opens many connections at once asks.
    let ports = 4000..4000 + limits::DNS_ASKERS as u16;
    for port in ports.clone() {
        guest.send_frame(&ask_frame(port, &ask(port, "a.test", 1)));
    }
    // A repetition is not one more question, and one more than the maximum is refused.
    guest.send_frame(&ask_frame(4000, &ask(4000, "a.test", 1)));
    guest.send_frame(&ask_frame(6000, &ask(9, "a.test", 1)));
    let (_, port, refused) = guest.datagram();
    assert_eq!((port, code(&refused)), (6000, Some(DnsRcode::ServFail)));
    // They keep no other name from being asked for.
    guest.send_frame(&ask_frame(6001, &ask(7, "b.test", 1)));
    resolver.answer(&[(POINTER, 1, 60, &[5, 6, 7, 8])]);
    let mut answered: Vec<_> = ports
        .clone()
        .map(|_| {
            let (_, port, reply) = guest.datagram();
            let found = addresses(&reply, &name("a.test")).unwrap();
            assert_eq!(found[0].0, std::net::IpAddr::from([5, 6, 7, 8]));
            assert_eq!(reply[..2], port.to_be_bytes());
            port
        })
        .collect();
    answered.sort_unstable();
    assert!(answered.into_iter().eq(ports));
    resolver.answer(&[(POINTER, 1, 60, &[5, 6, 7, 9])]);
    let (_, port, reply) = guest.datagram();
    assert_eq!((port, code(&reply)), (6001, Some(DnsRcode::NoError)));
    resolver.udp.set_nonblocking(true).unwrap();
    assert!(resolver.udp.recv_from(&mut [0; 512]).is_err(), "it was asked once");
}

#[test]
fn answers_that_pass_unchanged_are_shared_by_equal_messages_only() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(Policy::default());
    guest.send_frame(&ask_frame(4000, &ask(7, "a.test", 16)));
    guest.send_frame(&ask_frame(4001, &ask(8, "a.test", 16)));
    guest.send_frame(&ask_frame(4002, &ask(9, "A.test", 16)));
    let records: Records<'_> = &[(POINTER, 16, 60, b"\x04text")];
    resolver.answer(records);
    resolver.answer(records);
    let mut replies: Vec<_> =
        (0..3).map(|_| guest.datagram()).map(|(_, port, reply)| (port, reply)).collect();
    replies.sort_unstable();
    assert_eq!(replies[1], (4001, answer(&ask(8, "a.test", 16), records)));
    assert_eq!(replies[2], (4002, answer(&ask(9, "A.test", 16), records)));
}

#[test]
fn questions_are_sent_at_a_bounded_rate() {
    let mut guest = Resolver::new().guest(Policy::default());
    let refused = guest.ask(|network| {
        let Network { dns, shared, .. } = network;
        for n in 0..2 * limits::DNS_BURST as u16 {
            dns.ask(Origin::Datagram((GUEST, 4000).into()), &ask(n, &format!("n{n}.test"), 1), shared);
            dns.forget();
        }
        dns.take_answers().len()
    });
    assert!((1..=limits::DNS_BURST as usize).contains(&refused), "{refused}");
}

#[test]
fn forged_answers_are_not_taken() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(Policy::default());
    guest.send_frame(&ask_frame(4000, &ask(7, "a.test", 1)));
    let mut buffer = [0; 4096];
    let (length, from) = resolver.udp.recv_from(&mut buffer).unwrap();
    let question = &buffer[..length];
    let good = answer(question, &[(POINTER, 1, 60, &[1, 1, 1, 1])]);
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    resolver.udp.send_to(&other_id, from).unwrap();
    let other_name = answer(&ask(u16::from_be_bytes([question[0], question[1]]), "b.test", 1), &[]);
    resolver.udp.send_to(&other_name, from).unwrap();
    let _ = UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&good, from);
    assert!(guest.hears_nothing());
    resolver.udp.send_to(&good, from).unwrap();
    assert_eq!(guest.datagram().2[..2], [0, 7]);
}

#[test]
fn a_flood_of_forged_answers_is_taken_in_parts() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(Policy::default());
    guest.send_frame(&ask_frame(4000, &ask(7, "a.test", 1)));
    let mut buffer = [0; 4096];
    let (length, from) = resolver.udp.recv_from(&mut buffer).unwrap();
    let good = answer(&buffer[..length], &[(POINTER, 1, 60, &[1, 1, 1, 1])]);
    let socket = resolver.udp.try_clone().unwrap();
    let is_answered = guest.ask(move |network| {
        for _ in 0..100 {
            socket.send_to(b"forged", from).unwrap();
        }
        socket.send_to(&good, from).unwrap();
        let Network { dns, shared, .. } = network;
        dns.wake();
        assert!(dns.pump(shared), "there is more");
        !dns.take_answers().is_empty()
    });
    assert!(!is_answered);
    assert_eq!(guest.datagram().2[..2], [0, 7]);
}

#[test]
fn a_connection_whose_handshake_the_guest_resets_leaves_nothing() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(Policy::default());
    let (from, to) = ((GUEST, 4000).into(), (RESOLVER, 53).into());
    guest.send_frame(&guest::syn_frame(from, to));
    guest.send_frame(&guest::reset_frame(from, to));
    guest.send_frame(&ask_frame(4000, &ask(7, "a.test", 1)));
    // It is asked after the frames before it were taken.
    resolver.answer(&[]);
    guest.datagram();
    assert_eq!(guest.ask(|network| network.dns_connections.len()), 0);
}

#[test]
fn questions_by_tcp_are_forwarded_by_tcp() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(Policy::default());
    let handle = guest.connect((RESOLVER, 53).into());
    let long = [7; 60_000];
    let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes()[..], message].concat();
    // Two questions at once, the second in two pieces.
    let second = framed(&ask(8, "b.test", 1));
    guest.send(handle, &[&framed(&ask(7, "a.test", 16))[..], &second[..5]].concat());
    for (id, kind, name, rest) in [(7, 16, "a.test", &second[5..]), (8, 1, "b.test", &[])] {
        let (mut peer, _) = guest.wait("the question", |_| {
            resolver.tcp.set_nonblocking(true).unwrap();
            resolver.tcp.accept().ok()
        });
        peer.set_nonblocking(false).unwrap();
        let mut length = [0; 2];
        peer.read_exact(&mut length).unwrap();
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        peer.read_exact(&mut question).unwrap();
        let records: Records<'_> = &[(POINTER, kind, 60, &long)];
        peer.write_all(&framed(&answer(&question, records))).unwrap();
        guest.send(handle, rest);
        let expected = framed(&answer(&ask(id, name, kind), records));
        assert!(guest.receive(handle, expected.len()) == expected);
    }
    guest.socket(handle).close();
    guest.wait("the end", |guest| (!guest.socket(handle).may_recv()).then_some(()));
}

#[test]
fn a_resolver_that_does_not_answer_is_followed_by_the_next() {
    let (silent, good) = (Resolver::new(), Resolver::new());
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let resolvers = [closed, silent.address, good.address];
    let mut guest =
        Guest::with(config(Policy::default()), move |network| network.dns.set_resolvers(&resolvers));
    guest.send_frame(&ask_frame(4000, &ask(7, "a.test", 1)));
    silent.udp.recv(&mut [0; 4096]).unwrap();
    guest.ask(|network| {
        let late = Instant::now() + limits::DNS_ATTEMPT_TIME;
        let Network { dns, shared, .. } = network;
        dns.expire(late, shared);
    });
    good.answer(&[]);
    assert_eq!(code(&guest.datagram().2), Some(DnsRcode::NoError));
    // Without any, the guest learns of it.
    let mut guest =
        Guest::with(config(Policy::default()), move |network| network.dns.set_resolvers(&[closed]));
    guest.send_frame(&ask_frame(4000, &ask(7, "a.test", 1)));
    assert_eq!(code(&guest.datagram().2), Some(DnsRcode::ServFail));
}

#[test]
fn questions_in_flight_are_bounded() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(Policy::default());
    for n in 0..=limits::DNS_QUERIES as u16 {
        guest.send_frame(&ask_frame(4000 + n, &ask(n, &format!("n{n}.test"), 1)));
    }
    let (_, port, reply) = guest.datagram();
    assert_eq!((port, code(&reply)), (4000 + limits::DNS_QUERIES as u16, Some(DnsRcode::ServFail)));
}

#[test]
fn with_an_allowlist_only_its_names_are_asked_for() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(allowlist(&["*.example.test"]));
    for (port, denied) in [(4000, "example.test"), (4001, "evil.test"), (4002, "www.example.test.evil.test")]
    {
        guest.send_frame(&ask_frame(port, &ask(7, denied, 1)));
        assert_eq!(code(&guest.datagram().2), Some(DnsRcode::NXDomain), "{denied}");
    }
    // Records that would hide the name of the server.
    guest.send_frame(&ask_frame(4003, &ask(7, "www.example.test", 65)));
    let reply = guest.datagram().2;
    let found = addresses(&reply, &name("www.example.test")).unwrap();
    assert_eq!((code(&reply), found.len()), (Some(DnsRcode::NoError), 0));
    guest.send_frame(&ask_frame(4004, &ask(7, "WWW.example.test", 1)));
    resolver.answer(&[(POINTER, 1, 5, &[1, 1, 1, 1])]);
    let found = addresses(&guest.datagram().2, &name("www.example.test")).unwrap();
    assert_eq!(found, [([1, 1, 1, 1].into(), Duration::from_secs(5))]);
    let bound =
        guest.ask(|network| network.shared.bindings.names([1, 1, 1, 1].into()).cloned().collect::<Vec<_>>());
    assert_eq!(bound, [name("www.example.test")]);
    let denials = guest.denials();
    let found: Vec<_> =
        denials.iter().map(|denial| (denial.name.as_ref().unwrap().as_str(), denial.rule)).collect();
    assert_eq!(
        found,
        [
            ("example.test", Rule::NameNotOnAllowlist),
            ("evil.test", Rule::NameNotOnAllowlist),
            ("www.example.test.evil.test", Rule::NameNotOnAllowlist),
        ]
    );
    assert_eq!(guest.events().iter().count(), 3);
}

#[test]
fn an_answer_with_a_private_address_binds_nothing() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(allowlist(&["a.test"]));
    guest.send_frame(&ask_frame(4000, &ask(7, "a.test", 1)));
    resolver.answer(&[
        (POINTER, 1, 60, &[127, 0, 0, 1]),
        (POINTER, 1, 60, &[169, 254, 169, 254]),
        (POINTER, 1, 60, &[10, 0, 0, 1]),
        (POINTER, 1, 60, &[1, 1, 1, 1]),
    ]);
    let found = addresses(&guest.datagram().2, &name("a.test")).unwrap();
    assert_eq!(found, [([1, 1, 1, 1].into(), Duration::from_secs(60))]);
    let denials = guest.denials();
    assert!(denials.iter().all(|denial| denial.rule == Rule::DnsRebinding), "{denials:?}");
    assert_eq!(denials.len(), 3);
    guest.send_frame(&guest::syn_frame((GUEST, 4000).into(), "10.0.0.1:443".parse().unwrap()));
    assert_eq!(guest.unreachable_code(), 13);
}

#[test]
fn an_answer_that_was_cut_off_is_asked_for_by_tcp() {
    let resolver = Resolver::new();
    let mut guest = resolver.guest(allowlist(&["a.test"]));
    guest.send_frame(&ask_frame(4000, &ask(7, "a.test", 1)));
    let mut buffer = [0; 4096];
    let (length, from) = resolver.udp.recv_from(&mut buffer).unwrap();
    let mut reply = answer(&buffer[..length], &[]);
    reply[2] |= 2;
    resolver.udp.send_to(&reply, from).unwrap();
    let reply = guest.datagram().2;
    assert!(reply[2] & 2 != 0 && reply[..2] == [0, 7]);
}
