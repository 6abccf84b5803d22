//! What the host's kernel says about an address, asked each time: addresses and routes of a host change.

mod route;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use netlink_packet_route::route::RouteType;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, socket_with};

/// What the kernel says about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// It belongs to this host.
    Own,
    /// It is the broadcast address of a network that this host is connected to.
    Broadcast,
    /// It belongs to another host, or there is no route to it.
    Other,
}

/// Returns what the kernel says about `address`. No packet is sent.
///
/// # Errors
/// The kernel does not say. The address must then be taken for the host's own.
pub(crate) fn relation(address: IpAddr) -> io::Result<Relation> {
    match route::kind(address)? {
        // Not the source, which is another address of the host for its secondary addresses and for prefixes that are local.
        Some(RouteType::Local | RouteType::Anycast) => Ok(Relation::Own),
        Some(RouteType::Broadcast | RouteType::Multicast) => Ok(Relation::Broadcast),
        Some(RouteType::Unicast) => relation_by_source(address),
        // They lead nowhere, which the guest is to be told by the attempt to connect.
        Some(RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit) | None => {
            Ok(Relation::Other)
        }
        Some(kind) => Err(io::Error::other(format!("route of an unknown kind: {kind:?}"))),
    }
}

/// Returns the same by the source that the kernel would choose, which also follows rules that depend on the process.
fn relation_by_source(address: IpAddr) -> io::Result<Relation> {
    // The port does not matter to the choice of the source.
    match source_towards(SocketAddr::new(address, 9)) {
        // The kernel talks to its own addresses from the address itself, and from a loopback address to what a local
        // route makes its own.
        Ok(source) if source == address || source.is_loopback() => Ok(Relation::Own),
        Ok(_) => Ok(Relation::Other),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::ACCESS) => Ok(Relation::Broadcast),
            Some(
                Errno::NETUNREACH
                | Errno::HOSTUNREACH
                | Errno::ADDRNOTAVAIL
                | Errno::AFNOSUPPORT
                | Errno::INVAL
                | Errno::PERM
                | Errno::NETDOWN,
            ) => Ok(Relation::Other),
            _ => Err(error),
        },
    }
}

/// Returns the address from which the host would send packets to `address`.
pub(crate) fn source_towards(address: SocketAddr) -> io::Result<IpAddr> {
    Ok(connected_udp(address)?.local_addr()?.ip().to_canonical())
}

/// Returns a non-blocking UDP socket that exchanges datagrams with `peer` alone. It gets its port when it is connected, so
/// it never takes a datagram from another peer.
pub(crate) fn connected_udp(peer: SocketAddr) -> io::Result<UdpSocket> {
    let family = if peer.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket: OwnedFd =
        socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    connect(&socket, &peer)?;
    Ok(socket.into())
}

/// Returns the address that a socket of this host connects to when it is given `address`.
pub(crate) fn effective(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        // Linux takes the unspecified address for its own loopback interface.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// Returns whether a connected socket is connected to this host after all, or may be.
pub(crate) fn is_to_itself(socket: impl std::os::fd::AsFd, peer: IpAddr) -> bool {
    let Ok(local) = getsockname(socket) else { return true };
    let peer = peer.to_canonical();
    SocketAddr::try_from(local).is_ok_and(|local| local.ip().to_canonical() == peer)
        || relation(peer).map_or(true, |relation| relation == Relation::Own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_addresses_are_its_own() {
        for address in ["127.0.0.1", "127.1.2.3"] {
            assert_eq!(relation(address.parse().unwrap()).unwrap(), Relation::Own, "{address}");
        }
        // TEST-NET-3 is never assigned.
        assert_eq!(relation("203.0.113.9".parse().unwrap()).unwrap(), Relation::Other);
    }

    #[test]
    fn disguises_are_taken_off() {
        assert_eq!(effective("::ffff:10.1.2.3".parse().unwrap()), "10.1.2.3".parse::<IpAddr>().unwrap());
        assert_eq!(effective("::ffff:0.0.0.0".parse().unwrap()), "127.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(effective("::".parse().unwrap()), "::1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_connected_socket_takes_datagrams_of_its_peer_only() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = connected_udp(peer.local_addr().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        other.send_to(b"unsolicited", address).unwrap();
        peer.send_to(b"answer", address).unwrap();
        let mut buffer = [0; 32];
        socket.set_nonblocking(false).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"answer");
    }
}
