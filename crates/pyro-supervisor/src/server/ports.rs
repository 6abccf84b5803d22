//! Ports of the guest on the host: each is a listener of this process, whose connections pass through the guest channel.

pub(super) mod relay;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{AbortHandle, JoinSet, spawn_local};

use crate::mux::Streams;
use crate::{PortMapping, PublishedPort};

/// Maximum number of published ports of one VM.
pub const MAX_PORTS: usize = 32;
/// Maximum number of connections that are open at once to all ports of a VM. Others wait until the kernel's queue is full.
/// Less than half of the streams that clients can have, so that commands can always run.
const MAX_CONNECTIONS: usize = 96;
/// Maximum number of connections that are open at once to one port.
const MAX_CONNECTIONS_OF_PORT: usize = 64;

/// Pause after the kernel could not hand over a client.
const RETRY_TIME: Duration = Duration::from_millis(250);

/// Why a port is not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortError {
    #[error("cannot publish on {0}: the port is in use")]
    InUse(SocketAddr),
    #[error(
        "cannot publish on {0}: this user may not listen on that port; expected 1024 to 65535, or 0 for any"
    )]
    Privileged(SocketAddr),
    #[error("cannot publish on {0}: the address is not one of this host")]
    NotLocal(SocketAddr),
    #[error("too many published ports: the maximum is {MAX_PORTS}")]
    TooMany,
    #[error(transparent)]
    Closed(#[from] Closed),
    #[error("cannot publish on {0}: {1}")]
    Listen(SocketAddr, io::Error),
}

/// The VM is about to end: its ports are closed, and no more are published.
#[derive(Debug, thiserror::Error)]
#[error("the VM is being stopped")]
pub(super) struct Closed;

impl PortError {
    fn of(address: SocketAddr, error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::ADDRINUSE) => Self::InUse(address),
            Some(Errno::ACCESS | Errno::PERM) => Self::Privileged(address),
            Some(Errno::ADDRNOTAVAIL) => Self::NotLocal(address),
            _ => Self::Listen(address, error),
        }
    }
}

/// The published ports of one VM.
#[derive(Clone)]
pub(super) struct Ports {
    table: Rc<RefCell<Table>>,
    /// Held while the table is changed and recorded, so that the latest table is recorded last.
    pub(super) recording: Rc<Mutex<()>>,
}

struct Table {
    ports: Vec<Port>,
    connections: Arc<Semaphore>,
    /// Present while the guest takes requests.
    streams: Option<Streams>,
    /// Set for good when the VM ends.
    is_closed: bool,
}

struct Port {
    published: PublishedPort,
    /// Until the guest takes requests.
    waiting: Option<TcpListener>,
    /// Ends the listener and its connections.
    accepting: Option<AbortHandle>,
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

impl Ports {
    pub(super) fn new() -> Self {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let table = Table { ports: Vec::new(), connections, streams: None, is_closed: false };
        Self { table: Rc::new(RefCell::new(table)), recording: Rc::default() }
    }

    /// Listens for clients. Before the guest takes requests, they wait.
    pub(super) fn publish(&self, mapping: PortMapping) -> Result<PublishedPort, PortError> {
        let mut table = self.table.borrow_mut();
        if table.is_closed {
            return Err(Closed.into());
        }
        if table.ports.len() >= MAX_PORTS {
            return Err(PortError::TooMany);
        }
        let failed = |error| PortError::of(mapping.host, error);
        let listener = std::net::TcpListener::bind(mapping.host).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let published = PublishedPort { mapping, bound };
        let mut port = Port { published, waiting: Some(listener), accepting: None };
        if let Some(streams) = &table.streams {
            port.accept(streams, &table.connections);
        }
        table.ports.push(port);
        Ok(published)
    }

    /// Closes the port that is bound to this address, with its connections.
    pub(super) fn withdraw(&self, bound: SocketAddr) {
        self.table.borrow_mut().ports.retain(|port| port.published.bound != bound);
    }

    /// Accepts clients from now on.
    pub(super) fn open(&self, streams: &Streams) {
        let mut table = self.table.borrow_mut();
        let Table { ports, connections, streams: opened, .. } = &mut *table;
        *opened = Some(streams.clone());
        for port in ports {
            port.accept(streams, connections);
        }
    }

    /// Closes all ports for good, with their connections.
    pub(super) fn close(&self) {
        let mut table = self.table.borrow_mut();
        table.is_closed = true;
        table.streams = None;
        table.ports.clear();
    }

    /// Returns the ports to record. A table that was closed is not the one to record: a stopped VM keeps its ports.
    pub(super) fn to_record(&self) -> Result<Vec<PublishedPort>, Closed> {
        match self.table.borrow().is_closed {
            true => Err(Closed),
            false => Ok(self.published()),
        }
    }

    pub(super) fn published(&self) -> Vec<PublishedPort> {
        self.table.borrow().ports.iter().map(|port| port.published).collect()
    }
}

impl Port {
    fn accept(&mut self, streams: &Streams, connections: &Arc<Semaphore>) {
        if let Some(listener) = self.waiting.take() {
            let (guest_port, connections) = (self.published.mapping.guest_port, Arc::clone(connections));
            let accepting = accept(listener, guest_port, streams.clone(), connections);
            self.accepting = Some(spawn_local(accepting).abort_handle());
        }
    }
}

/// Accepts clients until it is aborted, which ends their connections too.
async fn accept(listener: TcpListener, guest_port: u16, streams: Streams, connections: Arc<Semaphore>) {
    let mut open = JoinSet::new();
    loop {
        // What has ended makes room for others.
        while open.try_join_next().is_some() {}
        if open.len() >= MAX_CONNECTIONS_OF_PORT {
            open.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((client, _)) => {
                let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
                let streams = streams.clone();
                open.spawn_local(async move {
                    relay::serve(client, guest_port, &streams).await;
                    drop(permit);
                });
            }
            // A client that has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Such as too many open files. No event reports that there are fewer.
            Err(error) => {
                tracing::warn!(%error, guest_port, "a client of a published port cannot be accepted");
                tokio::time::sleep(RETRY_TIME).await;
            }
        }
    }
}
