//! Streamable HTTP: who may connect, how much they may send, and how it ends.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use rmcp::transport::streamable_http_server::session::{SessionId, SessionManager as _};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::Server;

/// Where the server answers.
pub const HTTP_PATH: &str = "/mcp";
/// Minimum length of a token, in characters.
const MIN_TOKEN_CHARS: usize = 16;

/// Maximum size of the body of a request, in bytes.
const BODY_LIMIT: usize = 4 << 20;
/// Maximum size of the head of a request, in bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// Time limit for receiving the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Maximum number of connections at once; more wait to be accepted.
const CONNECTIONS: usize = 512;
/// Maximum number of clients with a session. Most of them keep a connection open for it.
const SESSIONS: usize = 256;
/// Time after which an idle session ends. No VM lives longer than an hour, so no call is silent for longer.
const SESSION_TIME: Duration = Duration::from_secs(4000);
/// Time limit for sending the last responses.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// Time limit for connections to close after that.
const GOODBYE_TIME: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, for example because descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the server listens, and who may connect.
pub struct HttpAccess {
    address: SocketAddr,
    token: Option<String>,
    hosts: Vec<String>,
}

impl HttpAccess {
    /// `token` is what clients send as `Authorization: Bearer …`; without one, every program that can connect is a client.
    /// `hosts` are names of this host, in addition to those of its loopback and `address` itself. Requests for other names
    /// are rejected, as are those of web pages from other origins, because anyone can register a name for this address.
    ///
    /// # Errors
    /// The token is too short or cannot be sent in a header, a token or a host name is required and missing, or a host name
    /// is invalid.
    pub fn new(address: SocketAddr, token: Option<String>, hosts: Vec<String>) -> Result<Self, AccessError> {
        match &token {
            Some(token)
                if token.len() < MIN_TOKEN_CHARS || !token.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                return Err(AccessError::WeakToken);
            }
            None if !address.ip().is_loopback() => {
                return Err(AccessError::TokenRequired(address));
            }
            _ => {}
        }
        if address.ip().is_unspecified() && hosts.is_empty() {
            return Err(AccessError::NamesRequired(address));
        }
        let is_name = |name: &String| {
            let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            name.parse::<IpAddr>().is_ok() || (!name.is_empty() && name.bytes().all(is_letter))
        };
        if let Some(host) = hosts.iter().find(|host| !is_name(host)) {
            return Err(AccessError::InvalidHost(host.clone()));
        }
        Ok(Self { address, token, hosts })
    }
}

/// Why the settings of [`HttpAccess`] are invalid.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The token is too short, or cannot be sent in a header.
    #[error("invalid token: expected at least {MIN_TOKEN_CHARS} printable ASCII characters without spaces")]
    WeakToken,
    /// Other hosts could connect without a token.
    #[error("a token is required to listen on {0}, which is not a loopback address")]
    TokenRequired(SocketAddr),
    /// The names by which clients connect are unknown.
    #[error("the names by which clients reach {0} are required")]
    NamesRequired(SocketAddr),
    /// A name of this host is malformed.
    #[error("invalid host: expected a name or an address without a port, not `{0}`")]
    InvalidHost(String),
}

type Body = BoxBody<Bytes, Infallible>;
type Protocol = StreamableHttpService<Server, LocalSessionManager>;

/// State shared by all connections.
struct Door {
    protocol: Protocol,
    sessions: Arc<LocalSessionManager>,
    token: Option<String>,
}

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
        let door = Arc::new(Door::new(self.clone(), access));
        let graceful = GracefulShutdown::new();
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let accept = async {
            loop {
                // The semaphore is never closed.
                let permit = Arc::clone(&connections).acquire_owned().await.ok();
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let connection = graceful.watch(connection(stream, Arc::clone(&door)));
                        tokio::spawn(async move {
                            // Clients may disconnect at any time.
                            let _ = connection.await;
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
            door.protocol.config.cancellation_token.cancel();
            let _ = tokio::time::timeout(GOODBYE_TIME, gone).await;
        }
        Ok(())
    }
}

fn connection(stream: TcpStream, door: Arc<Door>) -> impl GracefulConnection<Output = hyper::Result<()>> {
    // Responses are small, and clients wait for them.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let door = Arc::clone(&door);
        async move { Ok::<_, Infallible>(door.answer(request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
}

impl Door {
    fn new(server: Server, access: HttpAccess) -> Self {
        let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        hosts.push(access.address.ip().to_string());
        hosts.extend(access.hosts);
        let origins = hosts.iter().flat_map(|host| {
            let host = if host.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6()) {
                format!("[{host}]")
            } else {
                host.clone()
            };
            [format!("http://{host}:*"), format!("https://{host}:*")]
        });
        let config = StreamableHttpServerConfig::default()
            .with_allowed_origins(origins)
            .with_allowed_hosts(hosts)
            .with_max_request_body_bytes(BODY_LIMIT);
        let mut sessions = LocalSessionManager::default();
        sessions.session_config = SessionConfig::default();
        sessions.session_config.keep_alive = Some(SESSION_TIME);
        let sessions = Arc::new(sessions);
        let protocol = StreamableHttpService::new(move || Ok(server.clone()), Arc::clone(&sessions), config);
        Self { protocol, sessions, token: access.token }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != HTTP_PATH {
            return refusal(StatusCode::NOT_FOUND, &format!("not found: the MCP endpoint is {HTTP_PATH}"));
        }
        if !self.admits(&request) {
            let mut response = refusal(StatusCode::UNAUTHORIZED, "a valid token is required");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        let response = self.protocol.handle(request).await;
        match self.one_too_many(&response).await {
            Some(id) => {
                // The session may have ended already.
                let _ = self.sessions.close_session(&id).await;
                refusal(StatusCode::SERVICE_UNAVAILABLE, "too many clients")
            }
            None => response,
        }
    }

    /// The session that has just begun, if there are too many sessions.
    async fn one_too_many(&self, response: &Response<Body>) -> Option<SessionId> {
        let id = response.headers().get("mcp-session-id")?.to_str().ok()?;
        let is_full = self.sessions.sessions.read().await.len() > SESSIONS;
        is_full.then(|| id.into())
    }

    /// Checks the token, if there is one, in constant time.
    fn admits(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return true };
        let given = request.headers().get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let given = match given.split_first_chunk::<7>() {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => given,
            _ => return false,
        };
        given.ct_eq(token.as_bytes()).into()
    }
}

fn refusal(status: StatusCode, sentence: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{sentence}\n"))).boxed());
    *response.status_mut() = status;
    response
}
