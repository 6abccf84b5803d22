//! What happens to a request before the protocol sees it: the path, the token, the session, the body.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use pyro_api::OwnerName;
use rmcp::transport::streamable_http_server::session::SessionManager as _;
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio_util::sync::CancellationToken;

use super::HTTP_PATH;
use super::access::HttpAccess;
use super::connections::Connection;
use super::sessions::{Alive, InUse, Peer, Sessions};
use super::tokens::{Tokens, digest};
use crate::Server;
use crate::identity::ClientName;

/// Maximum size of the body of a request, in bytes.
const BODY_LIMIT: usize = 4 << 20;
/// Time limit for receiving the body of a request.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Time after which an idle session ends. No VM lives longer than an hour, so no call is silent for longer.
const SESSION_TIME: Duration = Duration::from_secs(4000);
/// Header with the id of a session.
const SESSION_ID: &str = "mcp-session-id";

pub(super) type ResponseBody = BoxBody<Bytes, Infallible>;
type Protocol = StreamableHttpService<Server, LocalSessionManager>;

/// State shared by all connections.
pub(super) struct Endpoint {
    protocol: Protocol,
    manager: Arc<LocalSessionManager>,
    sessions: Arc<Sessions>,
    tokens: Option<Tokens>,
}

/// Where a request comes from.
pub(super) struct Origin<'a> {
    pub(super) address: IpAddr,
    pub(super) connection: &'a Connection,
}

impl Endpoint {
    pub(super) fn new(server: Server, access: HttpAccess) -> Self {
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
        let mut manager = LocalSessionManager::default();
        manager.session_config = SessionConfig::default();
        manager.session_config.keep_alive = Some(SESSION_TIME);
        let manager = Arc::new(manager);
        let protocol = StreamableHttpService::new(move || Ok(server.clone()), Arc::clone(&manager), config);
        Self { protocol, manager, sessions: Arc::default(), tokens: access.tokens }
    }

    /// Cancelled to close the connections that clients keep open to listen on.
    pub(super) fn listening(&self) -> &CancellationToken {
        &self.protocol.config.cancellation_token
    }

    pub(super) async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        origin: Origin<'_>,
    ) -> Response<ResponseBody> {
        if request.uri().path() != HTTP_PATH {
            return refusal(StatusCode::NOT_FOUND, &format!("not found: the MCP endpoint is {HTTP_PATH}"));
        }
        let peer = match &self.tokens {
            None => Peer::Address(origin.address),
            Some(tokens) => match bearer(request.headers()).and_then(|given| tokens.owner(given)) {
                Some(owner) => Peer::Token(owner.clone()),
                None => {
                    let mut response = refusal(StatusCode::UNAUTHORIZED, "a valid token is required");
                    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                    return response;
                }
            },
        };
        let session = request.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let in_use = match &session {
            None => None,
            Some(id) => match self.sessions.enter(id, &peer) {
                Some(in_use) => Some(in_use),
                None => return refusal(StatusCode::NOT_FOUND, "session not found"),
            },
        };
        let (mut parts, body) = request.into_parts();
        let body = match tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_LIMIT).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                return refusal(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large");
            }
            Ok(Err(_)) => return refusal(StatusCode::BAD_REQUEST, "the request is incomplete"),
            Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "timed out waiting for the request"),
        };
        if !origin.connection.assign(&peer) {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many connections with this token");
        }
        if let Some(name) = name(&peer, session.as_deref()) {
            parts.extensions.insert(ClientName(name));
        }
        let begins_session = begins_session(&body);
        let ends_session = parts.method == Method::DELETE;
        let request = Request::from_parts(parts, Full::new(body));
        let endpoint = Arc::clone(self);
        let respond = async move {
            let response = endpoint.protocol.handle(request).await;
            endpoint.end_excess(&response, peer).await;
            response
        };
        let mut response = match begins_session {
            false => respond.await,
            // In a task of its own, because a client that disconnects meanwhile must not leave a session that is not counted.
            true => match tokio::spawn(respond).await {
                Ok(response) => response,
                Err(error) => {
                    tracing::error!(%error, "cannot begin a session");
                    return refusal(StatusCode::INTERNAL_SERVER_ERROR, "cannot begin a session");
                }
            },
        };
        if ends_session && response.status() == StatusCode::ACCEPTED {
            // The session has ended, not only begun to.
            *response.status_mut() = StatusCode::NO_CONTENT;
        }
        response.map(|body| Watched { body, _in_use: in_use }.boxed())
    }

    /// Counts the session that has just begun, if one has, and ends those that are too many.
    async fn end_excess(&self, response: &Response<ResponseBody>, peer: Peer) {
        let Some(id) = response.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()) else { return };
        let as_of = Instant::now();
        let ids = self.manager.sessions.read().await.keys().map(ToString::to_string).collect();
        let alive = Alive { as_of, ids };
        for ended in self.sessions.add(id, peer, &alive) {
            tracing::info!("a session was ended because there were too many");
            // It may have ended by itself.
            let _ = self.manager.close_session(&ended.into()).await;
        }
    }
}

/// Whether the request is one that begins a session.
fn begins_session(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Call<'a> {
        #[serde(borrow)]
        method: Cow<'a, str>,
    }
    serde_json::from_slice(body).is_ok_and(|call: Call<'_>| call.method == "initialize")
}

/// The name under which a client owns what it creates. Without tokens, each session has a name of its own; its id is
/// a secret, so its digest names it.
fn name(peer: &Peer, session: Option<&str>) -> Option<OwnerName> {
    match (peer, session) {
        (Peer::Token(owner), _) => Some(owner.clone()),
        (Peer::Address(_), Some(session)) => format!("session:{}", digest(session)).parse().ok(),
        (Peer::Address(_), None) => None,
    }
}

/// The token that a request carries.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_first_chunk::<7>()?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

fn refusal(status: StatusCode, sentence: &str) -> Response<ResponseBody> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{sentence}\n"))).boxed());
    *response.status_mut() = status;
    response
}

/// The body of a response. Its session is in use until it ends.
struct Watched {
    body: ResponseBody,
    _in_use: Option<InUse>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::begins_session;

    #[test]
    fn the_handshake_of_older_clients_begins_a_session() {
        assert!(begins_session(br#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#));
        assert!(begins_session(br#"{"method":"\u0069nitialize"}"#));
        for other in [r#"{"method":"tools/list"}"#, r#"{"method":1}"#, "[]", ""] {
            assert!(!begins_session(other.as_bytes()), "{other}");
        }
    }
}
