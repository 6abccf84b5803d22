//! What kind of route the kernel has for an address, by rtnetlink(7). It needs no privileges and sends no packet.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Returns the kind of route. `None`: there is no route.
pub(super) fn kind(address: IpAddr) -> io::Result<Option<RouteType>> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let question = question(address);
    socket.send(&question, 0)?;
    // The kernel has answered when `send` returns, and nobody else can: the socket is connected to the kernel.
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(Some(route.header.kind)),
        NetlinkPayload::Error(error) => match rustix::io::Errno::from_raw_os_error(-error.raw_code()) {
            rustix::io::Errno::NETUNREACH | rustix::io::Errno::HOSTUNREACH => Ok(None),
            error => Err(error.into()),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn question(address: IpAddr) -> Vec<u8> {
    let mut route = RouteMessage::default();
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, RouteAddress::Inet6(address)),
    };
    route.header.address_family = family;
    route.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    route.attributes.push(RouteAttribute::Destination(destination));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, RouteNetlinkMessage::GetRoute(route).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
