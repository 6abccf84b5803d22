//! Network interfaces: loopback always, Ethernet when the host configures it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use pyro_wire::{Failure, FailureKind, Ipv6Config, NetworkConfig};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use crate::failure::{During, failed, refused};

/// The interface that gets the host's configuration.
const INTERFACE: &str = "/sys/class/net/eth0";
/// Exists where the kernel has IPv6.
const IPV6: &str = "/proc/net/if_inet6";
/// Length of a hardware address.
const MAC_BYTES: usize = 6;

/// Brings up loopback.
pub(crate) async fn bring_up_loopback() -> Result<(), Failure> {
    const LOOPBACK_INDEX: u32 = 1;
    with_netlink(async |handle| {
        let up = LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build();
        handle.link().set(up).execute().await.map_err(netlink_failed("bringing up loopback"))
    })
    .await
}

/// Brings up the Ethernet interface with its addresses and routes.
pub(crate) async fn configure(config: &NetworkConfig) -> Result<(), Failure> {
    let index = interface_index(Path::new(INTERFACE))?;
    let link = link(index, config)?;
    with_netlink(async |handle| {
        handle
            .address()
            .add(index, IpAddr::V4(config.address), config.prefix_len)
            .execute()
            .await
            .map_err(netlink_failed("setting the network address"))?;
        handle.link().set(link).execute().await.map_err(netlink_failed("bringing up the network"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(config.gateway).build();
        handle.route().add(route).execute().await.map_err(netlink_failed("setting the default route"))?;
        // A guest kernel may have no IPv6, and then the guest has IPv4 alone.
        if let (Some(config), true) = (&config.ipv6, Path::new(IPV6).exists()) {
            configure_ipv6(handle, index, config).await?;
        }
        Ok(())
    })
    .await
}

/// How the interface is brought up.
fn link(index: u32, config: &NetworkConfig) -> Result<LinkMessage, Failure> {
    let mut link = LinkUnspec::new_with_index(index).up();
    if let Some(address) = &config.mac_address {
        let bytes =
            address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>();
        let bytes = bytes.ok().filter(|bytes| bytes.len() == MAC_BYTES).ok_or_else(|| {
            refused(
                "reading the hardware address",
                format!("invalid address: expected {MAC_BYTES} bytes, got {address:?}"),
            )
        })?;
        link = link.address(bytes);
    }
    if let Some(mtu) = config.mtu {
        link = link.mtu(mtu.into());
    }
    Ok(link.build())
}

async fn configure_ipv6(handle: &rtnetlink::Handle, index: u32, config: &Ipv6Config) -> Result<(), Failure> {
    let mut address = handle.address().add(index, IpAddr::V6(config.address), config.prefix_len);
    // No other has the address, and without this it could not be used for a second.
    address.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    address.execute().await.map_err(netlink_failed("setting the IPv6 address"))?;
    let route =
        RouteMessageBuilder::<Ipv6Addr>::new().gateway(config.gateway).output_interface(index).build();
    handle.route().add(route).execute().await.map_err(netlink_failed("setting the IPv6 default route"))
}

/// The kernel's number for the interface whose directory in sysfs this is.
fn interface_index(interface: &Path) -> Result<u32, Failure> {
    let text = fs::read_to_string(interface.join("ifindex")).during("looking for the network interface")?;
    text.trim().parse().map_err(|_| {
        refused("reading the interface's index", format!("invalid index: expected a number, got {text:?}"))
    })
}

async fn with_netlink<T>(
    work: impl AsyncFnOnce(&rtnetlink::Handle) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (connection, handle, _) = rtnetlink::new_connection().during("opening a netlink socket")?;
    let connection = tokio::spawn(connection);
    let result = work(&handle).await;
    // Its socket must be gone before the machine can be saved.
    connection.abort();
    let _ = connection.await;
    result
}

fn netlink_failed(step: &'static str) -> impl Fn(rtnetlink::Error) -> Failure {
    move |error| {
        let cause = error.to_string();
        match error {
            rtnetlink::Error::NetlinkError(message) => Failure { cause, ..failed(step, message.to_io()) },
            _ => Failure { kind: FailureKind::Other, step: step.into(), cause, errno: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_an_interface_is_read_strictly() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(interface_index(dir.path()).unwrap_err().kind, FailureKind::FileNotFound);
        fs::write(dir.path().join("ifindex"), "2\n").unwrap();
        assert_eq!(interface_index(dir.path()).unwrap(), 2);
        fs::write(dir.path().join("ifindex"), "-1\n").unwrap();
        let failure = interface_index(dir.path()).unwrap_err();
        assert_eq!(failure.cause, "invalid index: expected a number, got \"-1\\n\"");
    }
}
