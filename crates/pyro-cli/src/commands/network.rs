//! The network of guests, as arguments of several commands.

use clap::{Args, ValueEnum};
use pyro_engine::{AllowedCidr, AllowedDomain, AllowedHost, Egress, NetworkDenial, NetworkPolicy};

/// Heading of the options that say what a guest reaches.
const HEADING: &str = "Network";

/// The network of one guest.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Give the guest outbound access to the public internet; the next options open more or less [default: off]
    #[arg(long, help_heading = HEADING)]
    pub(crate) network: bool,
    /// What the guest reaches that no other option names [default: public]
    #[arg(long, value_enum, value_name = "EGRESS", requires = "network", help_heading = HEADING)]
    egress: Option<EgressArg>,
    /// Open an address range, which may be private, such as 10.1.0.0/16; may be repeated
    #[arg(long, value_name = "CIDR", requires = "network", help_heading = HEADING)]
    allow_cidr: Vec<AllowedCidr>,
    /// Open a host, which may be private, on one port or on all; may be repeated
    #[arg(long, value_name = "HOST[:PORT]", requires = "network", help_heading = HEADING)]
    allow_host: Vec<AllowedHost>,
    /// With --egress allowlist, open a public NAME, or *.NAME, on ports 80 and 443 or on PORT; @debian, @pypi, @npm and
    /// @crates are the hosts that this host's package managers use; may be repeated
    #[arg(long, value_name = "NAME[:PORT]", requires = "network", help_heading = HEADING)]
    allow_domain: Vec<AllowedDomain>,
}

/// The networks of all guests of a server.
#[derive(Debug, Args)]
pub(crate) struct NetworkLimitArgs {
    /// Give no guest a network [default: off]
    #[arg(long)]
    pub(crate) no_network: bool,
    /// What guests with a network reach that no other option names [default: public]
    #[arg(long, value_enum, value_name = "EGRESS", conflicts_with = "no_network")]
    egress: Option<EgressArg>,
    /// Open an address range to guests, which may be private, such as 10.1.0.0/16; may be repeated
    #[arg(long, value_name = "CIDR", conflicts_with = "no_network")]
    allow_cidr: Vec<AllowedCidr>,
    /// Open a host to guests, which may be private, on one port or on all; may be repeated
    #[arg(long, value_name = "HOST[:PORT]", conflicts_with = "no_network")]
    allow_guest_host: Vec<AllowedHost>,
    /// With --egress allowlist, open a public NAME, or *.NAME, on ports 80 and 443 or on PORT; @debian, @pypi, @npm and
    /// @crates are the hosts that this host's package managers use; may be repeated
    #[arg(long, value_name = "NAME[:PORT]", conflicts_with = "no_network")]
    allow_domain: Vec<AllowedDomain>,
}

/// What a guest reaches that no entry of its policy names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EgressArg {
    /// The public internet
    Public,
    /// Nothing
    Allowlist,
}

impl From<EgressArg> for Egress {
    fn from(arg: EgressArg) -> Self {
        match arg {
            EgressArg::Public => Self::Public,
            EgressArg::Allowlist => Self::Allowlist,
        }
    }
}

impl NetworkArgs {
    /// Returns the policy that the options describe; `None` without any.
    pub(crate) fn policy(&self) -> Option<NetworkPolicy> {
        let policy = NetworkPolicy {
            egress: self.egress.map(Egress::from).unwrap_or_default(),
            allow_cidrs: self.allow_cidr.clone(),
            allow_hosts: self.allow_host.clone(),
            allow_domains: self.allow_domain.clone(),
        };
        (policy != NetworkPolicy::default()).then_some(policy)
    }
}

impl NetworkLimitArgs {
    /// A flag limits the networks of clients.
    pub(crate) fn limits_machines(&self) -> bool {
        self.no_network || self.egress.is_some() || self.policy() != NetworkPolicy::default()
    }

    /// Returns the policy that no client may widen.
    pub(crate) fn policy(&self) -> NetworkPolicy {
        NetworkPolicy {
            egress: self.egress.map(Egress::from).unwrap_or_default(),
            allow_cidrs: self.allow_cidr.clone(),
            allow_hosts: self.allow_guest_host.clone(),
            allow_domains: self.allow_domain.clone(),
        }
    }
}

/// Describes something that a guest was refused, in one line.
pub(crate) fn denial(denial: &NetworkDenial) -> String {
    let NetworkDenial { protocol, address, port, name, rule, count, .. } = denial;
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let target = match (name, address) {
        (Some(name), Some(address)) => format!("{name}{port} ({address})"),
        (Some(name), None) => format!("{name}{port}"),
        (None, Some(address)) if address.contains(':') => format!("[{address}]{port}"),
        (None, Some(address)) => format!("{address}{port}"),
        (None, None) => port,
    };
    let times = if *count == 1 { String::new() } else { format!(", {count} times") };
    format!("denied {protocol} {target}: {rule}{times}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_denial() -> NetworkDenial {
        NetworkDenial {
            time: 0.0,
            protocol: "tcp".to_owned(),
            address: Some("169.254.169.254".to_owned()),
            port: Some(80),
            name: None,
            rule: "link_local".to_owned(),
            count: 1,
        }
    }

    #[test]
    fn a_denial_is_one_line() {
        let v6 = NetworkDenial { address: Some("fd00::1".to_owned()), ..a_denial() };
        let named = NetworkDenial { name: Some("db.test".to_owned()), count: 3, ..a_denial() };
        let name = NetworkDenial {
            protocol: "dns".to_owned(),
            address: None,
            port: None,
            name: Some("evil.test".to_owned()),
            rule: "name_not_on_allowlist".to_owned(),
            ..a_denial()
        };
        let lines: Vec<String> = [a_denial(), v6, named, name].iter().map(denial).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        denied tcp 169.254.169.254:80: link_local
        denied tcp [fd00::1]:80: link_local
        denied tcp db.test:80 (169.254.169.254): link_local, 3 times
        denied dns evil.test: name_not_on_allowlist
        ");
    }
}
