//! The connection to a network process: what confines it, and the resolvers of the host, whose list it cannot read.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use pyro_confine::Confinement;
use pyro_network::{MAX_MESSAGE_BYTES, Message, ResolverList};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where the host's resolvers are listed.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Shortest time between two looks at the list, whatever the network process asks for.
const LOOK_TIME: Duration = Duration::from_millis(100);

/// Answers a network process, in a task of its own. Dropping it ends that.
#[derive(Debug)]
pub(super) struct ControlKeeper {
    confinement: watch::Receiver<Option<Confinement>>,
    task: JoinHandle<()>,
}

impl Drop for ControlKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ControlKeeper {
    /// Returns the keeper, and the other end of its connection. `list` is what the process has been given.
    pub(super) fn start(list: ResolverList) -> io::Result<(Self, OwnedFd)> {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(kind.0, kind.1, kind.2, None)?;
        let socket = asynchronous(ours)?;
        let (sender, confinement) = watch::channel(None);
        let task = tokio::spawn(async move {
            // It ends with the connection, or when something is sent that is not a message.
            if let Err(error) = serve(socket, list, sender).await {
                tracing::debug!(%error, "the connection to a network process has ended");
            }
        });
        Ok((Self { confinement, task }, theirs))
    }

    /// Returns what confines the process, if it has reported that.
    pub(super) fn confinement(&self) -> Option<Confinement> {
        self.confinement.borrow().clone()
    }

    /// Waits for that report. `None`: there will be none.
    pub(super) fn reported(&self) -> impl Future<Output = Option<Confinement>> + use<> {
        let mut confinement = self.confinement.clone();
        async move { confinement.wait_for(Option::is_some).await.ok()?.clone() }
    }
}

async fn serve(
    socket: UnixStream,
    mut list: ResolverList,
    confinement: watch::Sender<Option<Confinement>>,
) -> io::Result<()> {
    let mut sent = list.current().to_owned();
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    loop {
        let length = receive(&socket, &mut buffer).await?;
        match serde_json::from_slice(buffer.get(..length).unwrap_or_default())? {
            // What comes later may come from a guest that has taken over the process.
            Message::Confined(report) => {
                confinement.send_if_modified(|known| {
                    let is_first = known.is_none();
                    known.get_or_insert(*report);
                    is_first
                });
            }
            Message::RefreshResolvers => {
                let current = list.current();
                if current != sent && answer(&socket, &serde_json::to_vec(current)?)? {
                    current.clone_into(&mut sent);
                }
                tokio::time::sleep(LOOK_TIME).await;
            }
        }
    }
}

/// A type of tokio's for a socket whose packets are messages. Only its readiness is used.
fn asynchronous(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// Receives one message. Its length is zero if the other end is closed. One that is longer than the buffer is cut, and then
/// does not decode.
async fn receive(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    let received = socket.async_io(Interest::READABLE, || {
        let (length, _) = recv(socket.as_fd(), &mut *buffer, RecvFlags::DONTWAIT)?;
        Ok(length)
    });
    received.await
}

/// Sends an answer. Returns whether it was sent: a process that does not take its answers gets the next one.
fn answer(socket: &UnixStream, text: &[u8]) -> io::Result<bool> {
    match send(socket.as_fd(), text, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the host's list of resolvers.
pub(super) fn resolver_list() -> ResolverList {
    ResolverList::new(Path::new(RESOLV_CONF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_report_counts_and_a_changed_list_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let (keeper, theirs) = ControlKeeper::start(ResolverList::new(&path)).unwrap();
        assert_eq!(keeper.confinement(), None);
        let say = |message: &Message| {
            let text = serde_json::to_vec(message).unwrap();
            send(&theirs, &text, SendFlags::empty()).unwrap();
        };
        let first = Confinement::none("first");
        say(&Message::Confined(Box::new(first.clone())));
        say(&Message::Confined(Box::new(Confinement::none("second"))));
        assert_eq!(keeper.reported().await, Some(first.clone()));
        std::fs::write(dir.path().join("new"), "nameserver 192.0.2.2\n").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        say(&Message::RefreshResolvers);
        let theirs = asynchronous(theirs).unwrap();
        let mut buffer = [0; 100];
        let length = receive(&theirs, &mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], br#"["192.0.2.2:53"]"#);
        assert_eq!(keeper.confinement(), Some(first));
    }

    /// Otherwise a list that could not be sent would count as known.
    #[tokio::test]
    async fn a_full_socket_takes_no_answer() {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(kind.0, kind.1, kind.2, None).unwrap();
        let ours = asynchronous(ours).unwrap();
        let mut sent = 0;
        while answer(&ours, b"[]").unwrap() {
            sent += 1;
        }
        for _ in 0..sent {
            recv(&theirs, &mut [0; 2][..], RecvFlags::DONTWAIT).unwrap();
        }
        assert!(answer(&ours, b"[]").unwrap());
    }

    #[tokio::test]
    async fn a_process_that_does_not_report_is_not_awaited_after_its_end() {
        let (keeper, theirs) = ControlKeeper::start(resolver_list()).unwrap();
        drop(theirs);
        assert_eq!(keeper.reported().await, None);
    }
}
