use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use smoltcp::socket::tcp::State;

use super::*;
use crate::inspect::tests::client_hello;
use crate::limits;
use crate::policy::tests::host_rule;
use crate::policy::{DnsName, Egress, HostRule};

fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A connection: the guest's end and the server's.
fn connected(guest: &mut Guest) -> (smoltcp::iface::SocketHandle, TcpStream) {
    let (listener, address) = server();
    let handle = guest.connect(address);
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(guest::LONG)).unwrap();
    (handle, peer)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 % 251) as u8).collect()
}

#[test]
fn bytes_pass_unchanged_both_ways() {
    let mut guest = Guest::new(config(loopback()));
    let (handle, peer) = connected(&mut guest);
    let bytes = pattern(5_000_000);
    let echo = std::thread::spawn({
        let mut peer = peer.try_clone().unwrap();
        let length = bytes.len();
        move || {
            let mut received = vec![0; length];
            peer.read_exact(&mut received).unwrap();
            peer.write_all(&received).unwrap();
        }
    });
    guest.send(handle, &bytes);
    assert!(guest.receive(handle, bytes.len()) == bytes);
    echo.join().unwrap();
}

#[test]
fn each_side_may_end_first() {
    let mut guest = Guest::new(config(loopback()));
    // The guest ends, and the server still sends.
    let (handle, mut peer) = connected(&mut guest);
    guest.send(handle, b"question");
    guest.socket(handle).close();
    guest.turn();
    let question = std::thread::spawn(move || {
        let mut question = String::new();
        peer.read_to_string(&mut question).unwrap();
        peer.write_all(&pattern(100_000)).unwrap();
        question
    });
    assert!(guest.receive(handle, 100_000) == pattern(100_000));
    assert_eq!(question.join().unwrap(), "question");
    guest.wait("the end", |guest| (!guest.socket(handle).may_recv()).then_some(()));
    // The server ends, and the guest still sends.
    let (handle, mut peer) = connected(&mut guest);
    peer.write_all(b"bye").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive(handle, 3), b"bye");
    guest.wait("the server's end", |guest| (guest.socket(handle).state() == State::CloseWait).then_some(()));
    guest.send(handle, &pattern(100_000));
    guest.socket(handle).close();
    guest.turn();
    let received = std::thread::spawn(move || {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        received
    });
    guest.wait("everything to be sent", |guest| (!guest.socket(handle).is_open()).then_some(()));
    assert!(received.join().unwrap() == pattern(100_000));
    guest.wait("nothing to be left", |guest| (guest.ask(|network| network.tcp.len()) == 0).then_some(()));
}

#[test]
fn the_last_bytes_arrive_though_the_peer_reads_slowly() {
    let mut guest = Guest::new(config(loopback()));
    let (handle, mut peer) = connected(&mut guest);
    peer.shutdown(Shutdown::Write).unwrap();
    guest.wait("the server's end", |guest| (guest.socket(handle).state() == State::CloseWait).then_some(()));
    // More than the kernel's buffers hold.
    let bytes = pattern(12_000_000);
    let mut rest = &bytes[..];
    let mut received = Vec::new();
    let mut buffer = vec![0; 100_000];
    while !rest.is_empty() {
        let sent = guest.socket(handle).send_slice(rest).unwrap();
        rest = &rest[sent..];
        guest.turn();
        if sent == 0 {
            let length = peer.read(&mut buffer).unwrap();
            received.extend_from_slice(&buffer[..length]);
        }
    }
    guest.socket(handle).close();
    guest.wait("the guest's end", |guest| (!guest.socket(handle).is_open()).then_some(()));
    peer.read_to_end(&mut received).unwrap();
    assert!(received == bytes, "{} of {} bytes arrived", received.len(), bytes.len());
}

#[test]
fn a_reset_passes_both_ways() {
    let mut guest = Guest::new(config(loopback()));
    let (handle, mut peer) = connected(&mut guest);
    guest.socket(handle).abort();
    guest.turn();
    let error = peer.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let (handle, peer) = connected(&mut guest);
    rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    drop(peer);
    guest.wait("the reset", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    guest.wait("nothing to be left", |guest| (guest.ask(|network| network.tcp.len()) == 0).then_some(()));
}

/// Waits until the kernel of the other end has taken what `stream` has sent.
fn wait_until_taken(guest: &mut Guest, stream: &TcpStream) {
    let end = |address: SocketAddr| format!(":{:04X}", address.port());
    let (local, peer) = (end(stream.local_addr().unwrap()), end(stream.peer_addr().unwrap()));
    guest.wait("everything to be taken", |_| {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        table.lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_this = fields[1].ends_with(&local) && fields[2].ends_with(&peer);
            (is_this && fields[4].starts_with("00000000:")).then_some(())
        })
    });
}

/// Closes a server's end so that its peer is reset.
fn cut(peer: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_guest_that_reads_slowly_gets_what_was_sent_before_a_reset() {
    let mut guest = Guest::new(config(loopback()));
    let (handle, mut peer) = connected(&mut guest);
    // More than the guest's buffer holds, and less than that and ours.
    let bytes = pattern(400_000);
    peer.write_all(&bytes).unwrap();
    wait_until_taken(&mut guest, &peer);
    cut(peer);
    assert!(guest.receive(handle, bytes.len()) == bytes);
    guest.wait("the reset", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    guest.wait("nothing to be left", |guest| (guest.ask(|network| network.tcp.len()) == 0).then_some(()));
}

#[test]
fn a_guest_that_still_sends_gets_what_was_sent_before_a_reset() {
    let mut guest = Guest::new(config(loopback()));
    let (handle, mut peer) = connected(&mut guest);
    // More than the guest's buffer and ours hold, so that some of it waits in the kernel.
    let bytes = pattern((256 << 10) + limits::LARGE_BUFFER_BYTES + 20_000);
    peer.write_all(&bytes).unwrap();
    wait_until_taken(&mut guest, &peer);
    cut(peer);
    guest.send(handle, b"more");
    guest.wait("it to be sent", |guest| (guest.socket(handle).send_queue() == 0).then_some(()));
    assert!(guest.receive(handle, bytes.len()) == bytes);
    guest.wait("the reset", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    guest.wait("nothing to be left", |guest| (guest.ask(|network| network.tcp.len()) == 0).then_some(()));
}

#[test]
fn what_a_guest_sent_arrives_though_it_closes_with_unread_input() {
    let mut guest = Guest::new(config(loopback()));
    let (listener, address) = server();
    // What the peer has no space for waits in the sender's kernel.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 8192).unwrap();
    let handle = guest.connect(address);
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(guest::LONG)).unwrap();
    let bytes = pattern(300_000);
    guest.send(handle, &bytes);
    guest.socket(handle).close();
    guest.wait("the close to be taken", |guest| {
        (guest.socket(handle).state() == State::FinWait2).then_some(())
    });
    peer.write_all(b"unread").unwrap();
    guest.socket(handle).abort();
    guest.turn();
    // The second answer comes after the network has taken every frame that it had at the first.
    for _ in 0..2 {
        guest.ask(|_| ());
    }
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert!(received == bytes, "{} of {} bytes arrived", received.len(), bytes.len());
    drop(peer);
    guest.wait("nothing to be left", |guest| (guest.ask(|network| network.tcp.len()) == 0).then_some(()));
}

#[test]
fn a_guest_that_resets_its_handshake_leaves_nothing() {
    let (_listener, address) = server();
    let mut guest = Guest::new(config(loopback()));
    let from: SocketAddr = (GUEST, 4000).into();
    guest.send_frame(&guest::syn_frame(from, address));
    guest.wait("the handshake", |guest| (guest.ask(|network| network.tcp.len()) == 1).then_some(()));
    let started = Instant::now();
    let reset = guest::reset_frame(from, address);
    guest.wait("nothing to be left", |guest| {
        // It counts once the host's connection is open.
        guest.send_frame(&reset);
        (guest.ask(|network| network.tcp.len()) == 0).then_some(())
    });
    assert!(started.elapsed() < limits::HANDSHAKE_TIME);
}

#[test]
fn a_refused_connection_is_not_due_while_the_guest_takes_nothing() {
    let (listener, address) = server();
    let mut guest = Guest::new(config(loopback()));
    let handle = guest.connect(address);
    let (_peer, _) = listener.accept().unwrap();
    guest.ask(|network| network.tcp.compare_servers(&[DnsName::new("a.test").unwrap()]));
    guest.send(handle, &client_hello("a.test")[..10]);
    guest.wait("the bytes to be taken", |guest| (guest.socket(handle).send_queue() == 0).then_some(()));
    // Nothing is sent between the refusal and the question when there is something to do.
    let (denied, due) = guest.ask(|network| {
        let Network { tcp, shared, stack, .. } = network;
        tcp.age(limits::INSPECTION_TIME);
        tcp.pump(shared, stack);
        (shared.denials.denials().iter().count(), tcp.expire(Instant::now(), stack))
    });
    assert_eq!((denied, due), (1, None));
    guest.wait("the reset", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
}

#[test]
fn a_closed_port_is_refused_and_a_server_is_not_opened_early() {
    let (listener, address) = server();
    drop(listener);
    let mut guest = Guest::new(config(loopback()));
    assert!(!guest.connects(address));
    assert_eq!(guest.ask(|network| network.tcp.len()), 0);
}

#[test]
fn the_number_of_connections_is_bounded() {
    let (listener, address) = server();
    let accept = std::thread::spawn(move || {
        let mut peers = Vec::new();
        while let Ok((mut peer, _)) = listener.accept() {
            let mut word = [0; 4];
            if peers.len() >= limits::TCP_FLOWS && peer.read_exact(&mut word).is_ok() && &word == b"stop" {
                break;
            }
            peers.push(peer);
        }
        peers.len()
    });
    let mut guest = Guest::new(config(loopback()));
    let handles: Vec<_> = (0..limits::TCP_FLOWS).map(|_| guest.connect(address)).collect();
    assert!(!guest.connects(address), "one more is refused");
    let denials = guest.denials();
    assert_eq!(denials[0].rule, Rule::TooManyConnections);
    // One that ends makes space for another.
    guest.socket(handles[0]).abort();
    guest.wait("space", |guest| (guest.ask(|network| network.tcp.len()) < limits::TCP_FLOWS).then_some(()));
    let last = guest.connect(address);
    guest.send(last, b"stop");
    guest.turn();
    assert_eq!(accept.join().unwrap(), limits::TCP_FLOWS);
}

#[test]
fn connections_being_opened_are_bounded() {
    // A server whose queue is full does not answer.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    let _waiting: Vec<_> = (0..4)
        .map(|_| {
            let socket = rustix::net::socket_with(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::NONBLOCK,
                None,
            )
            .unwrap();
            let _ = rustix::net::connect(&socket, &address);
            socket
        })
        .collect();
    let mut guest = Guest::new(config(loopback()));
    for port in 0..3 * limits::TCP_CONNECTING as u16 {
        guest.send_frame(&guest::syn_frame((GUEST, 1000 + port).into(), address));
    }
    guest.wait("the limit", |guest| {
        (guest.ask(|network| network.tcp.len()) >= limits::TCP_CONNECTING).then_some(())
    });
    assert!(guest.hears_nothing());
    assert_eq!(guest.ask(|network| network.tcp.len()), limits::TCP_CONNECTING);
}

#[test]
fn a_name_does_not_open_the_loopback_interface() {
    let (_listener, address) = server();
    let policy =
        Policy { egress: Egress::Allowlist, allow_hosts: vec![host_rule("a.test")], ..Policy::default() };
    let mut guest = Guest::with(config(policy), |network| {
        let name = DnsName::new("a.test").unwrap();
        network.shared.bindings.bind(&name, [127, 0, 0, 1].into(), Duration::from_secs(60));
    });
    guest.send_frame(&guest::syn_frame((GUEST, 4000).into(), address));
    assert_eq!(guest.unreachable_code(), 13);
    let denials = guest.denials();
    assert_eq!((denials[0].rule, denials[0].name.as_ref().unwrap().as_str()), (Rule::Loopback, "a.test"));
}

#[test]
fn the_gateway_stands_for_an_opened_port_of_the_loopback_interface() {
    let (listener, address) = server();
    let (_other, closed) = server();
    let proxy = HostRule { host: address.ip().into(), port: Some(address.port()) };
    let policy = Policy { egress: Egress::Allowlist, proxies: vec![proxy], ..Policy::default() };
    let mut guest = Guest::new(config(policy));
    let serve = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut request = [0; 7];
        peer.read_exact(&mut request).unwrap();
        peer.write_all(b"answer").unwrap();
        request
    });
    let handle = guest.connect((GATEWAY, address.port()).into());
    guest.send(handle, b"CONNECT example.test:443 HTTP/1.1\r\nHost: example.test\r\n\r\n");
    assert_eq!(guest.receive(handle, 6), b"answer");
    assert_eq!(&serve.join().unwrap(), b"CONNECT");
    assert!(!guest.connects((GATEWAY, closed.port()).into()), "no rule opens it");
}

#[test]
fn only_the_named_server_is_reached() {
    for (hello, passes) in [
        (client_hello("a.test"), true),
        (client_hello("b.test"), false),
        (b"GET / HTTP/1.1\r\nHost: A.test\r\n\r\n".to_vec(), true),
        (b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n".to_vec(), false),
        (b"SSH-2.0-hello\r\n".to_vec(), false),
    ] {
        let (listener, address) = server();
        let mut guest = Guest::new(config(loopback()));
        let handle = guest.connect(address);
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(guest::LONG)).unwrap();
        // As for ports 80 and 443, on a port that the test may listen on.
        guest.ask(|network| network.tcp.compare_servers(&[DnsName::new("a.test").unwrap()]));
        peer.write_all(b"banner").unwrap();
        guest.send(handle, &hello[..10]);
        guest.wait("the bytes to be taken", |guest| (guest.socket(handle).send_queue() == 0).then_some(()));
        // Bytes are read when they arrive, however often there is something else to do.
        for _ in 0..10 {
            guest.ask(|_| ());
        }
        assert_eq!(guest.ask(|network| network.tcp.inspections()), 1, "of the bytes that have arrived");
        if passes {
            guest.send(handle, &hello[10..]);
            assert_eq!(guest.receive(handle, 6), b"banner");
            let mut received = vec![0; hello.len()];
            peer.read_exact(&mut received).unwrap();
            assert_eq!(received, hello);
        } else {
            let _ = guest.socket(handle).send_slice(&hello[10..]);
            guest.wait("the reset", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
            let error = peer.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "nothing arrives");
            let denials = guest.denials();
            assert!(matches!(denials[0].rule, Rule::ServerNameMismatch | Rule::ServerNameMissing));
        }
    }
}
