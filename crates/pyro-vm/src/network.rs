//! Rootless user-mode networking: `passt` carries the guest's packets over ordinary sockets of the host.
//!
//! By default passt maps the gateway's address to the host's loopback, which would let a guest reach every
//! service that the host's user keeps to itself. `--no-map-gw` closes that; a passt that does not know it
//! refuses to start, and then so does the VM. Ports are not forwarded into the guest.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use pyro_wire::NetworkConfig;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use crate::process;
use crate::supervisor::GuestNetwork;
use crate::vmm::NetworkAttachment;

/// Every guest has a network of its own, so all can have the same addresses.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Queries to this address go to the host's own resolver, wherever that listens.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const PREFIX_LEN: u8 = 24;

/// A running network helper and what the guest must know about it.
pub(crate) struct Network {
    helper: Child,
    messages: Option<ChildStderr>,
    config: NetworkConfig,
}

impl Network {
    /// Starts the helper. The returned descriptor is the VMM's end of the link; when that closes, the helper
    /// ends by itself.
    pub(crate) fn start() -> Result<(Self, OwnedFd), String> {
        let (vmm_end, helper_end) =
            UnixStream::pair().map_err(|error| format!("cannot make a socket pair: {error}"))?;
        let mut command = Command::new("passt");
        command
            .args(["--foreground", "--stderr", "--quiet", "--fd", "3", "-4", "--no-map-gw"])
            .args(["--tcp-ports", "none", "--udp-ports", "none"])
            .args(["--no-dhcp", "--no-ndp", "--no-dhcpv6", "--no-ra"])
            .args(["--address", &GUEST.to_string(), "--netmask", &PREFIX_LEN.to_string()])
            .args(["--gateway", &GATEWAY.to_string(), "--dns-forward", &RESOLVER.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        process::bind_to_parent(&mut command, vec![(helper_end.into(), 3)]);
        let mut helper = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                "passt is not installed (Debian package passt); it is needed for --network".to_owned()
            }
            _ => format!("cannot run passt: {error}"),
        })?;
        let messages = helper.stderr.take();
        let config = NetworkConfig {
            address: GUEST,
            prefix_len: PREFIX_LEN,
            gateway: GATEWAY,
            dns_servers: vec![RESOLVER],
        };
        Ok((Self { helper, messages, config }, vmm_end.into()))
    }

    pub(crate) fn config(&self) -> &NetworkConfig {
        &self.config
    }

    pub(crate) fn description(&self) -> GuestNetwork {
        let NetworkConfig { address, prefix_len, gateway, dns_servers } = self.config.clone();
        let NetworkAttachment { mac_address } = NetworkAttachment::default();
        GuestNetwork { address, prefix_len, gateway, dns_servers, mac_address }
    }

    /// Waits for the helper's end, which is a failure at any time before the VM's, and says why.
    pub(crate) async fn failure(&mut self) -> String {
        let mut reasons = Vec::new();
        if let Some(messages) = self.messages.take() {
            let mut lines = BufReader::new(messages).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // Where there is no system log, passt says so with every line it writes.
                if !line.is_empty() && !line.starts_with("Failed to send") {
                    reasons.push(line);
                }
            }
        }
        let status = self.helper.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
        format!("passt ended ({status}): {}", reasons.join("; "))
    }

    pub(crate) async fn stop(&mut self) {
        // Fails only if it has ended already, which the end of the VMM makes it do.
        let _ = self.helper.kill().await;
    }
}
