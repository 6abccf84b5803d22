//! Packets from the guest: who sent them, what they are, and whether they are looked at at all. And packets to the guest,
//! other than those of connections.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable,
    Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet,
    Ipv4Repr, Ipv6Address, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr, TcpPacket, UdpPacket,
    UdpRepr,
};

use crate::config::Config;
use crate::link::{EtherType, OUR_MAC, Output};

/// Hop limit of our packets, except for neighbour discovery.
const HOP_LIMIT: u8 = 64;
/// Hop limit that neighbour discovery demands, so that no packet from elsewhere passes for it.
const NDISC_HOP_LIMIT: u8 = 255;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
/// Bytes of a packet that are sent back in an error message: a header and enough of its content to recognise it.
const QUOTED_BYTES: usize = 128;

/// A frame from the guest.
#[derive(Debug, PartialEq)]
pub(crate) enum Inbound<'a> {
    /// A segment of TCP.
    Tcp { packet: &'a [u8], guest: SocketAddr, destination: SocketAddr, opens: bool },
    /// A datagram.
    Udp { packet: &'a [u8], guest: SocketAddr, destination: SocketAddr, payload: &'a [u8] },
    /// An echo request.
    Echo { guest: IpAddr, destination: IpAddr, ident: u16, seq_no: u16, data: &'a [u8] },
    /// The guest asks for the hardware address of an IPv4 address.
    Arp(ArpRepr),
    /// The guest asks for the hardware address of an IPv6 address.
    Solicit { source: Ipv6Address, target: Ipv6Address },
}

/// Why a frame is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// It came from another hardware address than the guest's, or from another IP address.
    ForeignSource,
    /// It is a part of a packet.
    Fragment,
    /// It is not a complete packet.
    Malformed,
    /// It is of a protocol that is not carried.
    Unsupported,
    /// It is larger than the link carries.
    TooLarge,
}

impl<'a> Inbound<'a> {
    /// Decodes a frame.
    pub(crate) fn parse(frame: &'a [u8], config: &Config) -> Result<Self, Dropped> {
        let frame = EthernetFrame::new_checked(frame).map_err(|_| Dropped::Malformed)?;
        if frame.src_addr().0 != config.guest_mac.0 {
            return Err(Dropped::ForeignSource);
        }
        let payload = frame.payload();
        match frame.ethertype() {
            EthernetProtocol::Arp => Self::parse_arp(payload, config),
            _ if payload.len() > usize::from(config.mtu) => Err(Dropped::TooLarge),
            EthernetProtocol::Ipv4 => Self::parse_v4(payload, config),
            EthernetProtocol::Ipv6 => Self::parse_v6(payload, config),
            _ => Err(Dropped::Unsupported),
        }
    }

    fn parse_arp(payload: &[u8], config: &Config) -> Result<Self, Dropped> {
        let packet = ArpPacket::new_checked(payload).map_err(|_| Dropped::Malformed)?;
        let repr = ArpRepr::parse(&packet).map_err(|_| Dropped::Malformed)?;
        let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, .. } = repr else {
            return Err(Dropped::Unsupported);
        };
        // A guest without an address yet asks from the unspecified one.
        let is_guest = source_protocol_addr == config.v4.guest || source_protocol_addr.is_unspecified();
        match operation {
            _ if source_hardware_addr.0 != config.guest_mac.0 || !is_guest => Err(Dropped::ForeignSource),
            ArpOperation::Request => Ok(Self::Arp(repr)),
            _ => Err(Dropped::Unsupported),
        }
    }

    fn parse_v4(payload: &'a [u8], config: &Config) -> Result<Self, Dropped> {
        let packet = Ipv4Packet::new_checked(payload).map_err(|_| Dropped::Malformed)?;
        if packet.version() != 4 {
            return Err(Dropped::Malformed);
        }
        if packet.src_addr() != config.v4.guest {
            return Err(Dropped::ForeignSource);
        }
        if packet.more_frags() || packet.frag_offset() != 0 {
            return Err(Dropped::Fragment);
        }
        // No options: among them are routes of the sender's choice.
        if usize::from(packet.header_len()) != IPV4_HEADER_BYTES {
            return Err(Dropped::Unsupported);
        }
        let whole = &payload[..usize::from(packet.total_len())];
        let (guest, destination) = (packet.src_addr().into(), packet.dst_addr().into());
        Self::parse_transport(whole, packet.payload(), packet.next_header(), (guest, destination))
    }

    fn parse_v6(payload: &'a [u8], config: &Config) -> Result<Self, Dropped> {
        let Some(link) = config.v6 else { return Err(Dropped::Unsupported) };
        let packet = Ipv6Packet::new_checked(payload).map_err(|_| Dropped::Malformed)?;
        if packet.version() != 6 {
            return Err(Dropped::Malformed);
        }
        let source = packet.src_addr();
        if packet.next_header() == IpProtocol::Icmpv6 && packet.hop_limit() == NDISC_HOP_LIMIT {
            let icmp = Icmpv6Packet::new_checked(packet.payload()).map_err(|_| Dropped::Malformed)?;
            if icmp.msg_type().is_ndisc() {
                let is_guest =
                    source == link.guest || source.is_unspecified() || source.is_unicast_link_local();
                return match NdiscRepr::parse(&icmp) {
                    _ if !is_guest => Err(Dropped::ForeignSource),
                    Ok(NdiscRepr::NeighborSolicit { target_addr, .. }) => {
                        Ok(Self::Solicit { source, target: target_addr })
                    }
                    Ok(_) => Err(Dropped::Unsupported),
                    Err(_) => Err(Dropped::Malformed),
                };
            }
        }
        if source != link.guest {
            return Err(Dropped::ForeignSource);
        }
        // Extension headers, among them fragments and routes of the sender's choice, are other protocols here.
        let whole = &payload[..packet.total_len()];
        let ends = (source.into(), packet.dst_addr().into());
        match packet.next_header() {
            IpProtocol::Ipv6Frag => Err(Dropped::Fragment),
            protocol => Self::parse_transport(whole, packet.payload(), protocol, ends),
        }
    }

    fn parse_transport(
        packet: &'a [u8],
        payload: &'a [u8],
        protocol: IpProtocol,
        (guest, destination): (IpAddr, IpAddr),
    ) -> Result<Self, Dropped> {
        match protocol {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(payload).map_err(|_| Dropped::Malformed)?;
                if tcp.src_port() == 0 || tcp.dst_port() == 0 {
                    return Err(Dropped::Malformed);
                }
                Ok(Self::Tcp {
                    packet,
                    guest: SocketAddr::new(guest, tcp.src_port()),
                    destination: SocketAddr::new(destination, tcp.dst_port()),
                    opens: tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin(),
                })
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(payload).map_err(|_| Dropped::Malformed)?;
                if udp.src_port() == 0 || udp.dst_port() == 0 {
                    return Err(Dropped::Malformed);
                }
                Ok(Self::Udp {
                    packet,
                    guest: SocketAddr::new(guest, udp.src_port()),
                    destination: SocketAddr::new(destination, udp.dst_port()),
                    payload: udp.payload(),
                })
            }
            IpProtocol::Icmp if guest.is_ipv4() => {
                let icmp = Icmpv4Packet::new_checked(payload).map_err(|_| Dropped::Malformed)?;
                match Icmpv4Repr::parse(&icmp, &unverified()) {
                    Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) => {
                        Ok(Self::Echo { guest, destination, ident, seq_no, data })
                    }
                    Ok(_) => Err(Dropped::Unsupported),
                    Err(_) => Err(Dropped::Malformed),
                }
            }
            IpProtocol::Icmpv6 if guest.is_ipv6() => {
                let icmp = Icmpv6Packet::new_checked(payload).map_err(|_| Dropped::Malformed)?;
                let (IpAddr::V6(source), IpAddr::V6(target)) = (guest, destination) else {
                    return Err(Dropped::Malformed);
                };
                match Icmpv6Repr::parse(&source, &target, &icmp, &unverified()) {
                    Ok(Icmpv6Repr::EchoRequest { ident, seq_no, data }) => {
                        Ok(Self::Echo { guest, destination, ident, seq_no, data })
                    }
                    Ok(_) => Err(Dropped::Unsupported),
                    Err(_) => Err(Dropped::Malformed),
                }
            }
            _ => Err(Dropped::Unsupported),
        }
    }
}

/// Checksums of the guest are not verified: its link loses and changes nothing.
pub(crate) fn unverified() -> ChecksumCapabilities {
    use smoltcp::phy::Checksum;
    let mut checksums = ChecksumCapabilities::default();
    checksums.ipv4 = Checksum::Tx;
    checksums.udp = Checksum::Tx;
    checksums.tcp = Checksum::Tx;
    checksums.icmpv4 = Checksum::Tx;
    checksums.icmpv6 = Checksum::Tx;
    checksums
}

/// Why a packet does not get to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// The policy denies it.
    Prohibited,
    /// There is no route, or nothing answers.
    Host,
    /// The port is closed.
    Port,
}

/// Answers a request for a hardware address. We have every address but the guest's own.
pub(crate) fn answer_arp(request: &ArpRepr, config: &Config, output: &mut Output) {
    let &ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        request
    else {
        return;
    };
    // The guest makes sure that no other has its address.
    if target_protocol_addr == config.v4.guest || source_protocol_addr.is_unspecified() {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(OUR_MAC.0),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    output
        .push(EtherType::Arp, reply.buffer_len(), |packet| reply.emit(&mut ArpPacket::new_unchecked(packet)));
}

/// Answers a neighbour solicitation for the gateway.
pub(crate) fn answer_solicitation(
    source: Ipv6Address,
    target: Ipv6Address,
    config: &Config,
    output: &mut Output,
) {
    if config.v6.is_none_or(|link| link.gateway != target) || source.is_unspecified() {
        return;
    }
    let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::ROUTER,
        target_addr: target,
        lladdr: Some(EthernetAddress(OUR_MAC.0).into()),
    });
    push_icmpv6(&advert, (target, source), NDISC_HOP_LIMIT, output);
}

/// Answers an echo request.
pub(crate) fn answer_echo(
    (guest, destination): (IpAddr, IpAddr),
    (ident, seq_no): (u16, u16),
    data: &[u8],
    output: &mut Output,
) {
    match (destination, guest) {
        (IpAddr::V4(source), IpAddr::V4(guest)) => {
            push_icmpv4(&Icmpv4Repr::EchoReply { ident, seq_no, data }, (source, guest), output);
        }
        (IpAddr::V6(source), IpAddr::V6(guest)) => {
            let reply = Icmpv6Repr::EchoReply { ident, seq_no, data };
            push_icmpv6(&reply, (source, guest), HOP_LIMIT, output);
        }
        _ => {}
    }
}

/// Reports that `packet`, which the guest sent and [`Inbound::parse`] accepted, does not get to its destination. It may be
/// cut off behind its headers.
pub(crate) fn report_unreachable(packet: &[u8], reason: Unreachable, config: &Config, output: &mut Output) {
    let quoted = |header: usize| &packet[header..packet.len().min(header + QUOTED_BYTES)];
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= IPV4_HEADER_BYTES => {
            let original = Ipv4Packet::new_unchecked(packet);
            let header = Ipv4Repr {
                src_addr: original.src_addr(),
                dst_addr: original.dst_addr(),
                next_header: original.next_header(),
                payload_len: usize::from(original.total_len()).saturating_sub(IPV4_HEADER_BYTES),
                hop_limit: original.hop_limit(),
            };
            let (from, reason) = match reason {
                Unreachable::Prohibited => (config.v4.gateway, Icmpv4DstUnreachable::CommProhibited),
                Unreachable::Host => (config.v4.gateway, Icmpv4DstUnreachable::HostUnreachable),
                Unreachable::Port => (header.dst_addr, Icmpv4DstUnreachable::PortUnreachable),
            };
            let report = Icmpv4Repr::DstUnreachable { reason, header, data: quoted(IPV4_HEADER_BYTES) };
            push_icmpv4(&report, (from, header.src_addr), output);
        }
        Some(6) if packet.len() >= IPV6_HEADER_BYTES => {
            let Some(link) = config.v6 else { return };
            let original = Ipv6Packet::new_unchecked(packet);
            let header = Ipv6Repr {
                src_addr: original.src_addr(),
                dst_addr: original.dst_addr(),
                next_header: original.next_header(),
                payload_len: original.payload_len().into(),
                hop_limit: original.hop_limit(),
            };
            let (from, reason) = match reason {
                Unreachable::Prohibited => (link.gateway, Icmpv6DstUnreachable::AdminProhibit),
                Unreachable::Host => (link.gateway, Icmpv6DstUnreachable::AddrUnreachable),
                Unreachable::Port => (header.dst_addr, Icmpv6DstUnreachable::PortUnreachable),
            };
            let report = Icmpv6Repr::DstUnreachable { reason, header, data: quoted(IPV6_HEADER_BYTES) };
            push_icmpv6(&report, (from, header.src_addr), HOP_LIMIT, output);
        }
        _ => {}
    }
}

/// Sends a datagram to the guest. One that does not fit the link is dropped.
pub(crate) fn push_udp(from: SocketAddr, to: SocketAddr, payload: &[u8], mtu: u16, output: &mut Output) {
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let length = udp.header_len() + payload.len();
    let emit = |packet: &mut [u8]| {
        let mut packet = UdpPacket::new_unchecked(packet);
        let fill = |buffer: &mut [u8]| buffer.copy_from_slice(payload);
        udp.emit(&mut packet, &from.ip().into(), &to.ip().into(), payload.len(), fill, &unverified());
    };
    push_ip((from.ip(), to.ip()), IpProtocol::Udp, length, mtu, output, emit);
}

fn push_ip(
    ends: (IpAddr, IpAddr),
    next_header: IpProtocol,
    payload_len: usize,
    mtu: u16,
    output: &mut Output,
    emit: impl FnOnce(&mut [u8]),
) {
    let fits = |header: usize| header + payload_len <= usize::from(mtu);
    match ends {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let ip = Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit: HOP_LIMIT };
            if fits(ip.buffer_len()) {
                output.push(EtherType::Ipv4, ip.buffer_len() + payload_len, |packet| {
                    ip.emit(&mut Ipv4Packet::new_unchecked(&mut *packet), &unverified());
                    emit(&mut packet[ip.buffer_len()..]);
                });
            }
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let ip = Ipv6Repr { src_addr, dst_addr, next_header, payload_len, hop_limit: HOP_LIMIT };
            if fits(ip.buffer_len()) {
                output.push(EtherType::Ipv6, ip.buffer_len() + payload_len, |packet| {
                    ip.emit(&mut Ipv6Packet::new_unchecked(&mut *packet));
                    emit(&mut packet[ip.buffer_len()..]);
                });
            }
        }
        _ => {}
    }
}

fn push_icmpv4(
    icmp: &Icmpv4Repr<'_>,
    (src_addr, dst_addr): (std::net::Ipv4Addr, std::net::Ipv4Addr),
    output: &mut Output,
) {
    let payload_len = icmp.buffer_len();
    let ip =
        Ipv4Repr { src_addr, dst_addr, next_header: IpProtocol::Icmp, payload_len, hop_limit: HOP_LIMIT };
    output.push(EtherType::Ipv4, ip.buffer_len() + payload_len, |packet| {
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut *packet), &unverified());
        icmp.emit(&mut Icmpv4Packet::new_unchecked(&mut packet[ip.buffer_len()..]), &unverified());
    });
}

fn push_icmpv6(
    icmp: &Icmpv6Repr<'_>,
    (src_addr, dst_addr): (Ipv6Address, Ipv6Address),
    hop_limit: u8,
    output: &mut Output,
) {
    let payload_len = icmp.buffer_len();
    let ip = Ipv6Repr { src_addr, dst_addr, next_header: IpProtocol::Icmpv6, payload_len, hop_limit };
    output.push(EtherType::Ipv6, ip.buffer_len() + payload_len, |packet| {
        ip.emit(&mut Ipv6Packet::new_unchecked(&mut *packet));
        let mut buffer = Icmpv6Packet::new_unchecked(&mut packet[ip.buffer_len()..]);
        icmp.emit(&src_addr, &dst_addr, &mut buffer, &unverified());
    });
}
