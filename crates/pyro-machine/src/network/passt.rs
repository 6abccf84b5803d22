//! Rootless user-mode networking: `passt` carries the guest's packets over ordinary sockets of the host.
//!
//! By default passt maps the gateway's address to the host's loopback, which would let a guest reach every service that
//! the host's user exposes only locally. `--no-map-gw` prevents that; a passt that does not support it refuses to
//! start, and then the VM does not start either. No ports are forwarded into the guest.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Child;

use super::description::{NetworkDescription, NetworkInterface};
use super::error::NetworkError;
use super::messages::Messages;
use crate::spawn::Spawn;

/// Every guest has a network of its own, so all can have the same addresses.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Queries to this address go to the host's own resolver, wherever it listens.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const PREFIX_LEN: u8 = 24;

/// Descriptor of the link in passt's process.
const LINK_FD: i32 = 3;

/// A running passt and the network settings for the guest.
#[derive(Debug)]
pub(super) struct Passt {
    process: Child,
    messages: Option<Messages>,
    description: NetworkDescription,
}

impl Passt {
    /// Starts `program`, which is passt, on its end of the link. It exits by itself when the other end closes.
    pub(super) fn start(
        program: &Path,
        link: OwnedFd,
        interface: &NetworkInterface,
    ) -> Result<Self, NetworkError> {
        let fd = LINK_FD.to_string();
        let mut process = Spawn::new(program)
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
        let messages = process.stderr.take().map(|stderr| Messages::read(stderr, is_noise));
        let description = NetworkDescription {
            address: GUEST,
            prefix_len: PREFIX_LEN,
            gateway: GATEWAY,
            dns_servers: vec![RESOLVER],
            mac_address: interface.mac_address.clone(),
        };
        Ok(Self { process, messages, description })
    }

    pub(super) fn description(&self) -> &NetworkDescription {
        &self.description
    }

    /// Waits for passt to exit, which is a failure at any time before the machine's end, and returns why it did.
    /// Dropping the future loses nothing, and later calls return the same.
    pub(super) async fn failed(&mut self) -> NetworkError {
        let status = self.process.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
        let messages = match &mut self.messages {
            Some(messages) => messages.of_ended_program().await,
            None => String::new(),
        };
        NetworkError::Ended { status, messages }
    }

    pub(super) async fn stop(&mut self) {
        // Fails only if it has exited already, which happens when the machine ends.
        let _ = self.process.kill().await;
    }
}

/// Without a system log, passt reports that with every line it writes.
fn is_noise(line: &str) -> bool {
    line.is_empty() || line.starts_with("Failed to send")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::fake_program::fake_program;

    /// Starts a shell script in place of passt, and returns it with the machine's end of the link.
    fn start(dir: &tempfile::TempDir, script: &str) -> (Passt, UnixStream) {
        let (machine_end, far_end) = UnixStream::pair().unwrap();
        let program = fake_program(dir.path(), script);
        (Passt::start(&program, far_end.into(), &NetworkInterface::default()).unwrap(), machine_end)
    }

    #[tokio::test]
    async fn an_end_is_explained_by_what_passt_printed() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo Failed to send 9 bytes to syslog >&2; echo no route >&2; exit 3";
        let (mut passt, _link) = start(&dir, script);
        for _ in 0..2 {
            assert_eq!(passt.failed().await.to_string(), "passt ended (exit status: 3): no route");
        }
    }

    #[tokio::test]
    async fn messages_do_not_block_a_running_passt() {
        let dir = tempfile::tempdir().unwrap();
        // Far more than a pipe holds, and then a byte for the machine. Nothing waits for a failure meanwhile.
        let script = "head -c 1000000 /dev/zero | tr '\\0' x >&2; printf y >&3; read -r _ <&3; exit 4";
        let (mut passt, link) = start(&dir, script);
        link.set_nonblocking(true).unwrap();
        let mut link = tokio::net::UnixStream::from_std(link).unwrap();
        let mut byte = [0];
        tokio::io::AsyncReadExt::read_exact(&mut link, &mut byte).await.unwrap();
        assert_eq!(&byte, b"y");
        drop(link);
        let NetworkError::Ended { status, messages } = passt.failed().await else { panic!("it ended") };
        assert_eq!(status, "exit status: 4");
        assert!(messages.len() < 10_000, "{}", messages.len());
    }

    #[tokio::test]
    async fn a_missing_passt_is_recognised() {
        let (_machine_end, far_end) = UnixStream::pair().unwrap();
        let started =
            Passt::start(Path::new("/nonexistent/passt"), far_end.into(), &NetworkInterface::default());
        assert!(matches!(started, Err(NetworkError::NotInstalled)));
    }
}
