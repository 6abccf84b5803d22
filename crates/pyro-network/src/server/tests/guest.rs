//! A guest: smoltcp over frames, and frames of its own making.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, Icmpv4Message, Icmpv4Packet, IpCidr,
    IpProtocol, Ipv4Packet, TcpControl, UdpPacket,
};

use crate::config::{Config, Ipv4Link, MacAddress};
use crate::denials::{Denial, Denials};
use crate::link::{OUR_MAC, Output};
use crate::packet;
use crate::policy::Policy;
use crate::server::{Network, Server};

pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(super) const GUEST_MAC: MacAddress = MacAddress([6, 0, 1, 2, 3, 4]);
const MTU: u16 = 65_520;

/// Longest wait for anything in these tests.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// Opens the loopback interface, where the servers of the tests are.
pub(super) fn loopback() -> Policy {
    Policy { allow_cidrs: vec!["127.0.0.1/32".parse().unwrap()], ..Policy::default() }
}

pub(super) fn config(policy: Policy) -> Config {
    Config {
        guest_mac: GUEST_MAC,
        v4: Ipv4Link { guest: GUEST, gateway: GATEWAY, resolver: RESOLVER },
        v6: None,
        mtu: MTU,
        resolvers: vec![(std::net::Ipv4Addr::LOCALHOST, 53).into()],
        policy,
    }
}

type Command = Box<dyn FnOnce(&mut Network) + Send>;

pub(super) struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    next_port: u16,
    events: std::io::PipeReader,
    commands: mpsc::Sender<Command>,
    server: Option<JoinHandle<()>>,
}

/// The guest's end of the link.
struct Wire {
    stream: UnixStream,
    input: Vec<u8>,
    frames: VecDeque<Vec<u8>>,
    /// Frames that are not of TCP.
    others: VecDeque<Vec<u8>>,
}

impl Guest {
    pub(super) fn new(config: Config) -> Self {
        Self::with(config, |_| {})
    }

    /// Changes the network before it starts.
    pub(super) fn with(config: Config, change: impl FnOnce(&mut Network) + Send + 'static) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (events, writer) = std::io::pipe().unwrap();
        let (commands, received) = mpsc::channel::<Command>();
        let server = std::thread::spawn(move || {
            let mut server = Server::new(theirs.into(), config, Some(writer.into())).unwrap();
            change(server.network());
            while server.step(Some(Duration::from_millis(5))).unwrap() {
                for command in received.try_iter() {
                    command(server.network());
                }
            }
        });
        ours.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let mut wire =
            Wire { stream: ours, input: Vec::new(), frames: VecDeque::new(), others: VecDeque::new() };
        let hardware = HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC.0));
        let mut interface = Interface::new(InterfaceConfig::new(hardware), &mut wire, now());
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddr::V4(GUEST).into(), 24)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self { interface, sockets, wire, next_port: 20_000, events, commands, server: Some(server) }
    }

    /// Asks the network something.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        question: impl FnOnce(&mut Network) -> T + Send + 'static,
    ) -> T {
        let (sender, receiver) = mpsc::channel();
        let command = move |network: &mut Network| sender.send(question(network)).unwrap();
        self.commands.send(Box::new(command)).unwrap();
        receiver.recv_timeout(LONG).unwrap()
    }

    pub(super) fn denials(&mut self) -> Vec<Denial> {
        self.ask(|network| network.shared.denials.denials().iter().cloned().collect())
    }

    /// Closes the link, and returns what was written about denials.
    pub(super) fn events(mut self) -> Denials {
        self.wire.stream.shutdown(std::net::Shutdown::Both).unwrap();
        self.server.take().unwrap().join().unwrap();
        let mut text = Vec::new();
        self.events.read_to_end(&mut text).unwrap();
        Denials::read(&text[..]).unwrap()
    }

    /// Lets time pass for the guest.
    pub(super) fn turn(&mut self) {
        self.wire.receive();
        self.interface.poll(now(), &mut self.wire, &mut self.sockets);
    }

    pub(super) fn wait<T>(&mut self, what: &str, mut reached: impl FnMut(&mut Self) -> Option<T>) -> T {
        let limit = Instant::now() + LONG;
        loop {
            if let Some(value) = reached(self) {
                return value;
            }
            assert!(Instant::now() < limit, "timed out waiting for {what}");
            self.turn();
        }
    }

    /// Begins a connection.
    pub(super) fn start_connect(&mut self, to: SocketAddr) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        self.next_port += 1;
        let remote = (smoltcp::wire::IpAddress::from(to.ip()), to.port());
        socket.connect(self.interface.context(), remote, self.next_port).unwrap();
        self.sockets.add(socket)
    }

    pub(super) fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.start_connect(to);
        self.wait("the connection", |guest| match guest.socket(handle).state() {
            tcp::State::SynSent | tcp::State::SynReceived => None,
            tcp::State::Closed => panic!("the connection was refused"),
            _ => Some(()),
        });
        handle
    }

    /// Whether a connection is opened, or refused with a reset.
    pub(super) fn connects(&mut self, to: SocketAddr) -> bool {
        let handle = self.start_connect(to);
        self.wait("an end of connecting", |guest| match guest.socket(handle).state() {
            tcp::State::SynSent | tcp::State::SynReceived => None,
            tcp::State::Closed => Some(false),
            _ => Some(true),
        })
    }

    pub(super) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(super) fn send(&mut self, handle: SocketHandle, mut bytes: &[u8]) {
        self.wait("space to send", |guest| {
            let sent = guest.socket(handle).send_slice(bytes).unwrap();
            bytes = &bytes[sent..];
            bytes.is_empty().then_some(())
        });
    }

    /// Receives exactly this many bytes.
    pub(super) fn receive(&mut self, handle: SocketHandle, length: usize) -> Vec<u8> {
        let mut received = Vec::new();
        self.wait("bytes", |guest| {
            let wanted = length - received.len();
            let socket = guest.socket(handle);
            if socket.can_recv() {
                let part = socket.recv(|bytes| {
                    let taken = bytes.len().min(wanted);
                    (taken, bytes[..taken].to_vec())
                });
                received.extend(part.unwrap());
            }
            (received.len() == length).then(|| std::mem::take(&mut received))
        })
    }

    pub(super) fn send_frame(&mut self, frame: &[u8]) {
        self.wire.send(frame);
    }

    /// The next frame that is not of TCP.
    pub(super) fn other_frame(&mut self) -> Vec<u8> {
        self.wait("a frame", |guest| guest.wire.others.pop_front())
    }

    /// The code of the next report that something is unreachable.
    pub(super) fn unreachable_code(&mut self) -> u8 {
        let frame = self.other_frame();
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert!(packet.verify_checksum());
        assert_eq!((packet.next_header(), packet.dst_addr()), (IpProtocol::Icmp, GUEST), "{frame:?}");
        let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!(icmp.msg_type(), Icmpv4Message::DstUnreachable);
        icmp.msg_code()
    }

    /// The next datagram: its source, its port of the guest, and its content.
    pub(super) fn datagram(&mut self) -> (SocketAddr, u16, Vec<u8>) {
        let frame = self.other_frame();
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        let udp = UdpPacket::new_checked(packet.payload()).unwrap();
        assert!(udp.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
        (SocketAddr::new(packet.src_addr().into(), udp.src_port()), udp.dst_port(), udp.payload().to_vec())
    }

    /// Returns whether nothing but TCP arrives for a while.
    pub(super) fn hears_nothing(&mut self) -> bool {
        let limit = Instant::now() + Duration::from_millis(100);
        while Instant::now() < limit {
            self.turn();
        }
        self.wire.others.is_empty()
    }

    pub(super) fn ping(&mut self, to: Ipv4Addr) -> Option<Vec<u8>> {
        self.send_frame(&echo_frame(to));
        let frame = self.other_frame();
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        (icmp.msg_type() == Icmpv4Message::EchoReply).then(|| icmp.data().to_vec())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.wire.stream.shutdown(std::net::Shutdown::Both);
        if let Some(server) = self.server.take()
            && server.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the network panicked");
        }
    }
}

/// A frame with a datagram.
pub(super) fn udp_frame(mac: MacAddress, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut output = Output::new(OUR_MAC);
    packet::push_udp(from, to, payload, u16::MAX, &mut output);
    let mut frame = output.take().split_off(4);
    frame[6..12].copy_from_slice(&mac.0);
    frame
}

/// A frame with an echo request.
pub(super) fn echo_frame(to: Ipv4Addr) -> Vec<u8> {
    let mut output = Output::new(OUR_MAC);
    packet::answer_echo((to.into(), GUEST.into()), (1, 2), b"data", &mut output);
    let mut frame = output.take().split_off(4);
    frame[6..12].copy_from_slice(&GUEST_MAC.0);
    frame[26..30].copy_from_slice(&GUEST.octets());
    frame[30..34].copy_from_slice(&to.octets());
    // A request in place of a reply. The checksum is not verified.
    frame[14 + 20] = 8;
    frame
}

/// A frame with the first segment of a connection.
pub(super) fn syn_frame(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    segment_frame(from, to, TcpControl::Syn, 1000)
}

/// The reset of a connection whose first segment was that of [`syn_frame`].
pub(super) fn reset_frame(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    segment_frame(from, to, TcpControl::Rst, 1001)
}

fn segment_frame(from: SocketAddr, to: SocketAddr, control: TcpControl, number: i32) -> Vec<u8> {
    use smoltcp::wire::{Ipv4Repr, TcpPacket, TcpRepr, TcpSeqNumber};
    let (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) = (from.ip(), to.ip()) else { panic!("not IPv4") };
    let tcp = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control,
        seq_number: TcpSeqNumber(number),
        ack_number: None,
        window_len: 64_000,
        window_scale: None,
        max_seg_size: (control == TcpControl::Syn).then_some(1460),
        sack_permitted: false,
        sack_ranges: [None, None, None],
        timestamp: None,
        payload: &[],
    };
    let payload_len = tcp.buffer_len();
    let ip = Ipv4Repr { src_addr, dst_addr, next_header: IpProtocol::Tcp, payload_len, hop_limit: 64 };
    let mut output = Output::new(OUR_MAC);
    output.push_ip(ip.buffer_len() + payload_len, |packet| {
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut *packet), &packet::unverified());
        let mut segment = TcpPacket::new_unchecked(&mut packet[ip.buffer_len()..]);
        tcp.emit(&mut segment, &src_addr.into(), &dst_addr.into(), &packet::unverified());
    });
    let mut frame = output.take().split_off(4);
    frame[6..12].copy_from_slice(&GUEST_MAC.0);
    frame
}

fn now() -> smoltcp::time::Instant {
    smoltcp::time::Instant::now()
}

impl Wire {
    fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.stream.write_all(frame).unwrap();
    }

    fn receive(&mut self) {
        let mut buffer = [0; 65_536];
        if let Ok(length) = self.stream.read(&mut buffer) {
            self.input.extend_from_slice(&buffer[..length]);
        }
        while let Some((length, rest)) = self.input.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(frame) = rest.get(..length) else { break };
            let frame = frame.to_vec();
            self.input.drain(..4 + length);
            let header = EthernetFrame::new_checked(&frame).unwrap();
            assert_eq!((header.src_addr().0, header.dst_addr().0), (OUR_MAC.0, GUEST_MAC.0));
            let is_tcp = header.ethertype() == EthernetProtocol::Ipv4
                && Ipv4Packet::new_checked(header.payload()).unwrap().next_header() == IpProtocol::Tcp;
            if is_tcp || header.ethertype() == EthernetProtocol::Arp {
                self.frames.push_back(frame);
            } else {
                self.others.push_back(frame);
            }
        }
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sender<'a>(&'a mut Wire);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.frames.pop_front()?;
        Some((Received(frame), Sender(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_>> {
        Some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(MTU) + 14;
        capabilities
    }
}
