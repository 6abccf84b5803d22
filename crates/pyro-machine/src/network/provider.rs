//! What can carry a guest's packets. Another provider is another variant.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::description::{NetworkDescription, NetworkInterface};
use super::error::NetworkError;
use super::passt::Passt;

/// The program of [`Provider::Passt`], which is looked up in the search path.
const PASST: &str = "passt";

/// What a machine's network interface is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Nothing: packets are discarded. For a machine that is made to be saved.
    Unconnected,
    /// `passt`, a process of the host's user that carries the packets over ordinary sockets of the host.
    Passt,
}

impl Provider {
    /// Starts carrying packets. Call it within a tokio runtime, which reads what the provider prints.
    pub(crate) fn start(self, interface: &NetworkInterface) -> Result<Network, NetworkError> {
        let (machine_end, far_end) = UnixStream::pair().map_err(NetworkError::Link)?;
        let carrier = match self {
            Self::Unconnected => Carrier::Nothing { _far_end: far_end },
            Self::Passt => {
                Carrier::Passt(Box::new(Passt::start(Path::new(PASST), far_end.into(), interface)?))
            }
        };
        Ok(Network { carrier, link: Some(machine_end.into()) })
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
        _far_end: UnixStream,
    },
    Passt(Box<Passt>),
    #[cfg(any(test, feature = "fake"))]
    Fake(NetworkDescription),
}

impl Network {
    /// Starts a shell script in place of passt.
    #[cfg(test)]
    pub(crate) fn with_script(dir: &Path, script: &str) -> Self {
        let (machine_end, far_end) = UnixStream::pair().expect("socket pair");
        let program = crate::fake_program::fake_program(dir, script);
        let passt = Passt::start(&program, far_end.into(), &NetworkInterface::default()).expect("started");
        Self { carrier: Carrier::Passt(Box::new(passt)), link: Some(machine_end.into()) }
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
            Carrier::Passt(passt) => Some(passt.description()),
            #[cfg(any(test, feature = "fake"))]
            Carrier::Fake(description) => Some(description),
        }
    }

    /// Returns the machine's end of the link, a stream socket. `None` from the second call on.
    pub(crate) fn take_link(&mut self) -> Option<OwnedFd> {
        self.link.take()
    }

    /// Waits for a failure. Dropping the future loses nothing, and later calls return the same.
    pub(crate) async fn failed(&mut self) -> NetworkError {
        match &mut self.carrier {
            Carrier::Nothing { .. } => std::future::pending().await,
            Carrier::Passt(passt) => passt.failed().await,
            #[cfg(any(test, feature = "fake"))]
            Carrier::Fake(_) => std::future::pending().await,
        }
    }

    /// Stops it, and waits until it is gone.
    pub(crate) async fn stop(&mut self) {
        match &mut self.carrier {
            Carrier::Nothing { .. } => {}
            Carrier::Passt(passt) => passt.stop().await,
            #[cfg(any(test, feature = "fake"))]
            Carrier::Fake(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unconnected_interface_leads_nowhere_and_does_not_fail() {
        let mut network = Provider::Unconnected.start(&NetworkInterface::default()).unwrap();
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
}
