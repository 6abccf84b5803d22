//! Settings: where the server listens, and who may connect.

use std::net::{IpAddr, SocketAddr};

use super::tokens::Tokens;

/// Where the server listens, and who may connect.
pub struct HttpAccess {
    pub(super) address: SocketAddr,
    pub(super) tokens: Option<Tokens>,
    pub(super) hosts: Vec<String>,
}

impl HttpAccess {
    /// A client sends one of `tokens` as `Authorization: Bearer …`; without tokens, every program that can connect is a
    /// client. `hosts` are names of this host, in addition to those of its loopback and `address` itself. Requests for other
    /// names are rejected, as are those of web pages from other origins, because anyone can register a name for this address.
    ///
    /// # Errors
    /// Tokens or a host name are required and missing, or a host name is invalid.
    pub fn new(address: SocketAddr, tokens: Option<Tokens>, hosts: Vec<String>) -> Result<Self, AccessError> {
        if tokens.is_none() && !address.ip().is_loopback() {
            return Err(AccessError::TokenRequired(address));
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
        Ok(Self { address, tokens, hosts })
    }
}

/// Why the settings of [`HttpAccess`] are invalid.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
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
