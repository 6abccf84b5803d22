//! The network boundary: closed without the flag; with it, open to the public internet and to nothing else.
//!
//! All traffic stays in two network namespaces that the test makes. One is the host: it has a loopback interface, a public
//! and a private address, and canaries on each. The other, behind a pair of virtual Ethernet interfaces, is everything
//! else: a server on a public address, and canaries on private, link-local and unique local ones.

mod allowlist;
mod attack;
mod helper;
mod host_settings;
mod servers;
mod world;

use pyro_engine::VmSpec;

use self::world::{ask, run_in_world};
use crate::harness::{ENVIRONMENT, Sandbox, chain, exec_text, never, quiet};

pub(crate) use self::world::pyro_in_world;

#[test]
fn a_guest_without_the_flag_has_only_its_own_loopback() {
    let sandbox = Sandbox::new();
    let line =
        format!("ls /sys/class/net; wc -l < /proc/net/route; {}", ask(&[(world::PUBLIC, world::OPEN_PORT)]));
    let ended = run_in_world(&sandbox, [], &line);
    assert_eq!(ended.success(), "lo\n1\nclosed\n", "{ended:?}");
}

#[tokio::test]
async fn the_networks_facts_are_those_of_the_guest() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let spec = VmSpec { network: true, ..VmSpec::new(ENVIRONMENT) };
    let vm = engine.create_vm(spec, &quiet(), &never()).await.unwrap();
    let id = vm.vm_id.as_str();
    let vm = engine.start_vm(id, &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();
    assert!(vm.network_enabled);
    let info = engine.network_info_vm(id).await.unwrap();
    assert!(info.network_enabled && info.outbound_connectivity_expected, "{info:?}");
    let facts = info.assignment.unwrap();
    assert_eq!(vm.guest_ip, facts.guest_ip);
    let guest = sandbox.guest(&vm);
    let mac = exec_text(&guest, "cat /sys/class/net/eth0/address").await;
    assert_eq!(facts.mac_address.as_deref(), Some(mac.trim()));
    let of_id = format!("06:00:{}:{}:{}:{}", &id[0..2], &id[2..4], &id[4..6], &id[6..8]);
    assert_eq!(mac.trim(), of_id, "it is the VM's own");
    let addresses = exec_text(&guest, "hostname -I").await;
    let address = addresses.split_whitespace().next();
    assert_eq!(facts.guest_ip.as_deref(), address);
    let resolvers = exec_text(&guest, "cat /etc/resolv.conf").await;
    let expected: String = facts.dns_servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    assert_eq!(resolvers, expected);
    engine.delete_vm(id).await.unwrap();
}
