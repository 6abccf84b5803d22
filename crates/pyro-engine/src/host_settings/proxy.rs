//! The proxies that a host's programs use, for its guests.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use pyro_machine::network::{GATEWAY, HostRule};

use crate::{AllowedHost, convert};

/// What the guest does not ask a proxy for: itself. A proxy of the host would take it for the host.
const ITSELF: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// The variable for exceptions, in both cases: programs read one or the other.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Maximum length of a variable, in bytes.
const MAX_BYTES: usize = 8 * 1024;

/// The host's proxy settings as its guests get them.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    /// Variables of commands. They may contain credentials.
    pub(super) variables: BTreeMap<String, String>,
    /// The proxies.
    pub(super) rules: Vec<HostRule>,
}

/// A variable that cannot be given to a guest. Its value is not shown, because it may contain credentials.
#[derive(Debug, thiserror::Error)]
#[error("invalid {0}: expected [SCHEME://][USER:PASSWORD@]HOST[:PORT] with a scheme of HTTP, HTTPS or SOCKS")]
pub(crate) struct UnusableProxy(String);

impl Proxies {
    /// Reads the variables. A proxy on the host's loopback interface is named by the guest's gateway, which leads there. If there
    /// is a proxy, the guest's own loopback interface is among the exceptions.
    pub(super) fn of(variables: &[(String, OsString)]) -> Result<Self, UnusableProxy> {
        let mut proxies = Self::default();
        for (name, value) in variables {
            let unusable = || UnusableProxy(name.clone());
            let value = value.to_str().filter(|value| value.len() <= MAX_BYTES).ok_or_else(unusable)?;
            let value = match name.eq_ignore_ascii_case("no_proxy") {
                true => value.to_owned(),
                false => {
                    let (url, rule) = for_guest(value).ok_or_else(unusable)?;
                    if !proxies.rules.contains(&rule) {
                        proxies.rules.push(rule);
                    }
                    url
                }
            };
            proxies.variables.insert(name.clone(), value);
        }
        if !proxies.rules.is_empty() {
            proxies.except_itself();
        }
        Ok(proxies)
    }

    fn except_itself(&mut self) {
        let values = NO_PROXY.map(|name| self.variables.get(name).cloned());
        let either = values.iter().flatten().next().cloned().unwrap_or_default();
        for (name, value) in NO_PROXY.into_iter().zip(values) {
            self.variables.insert(name.to_owned(), with_itself(&value.unwrap_or_else(|| either.clone())));
        }
    }
}

/// Returns exceptions with those for the guest itself.
fn with_itself(exceptions: &str) -> String {
    let mut all: Vec<_> =
        exceptions.split(',').map(str::trim).filter(|exception| !exception.is_empty()).collect();
    // It means everything only if it is alone.
    if all != ["*"] {
        all.extend(
            ITSELF.into_iter().filter(|name| !exceptions.split(',').any(|known| known.trim() == *name)),
        );
    }
    all.join(",")
}

/// Returns a proxy's URL for the guest, and the rule that opens the proxy.
fn for_guest(url: &str) -> Option<(String, HostRule)> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    let default_port = match scheme.unwrap_or("http").to_ascii_lowercase().as_str() {
        "http" => 80,
        "https" => 443,
        "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => 1080,
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let host: AllowedHost = host.parse().ok()?;
    let port = host.port().unwrap_or(default_port);
    let address = match host.name() {
        Some(name) if name == "localhost" || name.ends_with(".localhost") => {
            Some(IpAddr::V4(Ipv4Addr::LOCALHOST))
        }
        Some(_) => None,
        None => host.address(),
    };
    let rule = match address {
        Some(address) => HostRule { host: address.into(), port: Some(port) },
        None => convert::host_rule(&host, Some(port)).ok()?,
    };
    let place = match (address, host.name()) {
        (Some(address), _) if address.is_loopback() => SocketAddr::new(GATEWAY.into(), port).to_string(),
        (_, Some(name)) => format!("{name}:{port}"),
        (Some(address), None) => SocketAddr::new(address, port).to_string(),
        (None, None) => return None,
    };
    let scheme = scheme.map(|scheme| format!("{scheme}://")).unwrap_or_default();
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    Some((format!("{scheme}{user}{place}{path}"), rule))
}

#[cfg(test)]
mod tests {
    use pyro_machine::network::Host;

    use super::*;

    /// The URL for the guest, and the host and port that are opened.
    fn one(value: &str) -> (String, (String, Option<u16>)) {
        let proxies = Proxies::of(&[("HTTPS_PROXY".to_owned(), value.into())]).unwrap();
        let [HostRule { host, port }] = &proxies.rules[..] else { panic!("{proxies:?}") };
        let host = match host {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => address.to_string(),
        };
        (proxies.variables["HTTPS_PROXY"].clone(), (host, *port))
    }

    #[test]
    fn a_proxy_is_opened_on_its_port_alone() {
        let cases = [
            ("http://proxy.test:3128", "http://proxy.test:3128", ("proxy.test", 3128)),
            ("http://proxy.test/", "http://proxy.test:80/", ("proxy.test", 80)),
            ("https://proxy.test", "https://proxy.test:443", ("proxy.test", 443)),
            ("socks5h://192.0.2.9", "socks5h://192.0.2.9:1080", ("192.0.2.9", 1080)),
            ("proxy.test:8080", "proxy.test:8080", ("proxy.test", 8080)),
            ("http://u%40x:p@ss@[2001:db8::1]:81", "http://u%40x:p@ss@[2001:db8::1]:81", ("2001:db8::1", 81)),
        ];
        for (value, url, (host, port)) in cases {
            assert_eq!(one(value), (url.to_owned(), (host.to_owned(), Some(port))), "{value}");
        }
    }

    #[test]
    fn a_proxy_on_the_loopback_interface_is_behind_the_gateway() {
        for (value, url, (host, port)) in [
            ("http://127.0.0.1:3128", "http://10.0.2.2:3128", ("127.0.0.1", 3128)),
            ("http://user:word@localhost:3128/x", "http://user:word@10.0.2.2:3128/x", ("127.0.0.1", 3128)),
            ("http://127.0.0.53:3128", "http://10.0.2.2:3128", ("127.0.0.53", 3128)),
            ("http://[::1]:3128", "http://10.0.2.2:3128", ("::1", 3128)),
        ] {
            assert_eq!(one(value), (url.to_owned(), (host.to_owned(), Some(port))), "{value}");
        }
    }

    /// The variables for the guest.
    fn given(variables: &[(&str, &str)]) -> Proxies {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        Proxies::of(&variables).unwrap()
    }

    #[test]
    fn both_cases_and_exceptions_are_kept() {
        let proxies = given(&[
            ("http_proxy", "http://proxy.test:3128"),
            ("HTTPS_PROXY", "http://proxy.test:3128"),
            ("no_proxy", "localhost, .example.test"),
        ]);
        assert_eq!(proxies.rules.len(), 1);
        let exceptions = "localhost,.example.test,127.0.0.1,::1";
        let expected = [
            ("HTTPS_PROXY", "http://proxy.test:3128"),
            ("NO_PROXY", exceptions),
            ("http_proxy", "http://proxy.test:3128"),
            ("no_proxy", exceptions),
        ];
        assert!(
            proxies.variables.iter().map(|(name, value)| (&**name, &**value)).eq(expected),
            "{proxies:?}"
        );
    }

    #[test]
    fn the_guest_does_not_ask_a_proxy_for_itself() {
        let proxy = ("HTTPS_PROXY", "http://proxy.test:3128");
        for (own, upper, lower) in [
            (&[][..], "localhost,127.0.0.1,::1", "localhost,127.0.0.1,::1"),
            (&[("NO_PROXY", "*")], "*", "*"),
            (
                &[("NO_PROXY", "a.test,::1"), ("no_proxy", "")],
                "a.test,::1,localhost,127.0.0.1",
                "localhost,127.0.0.1,::1",
            ),
        ] {
            let variables = given(&[&[proxy], own].concat()).variables;
            assert_eq!((&*variables["NO_PROXY"], &*variables["no_proxy"]), (upper, lower));
        }
        assert!(given(&[]).variables.is_empty());
    }

    #[test]
    fn the_error_names_the_variable_and_not_its_value() {
        for value in [
            "ftp://user:secret@proxy.test",
            "http://user:secret@",
            "http://user:secret@a b:1",
            "http://user:secret@x:0",
        ] {
            let variables = [("ALL_PROXY".to_owned(), OsString::from(value))];
            let error = Proxies::of(&variables).unwrap_err();
            assert!(error.to_string().starts_with("invalid ALL_PROXY: expected "), "{error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
        let long = "x".repeat(MAX_BYTES + 1);
        assert!(Proxies::of(&[("NO_PROXY".to_owned(), long.into())]).is_err());
    }
}
