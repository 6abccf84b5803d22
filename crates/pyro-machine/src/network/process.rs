//! The process that carries a guest's packets: `pyro network`, which runs the stack of `pyro-network`. Frames pass between
//! it and the VMM directly; it gets its configuration through a descriptor and reports denials through a pipe.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use pyro_network::{
    CONFIG_FD, CONTROL_FD, Config, EVENTS_FD, Ipv4Link, Ipv6Link, LINK_FD, MacAddress, Policy, host_has_ipv6,
};
use tokio::process::Child;

use super::control::{ControlKeeper, resolver_list};
use super::denials::DenialKeeper;
use super::description::{Ipv6Description, NetworkDescription};
use super::error::NetworkError;
use super::messages::Messages;
use crate::spawn::Spawn;

/// Every guest has a network of its own, so all can have the same addresses.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Address of the guest's gateway. Where a rule opens a port of the host's loopback interface, the gateway's port leads there.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Queries to this address go to the host's own resolvers, wherever they listen.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const PREFIX_LEN: u8 = 24;

const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd70, 0x7972, 0x6f00, 0, 0, 0, 0, 0xf);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd70, 0x7972, 0x6f00, 0, 0, 0, 0, 2);
const PREFIX_LEN_V6: u8 = 64;

/// Largest packet on the link. A connection is two, so the host's networks do not limit it; few large packets cost less
/// than many small ones (`docs/design/0017-network.md`).
const MTU: u16 = 65_520;

/// How to start the process that carries packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkHelper {
    /// The program.
    pub program: PathBuf,
    /// Its arguments. The path of the file for denials follows, which tells in a list of processes whose it is.
    pub args: Vec<OsString>,
}

/// What one guest's network is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Hardware address of the guest.
    pub mac_address: MacAddress,
    /// What the guest may reach.
    pub policy: Policy,
    /// File to which denials are written. It is created, and its size is bounded.
    pub denials: PathBuf,
}

/// A running process, and the network settings for the guest.
#[derive(Debug)]
pub(super) struct NetworkProcess {
    process: Child,
    messages: Option<Messages>,
    description: NetworkDescription,
    control: ControlKeeper,
    _denials: DenialKeeper,
}

impl NetworkProcess {
    /// Starts it on its end of the link. It exits by itself when the other end closes.
    pub(super) fn start(
        helper: &NetworkHelper,
        settings: NetworkSettings,
        link: OwnedFd,
    ) -> Result<Self, NetworkError> {
        let NetworkSettings { mac_address, policy, denials } = settings;
        let mut resolvers = resolver_list();
        let config = Config {
            guest_mac: mac_address,
            v4: Ipv4Link { guest: GUEST, gateway: GATEWAY, resolver: RESOLVER },
            v6: host_has_ipv6().then_some(Ipv6Link { guest: GUEST_V6, gateway: GATEWAY_V6 }),
            mtu: MTU,
            resolvers: resolvers.current().to_owned(),
            policy,
        };
        let (events, writer) = io::pipe().map_err(NetworkError::Link)?;
        let keeper = DenialKeeper::start(events.into(), &denials).map_err(NetworkError::Denials)?;
        let (control, control_end) = ControlKeeper::start(resolvers).map_err(NetworkError::Link)?;
        let mut process = Spawn::new(&helper.program)
            .args(&helper.args)
            .args([&denials])
            .clear_env()
            .stderr(Stdio::piped())
            .inherit(link, LINK_FD)
            .inherit(in_memory(&config).map_err(NetworkError::Run)?, CONFIG_FD)
            .inherit(writer, EVENTS_FD)
            .inherit(control_end, CONTROL_FD)
            .bind_to_parent()
            .shield_from_group_signals()
            .start()
            .map_err(NetworkError::Run)?;
        let messages = process.stderr.take().map(|stderr| Messages::read(stderr, str::is_empty));
        let description = NetworkDescription {
            address: GUEST,
            prefix_len: PREFIX_LEN,
            gateway: GATEWAY,
            dns_servers: vec![RESOLVER],
            mac_address: mac_address.to_string(),
            mtu: Some(MTU),
            ipv6: config.v6.map(|link| Ipv6Description {
                address: link.guest,
                prefix_len: PREFIX_LEN_V6,
                gateway: link.gateway,
            }),
        };
        Ok(Self { process, messages, description, control, _denials: keeper })
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.process.id()
    }

    pub(super) fn description(&self) -> &NetworkDescription {
        &self.description
    }

    /// The connection to the process.
    pub(super) fn control(&self) -> &ControlKeeper {
        &self.control
    }

    /// Waits for the process to exit, which is a failure at any time before the machine's end, and returns why it did.
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

/// Returns a file without a name that holds `config`.
fn in_memory(config: &Config) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("pyro-network", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::net::UnixStream;

    use std::path::Path;

    use super::*;
    use crate::fake_program::fake_program;

    pub(in crate::network) fn settings(dir: &Path) -> NetworkSettings {
        NetworkSettings {
            mac_address: MacAddress([6, 0, 1, 2, 3, 4]),
            policy: Policy::default(),
            denials: dir.join("denials"),
        }
    }

    pub(in crate::network) fn helper(program: PathBuf) -> NetworkHelper {
        NetworkHelper { program, args: vec!["network".into()] }
    }

    /// Starts a shell script in place of the process, and returns it with the machine's end of the link.
    fn start(dir: &tempfile::TempDir, script: &str) -> (NetworkProcess, UnixStream) {
        let (machine_end, far_end) = UnixStream::pair().unwrap();
        let helper = helper(fake_program(dir.path(), script));
        let process = NetworkProcess::start(&helper, settings(dir.path()), far_end.into()).unwrap();
        (process, machine_end)
    }

    #[tokio::test]
    async fn an_end_is_explained_by_what_the_process_printed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut process, _link) = start(&dir, "echo no memory >&2; exit 3");
        for _ in 0..2 {
            let error = process.failed().await;
            assert_eq!(error.to_string(), "the network process ended (exit status: 3): no memory");
        }
    }

    #[tokio::test]
    async fn the_process_gets_its_configuration_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (mut process, _link) = start(&dir, "cat <&4 >&2; env >&2; exit 5");
        let NetworkError::Ended { messages, .. } = process.failed().await else { panic!("it ended") };
        let (config, rest) = messages.split_once("}}").unwrap();
        assert!(config.contains("\"guest_mac\":\"06:00:01:02:03:04\""), "{config}");
        // What the shell sets by itself.
        assert!(!rest.contains("PATH=/root") && !rest.contains("HOME"), "{rest}");
    }

    #[tokio::test]
    async fn messages_do_not_block_a_running_process() {
        let dir = tempfile::tempdir().unwrap();
        // Far more than a pipe holds, and then a byte for the machine. Nothing waits for a failure meanwhile.
        let script = "head -c 1000000 /dev/zero | tr '\\0' x >&2; printf y >&3; read -r _ <&3; exit 4";
        let (mut process, link) = start(&dir, script);
        link.set_nonblocking(true).unwrap();
        let mut link = tokio::net::UnixStream::from_std(link).unwrap();
        let mut byte = [0];
        tokio::io::AsyncReadExt::read_exact(&mut link, &mut byte).await.unwrap();
        assert_eq!(&byte, b"y");
        drop(link);
        let NetworkError::Ended { status, messages } = process.failed().await else { panic!("it ended") };
        assert_eq!(status, "exit status: 4");
        assert!(messages.len() < 10_000, "{}", messages.len());
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_a_failure() {
        let (_machine_end, far_end) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let helper = helper("/nonexistent/pyro".into());
        let started = NetworkProcess::start(&helper, settings(dir.path()), far_end.into());
        assert!(matches!(started, Err(NetworkError::Run(_))));
    }

    #[tokio::test]
    async fn denials_are_kept_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let line =
            r#"{"time":1.5,"protocol":"tcp","address":"10.0.0.1","port":22,"rule":"private","count":1}"#;
        let (mut process, _link) = start(&dir, &format!("echo '{line}' >&5; exit 6"));
        process.failed().await;
        let read = || pyro_network::Denials::read(File::open(dir.path().join("denials")).unwrap()).unwrap();
        while read().iter().count() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(read().iter().next().unwrap().port, Some(22));
    }
}
