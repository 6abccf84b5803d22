//! Rootless user-mode networking: `passt` carries the guest's packets over ordinary sockets of the host.
//!
//! By default passt maps the gateway's address to the host's loopback, which would let a guest reach every service that
//! the host's user exposes only locally. `--no-map-gw` prevents that; a passt that does not support it refuses to
//! start, and then the VM does not start either. No ports are forwarded into the guest.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr};

use super::description::{NetworkDescription, NetworkInterface};
use super::error::NetworkError;
use crate::spawn::Spawn;

/// Every guest has a network of its own, so all can have the same addresses.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Queries to this address go to the host's own resolver, wherever it listens.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const PREFIX_LEN: u8 = 24;

/// Maximum lines of passt's output kept for an error report.
const KEPT_LINES: usize = 20;
/// Descriptor of the link in passt's process.
const LINK_FD: i32 = 3;

/// A running passt and the network settings for the guest.
#[derive(Debug)]
pub(super) struct Passt {
    process: Child,
    messages: Option<Lines<BufReader<ChildStderr>>>,
    reasons: Vec<String>,
    description: NetworkDescription,
}

impl Passt {
    /// Starts passt on its end of the link. It exits by itself when the other end closes.
    pub(super) fn start(link: OwnedFd, interface: &NetworkInterface) -> Result<Self, NetworkError> {
        let fd = LINK_FD.to_string();
        let mut process = Spawn::new("passt")
            .args(["--foreground", "--stderr", "--quiet", "--fd", &fd, "-4", "--no-map-gw"])
            .args(["--tcp-ports", "none", "--udp-ports", "none"])
            .args(["--no-dhcp", "--no-ndp", "--no-dhcpv6", "--no-ra"])
            .args(["--address", &GUEST.to_string(), "--netmask", &PREFIX_LEN.to_string()])
            .args(["--gateway", &GATEWAY.to_string(), "--dns-forward", &RESOLVER.to_string()])
            .stderr(Stdio::piped())
            .inherit(link, LINK_FD)
            .bind_to_parent()
            .start()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => NetworkError::NotInstalled,
                _ => NetworkError::Run(error),
            })?;
        let messages = process.stderr.take().map(|stderr| BufReader::new(stderr).lines());
        let description = NetworkDescription {
            address: GUEST,
            prefix_len: PREFIX_LEN,
            gateway: GATEWAY,
            dns_servers: vec![RESOLVER],
            mac_address: interface.mac_address.clone(),
        };
        Ok(Self { process, messages, reasons: Vec::new(), description })
    }

    pub(super) fn description(&self) -> &NetworkDescription {
        &self.description
    }

    /// Waits for passt to exit, which is a failure at any time before the machine's end, and returns why it did.
    /// Dropping the future loses nothing.
    pub(super) async fn failed(&mut self) -> NetworkError {
        while let Some(messages) = &mut self.messages {
            match messages.next_line().await {
                // Without a system log, passt reports that with every line it writes.
                Ok(Some(line)) if line.is_empty() || line.starts_with("Failed to send") => {}
                Ok(Some(line)) if self.reasons.len() < KEPT_LINES => self.reasons.push(line),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => self.messages = None,
            }
        }
        let status = self.process.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
        NetworkError::Ended { status, messages: self.reasons.join("; ") }
    }

    pub(super) async fn stop(&mut self) {
        // Fails only if it has exited already, which happens when the machine ends.
        let _ = self.process.kill().await;
    }
}
