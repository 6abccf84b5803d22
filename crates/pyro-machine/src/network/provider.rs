//! What can carry a guest's packets. Another provider is another variant.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pyro_confine::Confinement;

use super::description::NetworkDescription;
use super::error::NetworkError;
use super::process::{NetworkHelper, NetworkProcess, NetworkSettings};

/// Time limit for a network process to confine itself.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// What a machine's network interface is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Nothing: packets are discarded. For a machine that is made to be saved.
    Unconnected,
    /// A process of the host's user that ends the guest's connections, and opens those that a policy allows.
    Policed(NetworkSettings),
}

impl Provider {
    /// Starts carrying packets. `helper` carries those of [`Provider::Policed`]. Call it within a tokio runtime, which
    /// reads what the provider prints.
    pub(crate) fn start(self, helper: Option<&NetworkHelper>) -> Result<Network, NetworkError> {
        let (machine_end, far_end) = UnixStream::pair().map_err(NetworkError::Link)?;
        let carrier = match (self, helper) {
            (Self::Unconnected, _) => Carrier::Nothing { _far_end: Some(far_end) },
            (Self::Policed(settings), Some(helper)) => {
                let process = NetworkProcess::start(helper, settings, far_end.into())?;
                Carrier::Process(Box::new(process))
            }
            (Self::Policed(_), None) => return Err(NetworkError::NoHelper),
        };
        Ok(Network { carrier, link: Some(machine_end.into()) })
    }

    /// Does the same for a guest that connects to a listening socket, which `listen` makes if it leads anywhere.
    pub(crate) fn start_listening(
        self,
        helper: Option<&NetworkHelper>,
        listen: impl FnOnce(&NetworkSettings) -> io::Result<OwnedFd>,
    ) -> Result<Network, NetworkError> {
        let carrier = match (self, helper) {
            (Self::Unconnected, _) => Carrier::Nothing { _far_end: None },
            (Self::Policed(settings), Some(helper)) => {
                let listener = listen(&settings).map_err(NetworkError::Link)?;
                Carrier::Process(Box::new(NetworkProcess::start(helper, settings, listener)?))
            }
            (Self::Policed(_), None) => return Err(NetworkError::NoHelper),
        };
        Ok(Network { carrier, link: None })
    }
}

/// What carries the packets of one machine. Dropping it stops that.
#[derive(Debug)]
pub struct Network {
    carrier: Carrier,
    link: Option<OwnedFd>,
}

#[derive(Debug)]
enum Carrier {
    /// The far end of the link stays open as long as the machine may read from it.
    Nothing {
        _far_end: Option<UnixStream>,
    },
    Process(Box<NetworkProcess>),
    #[cfg(any(test, feature = "fake"))]
    Fake(NetworkDescription),
}

impl Network {
    /// Starts a shell script in place of the process.
    #[cfg(test)]
    pub(crate) fn with_script(dir: &std::path::Path, script: &str) -> Self {
        use super::process::tests::{helper, settings};
        let helper = helper(crate::fake_program::fake_program(dir, script));
        Provider::Policed(settings(dir)).start(Some(&helper)).expect("started")
    }

    /// Creates a network without processes.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn fake(description: NetworkDescription) -> Self {
        Self { carrier: Carrier::Fake(description), link: None }
    }

    /// Returns the network settings for the guest. `None`: there is nothing to reach.
    pub fn description(&self) -> Option<&NetworkDescription> {
        match &self.carrier {
            Carrier::Nothing { .. } => None,
            Carrier::Process(process) => Some(process.description()),
            #[cfg(any(test, feature = "fake"))]
            Carrier::Fake(description) => Some(description),
        }
    }

    /// Returns the ID of the process that carries the packets, while there is one.
    pub(crate) fn process_id(&self) -> Option<u32> {
        match &self.carrier {
            Carrier::Process(process) => process.id(),
            Carrier::Nothing { .. } => None,
            #[cfg(any(test, feature = "fake"))]
            Carrier::Fake(_) => None,
        }
    }

    /// Returns what confines the process that carries the packets, if there is one and it has reported that.
    pub fn confinement(&self) -> Option<Confinement> {
        match &self.carrier {
            Carrier::Process(process) => process.control().confinement(),
            _ => None,
        }
    }

    /// Waits until that process is confined.
    ///
    /// # Errors
    /// It is not fully confined, for these reasons.
    pub(crate) async fn fully_confined(&self) -> Result<(), String> {
        let Carrier::Process(process) = &self.carrier else { return Ok(()) };
        let reported = tokio::time::timeout(REPORT_LIMIT, process.control().reported()).await;
        let Ok(Some(confinement)) = reported else { return Err("network process (no report)".to_owned()) };
        let missing = confinement.missing_self_applied();
        let missing: Vec<_> = missing
            .into_iter()
            .map(|(layer, reason)| format!("{layer} of the network process ({reason})"))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join(", ")) }
    }

    /// Returns the machine's end of the link, a stream socket. `None` from the second call on.
    pub(crate) fn take_link(&mut self) -> Option<OwnedFd> {
        self.link.take()
    }

    /// Waits for a failure. Dropping the future loses nothing, and later calls return the same.
    pub(crate) async fn failed(&mut self) -> NetworkError {
        match &mut self.carrier {
            Carrier::Nothing { .. } => std::future::pending().await,
            Carrier::Process(process) => process.failed().await,
            #[cfg(any(test, feature = "fake"))]
            Carrier::Fake(_) => std::future::pending().await,
        }
    }

    /// Stops it, and waits until it is gone.
    pub(crate) async fn stop(&mut self) {
        match &mut self.carrier {
            Carrier::Nothing { .. } => {}
            Carrier::Process(process) => process.stop().await,
            #[cfg(any(test, feature = "fake"))]
            Carrier::Fake(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::tests::settings;
    use super::*;

    #[tokio::test]
    async fn an_unconnected_interface_leads_nowhere_and_does_not_fail() {
        let mut network = Provider::Unconnected.start(None).unwrap();
        assert_eq!(network.description(), None);
        let link = UnixStream::from(network.take_link().unwrap());
        assert!(network.take_link().is_none());
        link.set_nonblocking(true).unwrap();
        let error = std::io::Read::read(&mut &link, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "the link is open");
        tokio::select! {
            biased;
            error = network.failed() => panic!("{error}"),
            () = tokio::task::yield_now() => {}
        }
        network.stop().await;
    }

    #[tokio::test]
    async fn a_policy_needs_what_applies_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = Provider::Policed(settings(dir.path())).start(None).unwrap_err();
        assert!(matches!(error, NetworkError::NoHelper));
    }
}
