//! Network interfaces: loopback always, Ethernet when the host says so.

use std::fs;
use std::net::IpAddr;

use pyro_wire::NetworkConfig;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use crate::fault::{During, Fault};

/// Brings up loopback.
pub(crate) async fn bring_up_loopback() -> Result<(), Fault> {
    const LOOPBACK_INDEX: u32 = 1;
    with_netlink(async |handle| {
        let up = LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build();
        handle.link().set(up).execute().await.map_err(fault("bringing up loopback"))
    })
    .await
}

/// Brings up the Ethernet interface with its address and route.
pub(crate) async fn configure(config: &NetworkConfig) -> Result<(), Fault> {
    let name =
        fs::read_to_string("/sys/class/net/eth0/ifindex").during("looking for the network interface")?;
    let index: u32 = name.trim().parse().map_err(|_| Fault {
        step: "reading the interface's index".into(),
        cause: format!("{name:?} is not a number"),
        errno: 0,
    })?;
    with_netlink(async |handle| {
        handle
            .address()
            .add(index, IpAddr::V4(config.address), config.prefix_len)
            .execute()
            .await
            .map_err(fault("setting the network address"))?;
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().set(up).execute().await.map_err(fault("bringing up the network"))?;
        let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(config.gateway).build();
        handle.route().add(route).execute().await.map_err(fault("setting the default route"))
    })
    .await
}

async fn with_netlink<T>(work: impl AsyncFnOnce(&rtnetlink::Handle) -> Result<T, Fault>) -> Result<T, Fault> {
    let (connection, handle, _) = rtnetlink::new_connection().during("opening a netlink socket")?;
    let connection = tokio::spawn(connection);
    let result = work(&handle).await;
    // Its socket must be gone before the machine can be saved.
    connection.abort();
    let _ = connection.await;
    result
}

fn fault(step: &'static str) -> impl Fn(rtnetlink::Error) -> Fault {
    move |error| Fault { step: step.into(), cause: error.to_string(), errno: 0 }
}
