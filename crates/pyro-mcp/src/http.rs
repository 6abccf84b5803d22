//! Streamable HTTP: who may connect, how much they may send, and how it ends.

mod access;
mod connections;
mod endpoint;
mod sessions;
mod tokens;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use self::connections::{Connection, Connections};
use self::endpoint::{Endpoint, Origin};
use crate::Server;

pub use self::access::{AccessError, HttpAccess};
pub use self::tokens::{Tokens, TokensError};

/// Where the server answers.
pub const HTTP_PATH: &str = "/mcp";

/// Maximum size of the head of a request, in bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// Time limit for receiving the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Maximum number of connections at once. For another one, the oldest closes on which no request was accepted yet;
/// without such a connection, it waits.
const CONNECTIONS: usize = 512;
/// Time limit for sending the last responses.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// Time limit for connections to close after that.
const GOODBYE_TIME: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, for example because descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// Serves clients until `stop` is done. Then calls in flight are cancelled, their VMs are removed, and their responses
    /// are sent before this returns; tasks stay. `ready` is called with the address once clients can connect.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn serve_http(
        self,
        access: HttpAccess,
        ready: impl FnOnce(SocketAddr),
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let listener = TcpListener::bind(access.address).await?;
        ready(listener.local_addr()?);
        self.begin();
        let endpoint = Arc::new(Endpoint::new(self.clone(), access));
        let graceful = GracefulShutdown::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let known = Connections::default();
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        if slots.available_permits() == 0 {
                            known.close_oldest_stranger();
                        }
                        // The semaphore is never closed.
                        let permit = Arc::clone(&slots).acquire_owned().await.ok();
                        let connection = known.add();
                        let served = serve(stream, from, Arc::clone(&endpoint), Arc::clone(&connection));
                        let served = graceful.watch(served);
                        tokio::spawn(async move {
                            tokio::select! {
                                // Clients may disconnect at any time.
                                _ = served => {}
                                () = connection.closed() => {}
                            }
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = stop => {}
        }
        drop(listener);
        self.end_calls().await;
        // Responses are sent first; connections that clients keep open to listen on have to be closed.
        let mut gone = pin!(graceful.shutdown());
        if tokio::time::timeout(ANSWER_TIME, &mut gone).await.is_err() {
            endpoint.listening().cancel();
            let _ = tokio::time::timeout(GOODBYE_TIME, gone).await;
        }
        Ok(())
    }
}

/// Serves one connection.
fn serve(
    stream: TcpStream,
    from: SocketAddr,
    endpoint: Arc<Endpoint>,
    connection: Arc<Connection>,
) -> impl GracefulConnection<Output = hyper::Result<()>> {
    // Responses are small, and clients wait for them.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let (endpoint, connection) = (Arc::clone(&endpoint), Arc::clone(&connection));
        async move {
            let origin = Origin { address: from.ip(), connection: &connection };
            Ok::<_, Infallible>(endpoint.answer(request, origin).await)
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
}
