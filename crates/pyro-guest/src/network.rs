//! Network interfaces: loopback always, Ethernet when the host says so.

use std::fs;
use std::net::IpAddr;

use pyro_wire::NetworkConfig;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use crate::fault::{During, Fault};

/// Brings up loopback and, with a configuration, the Ethernet interface with its address and route.
pub(crate) async fn configure(config: Option<&NetworkConfig>) -> Result<(), Fault> {
    let (connection, handle, _) = rtnetlink::new_connection().during("opening a netlink socket")?;
    let connection = tokio::spawn(connection);
    let result = apply(&handle, config).await;
    connection.abort();
    result
}

async fn apply(handle: &rtnetlink::Handle, config: Option<&NetworkConfig>) -> Result<(), Fault> {
    const LOOPBACK_INDEX: u32 = 1;
    let up = |index| LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up(LOOPBACK_INDEX)).execute().await.map_err(fault("bringing up loopback"))?;
    let Some(config) = config else { return Ok(()) };

    let name =
        fs::read_to_string("/sys/class/net/eth0/ifindex").during("looking for the network interface")?;
    let index: u32 = name.trim().parse().map_err(|_| Fault {
        step: "reading the interface's index".into(),
        cause: format!("{name:?} is not a number"),
        errno: 0,
    })?;
    handle
        .address()
        .add(index, IpAddr::V4(config.address), config.prefix_len)
        .execute()
        .await
        .map_err(fault("setting the network address"))?;
    handle.link().set(up(index)).execute().await.map_err(fault("bringing up the network"))?;
    let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(config.gateway).build();
    handle.route().add(route).execute().await.map_err(fault("setting the default route"))?;

    let resolvers: String =
        config.dns_servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    fs::write("/etc/resolv.conf", resolvers).during("writing /etc/resolv.conf")
}

fn fault(step: &'static str) -> impl Fn(rtnetlink::Error) -> Fault {
    move |error| Fault { step: step.into(), cause: error.to_string(), errno: 0 }
}
