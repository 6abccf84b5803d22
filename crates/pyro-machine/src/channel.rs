//! The byte stream to the guest agent, on its way to being open.

use std::io;

use tokio::net::{UnixListener, UnixStream};

/// What delivers the byte stream to the guest agent.
#[derive(Debug)]
pub enum Channel {
    /// It is open. The VMM keeps what is sent until the guest reads it.
    Open(UnixStream),
    /// The guest agent connects when it is ready.
    Awaited(UnixListener),
}

impl Channel {
    /// Waits until it is open. Of several connections, the first is the agent's: no other program of the guest runs yet.
    ///
    /// # Errors
    /// No connection can be accepted.
    pub async fn open(self) -> io::Result<UnixStream> {
        match self {
            Self::Open(stream) => Ok(stream),
            Self::Awaited(listener) => listener.accept().await.map(|(stream, _)| stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_first_to_connect_is_the_agent_and_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let channel = Channel::Awaited(UnixListener::bind(&path).unwrap());
        let mut agent = UnixStream::connect(&path).await.unwrap();
        let mut stream = channel.open().await.unwrap();
        agent.write_all(b"hello").await.unwrap();
        drop(agent);
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        let error = UnixStream::connect(&path).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
