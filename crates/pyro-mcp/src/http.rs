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
/// Fewest characters of a token.
const MIN_TOKEN_CHARS: usize = 16;

/// Longest body of a request, in bytes.
const BODY_LIMIT: usize = 4 << 20;
/// Longest head of a request, in bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// Time for the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Most connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 512;
/// Most clients of the kind that shakes hands. Each has a session, and most keep a connection open for it.
const SESSIONS: usize = 256;
/// Time after which a session of which nothing is heard ends. No VM lives longer than an hour, so no call takes longer
/// without a word.
const SESSION_TIME: Duration = Duration::from_secs(4000);
/// Time for the last answers.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// Time that connections have for ending after that.
const GOODBYE_TIME: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, which is a lack of resources that may pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the server listens, and who may talk to it there.
pub struct HttpAccess {
    address: SocketAddr,
    token: Option<String>,
    hosts: Vec<String>,
}

impl HttpAccess {
    /// `token` is what clients send as `Authorization: Bearer …`; without one, whoever can connect may talk. `hosts` are
    /// names of this host, beside those of its loopback and `address` itself. Requests for others are refused, as are
    /// those of pages in a browser that come from others: a name that leads here is easily had.
    ///
    /// # Errors
    /// The token is easily guessed or cannot be sent, there is none where others than this host can connect, or there is no
    /// name by which they could.
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

/// What is wrong with the settings of [`HttpAccess`].
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The token is easily guessed, or cannot be sent.
    #[error(
        "the token must have at least {MIN_TOKEN_CHARS} characters, all of them printable ASCII and none a space"
    )]
    WeakToken,
    /// Others than this host could connect without a token.
    #[error("a token is required to listen on {0}, which is not this host's loopback")]
    TokenRequired(SocketAddr),
    /// There is no name by which clients could connect.
    #[error("the names by which clients reach {0} must be given")]
    NamesRequired(SocketAddr),
    /// A name of this host is malformed.
    #[error("`{0}` is no name or address of a host; ports do not belong to it")]
    InvalidHost(String),
}

type Body = BoxBody<Bytes, Infallible>;
type Protocol = StreamableHttpService<Server, LocalSessionManager>;

/// What all connections share.
struct Door {
    protocol: Protocol,
    sessions: Arc<LocalSessionManager>,
    token: Option<String>,
}

impl Server {
    /// Serves clients that connect until `stop` is done. Then calls that are under way are cancelled, what they hold is
    /// freed, and their answers are sent before this returns; tasks stay. `ready` is called with the address once clients
    /// can connect.
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
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let accept = async {
            loop {
                // The semaphore is never closed.
                let place = Arc::clone(&room).acquire_owned().await.ok();
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let connection = graceful.watch(connection(stream, Arc::clone(&door)));
                        tokio::spawn(async move {
                            // A client that goes away is no event.
                            let _ = connection.await;
                            drop(place);
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
        // Answers go out first; what clients keep open to listen at has to be closed.
        let mut gone = pin!(graceful.shutdown());
        if tokio::time::timeout(ANSWER_TIME, &mut gone).await.is_err() {
            door.protocol.config.cancellation_token.cancel();
            let _ = tokio::time::timeout(GOODBYE_TIME, gone).await;
        }
        Ok(())
    }
}

fn connection(stream: TcpStream, door: Arc<Door>) -> impl GracefulConnection<Output = hyper::Result<()>> {
    // Answers are small and are waited for.
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
            return refusal(StatusCode::NOT_FOUND, &format!("there is nothing here but {HTTP_PATH}"));
        }
        if !self.admits(&request) {
            let mut response = refusal(StatusCode::UNAUTHORIZED, "the server's token is required");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        let response = self.protocol.handle(request).await;
        match self.one_too_many(&response).await {
            Some(id) => {
                // That it may be gone already is all the same.
                let _ = self.sessions.close_session(&id).await;
                refusal(StatusCode::SERVICE_UNAVAILABLE, "there are too many clients already")
            }
            None => response,
        }
    }

    /// The session that has just begun, if there are too many of them.
    async fn one_too_many(&self, response: &Response<Body>) -> Option<SessionId> {
        let id = response.headers().get("mcp-session-id")?.to_str().ok()?;
        let is_full = self.sessions.sessions.read().await.len() > SESSIONS;
        is_full.then(|| id.into())
    }

    /// The client knows the token, if there is one. How long that takes says nothing about how much of it is right.
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
