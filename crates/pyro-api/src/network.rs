//! What a guest with a network may reach, and what it was refused.

mod pattern;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use pattern::{AllowedCidr, AllowedDomain, AllowedHost, Domain, InvalidPattern, Preset};

/// Maximum number of entries in each list of a policy.
const MAX_ENTRIES: usize = 64;

/// What a guest with a network may reach. Without it, a guest reaches the public internet and nothing else: no loopback,
/// private, link-local or metadata address, and no address of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(default, deny_unknown_fields)]
pub struct NetworkPolicy {
    /// `public`: the public internet. `allowlist`: only what `allow_cidrs`, `allow_hosts` and `allow_domains` name.
    pub egress: Egress,
    /// Address ranges to open, such as `10.1.0.0/16`. They may be private.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub allow_cidrs: Vec<AllowedCidr>,
    /// Hosts to open, as `NAME`, `NAME:PORT`, `ADDRESS` or `ADDRESS:PORT`. They may be private.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub allow_hosts: Vec<AllowedHost>,
    /// With `allowlist`: public names to open, as `NAME` or `*.NAME`, for HTTP and HTTPS on ports 80 and 443, or with
    /// `:PORT` for that port. `@debian`, `@pypi`, `@npm` and `@crates` stand for the hosts of a package registry in the
    /// settings of this host's package managers.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub allow_domains: Vec<AllowedDomain>,
}

/// What a guest may reach that no entry of its policy names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// The public internet.
    #[default]
    Public,
    /// Nothing.
    Allowlist,
}

/// Why a policy is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A list is too long.
    #[error("invalid {list}: expected at most {MAX_ENTRIES} entries")]
    TooMany {
        /// The key of the list.
        list: &'static str,
    },
    /// Names mean nothing where all public names are open.
    #[error("invalid allow_domains: they need egress `allowlist`")]
    DomainsNeedAllowlist,
    /// It opens something that the wider policy does not.
    #[error("{list} may not name {entry}")]
    NotWithin {
        /// The key of the list.
        list: &'static str,
        /// The entry.
        entry: String,
    },
    /// It opens the internet, and the wider policy only what it names.
    #[error("egress must be `allowlist`")]
    EgressNotWithin,
}

impl NetworkPolicy {
    /// Checks what the types of the entries cannot express.
    ///
    /// # Errors
    /// [`PolicyError::TooMany`], [`PolicyError::DomainsNeedAllowlist`].
    pub fn check(&self) -> Result<(), PolicyError> {
        let lists = [
            ("allow_cidrs", self.allow_cidrs.len()),
            ("allow_hosts", self.allow_hosts.len()),
            ("allow_domains", self.allow_domains.len()),
        ];
        if let Some((list, _)) = lists.into_iter().find(|(_, len)| *len > MAX_ENTRIES) {
            return Err(PolicyError::TooMany { list });
        }
        if self.egress == Egress::Public && !self.allow_domains.is_empty() {
            return Err(PolicyError::DomainsNeedAllowlist);
        }
        Ok(())
    }

    /// Checks that this policy opens nothing that `outer` keeps closed. Each range must be one of `outer`'s: a part of a range
    /// can open more than the whole, because a single address opens even one of this host. Each host and domain must be
    /// covered by a single entry of `outer`.
    ///
    /// # Errors
    /// [`PolicyError::NotWithin`], [`PolicyError::EgressNotWithin`].
    pub fn check_within(&self, outer: &Self) -> Result<(), PolicyError> {
        if self.egress == Egress::Public && outer.egress == Egress::Allowlist {
            return Err(PolicyError::EgressNotWithin);
        }
        let refuse = |list, entry: String| Err(PolicyError::NotWithin { list, entry });
        for cidr in &self.allow_cidrs {
            if !outer.allow_cidrs.contains(cidr) {
                return refuse("allow_cidrs", cidr.to_string());
            }
        }
        for host in &self.allow_hosts {
            if !outer.allow_hosts.iter().any(|wide| wide.covers(host)) {
                return refuse("allow_hosts", host.to_string());
            }
        }
        for domain in &self.allow_domains {
            let is_open =
                outer.egress == Egress::Public || outer.allow_domains.iter().any(|wide| wide.covers(domain));
            if !is_open {
                return refuse("allow_domains", domain.to_string());
            }
        }
        Ok(())
    }
}

/// Something that a guest tried to reach and its policy refused. Repetitions are counted.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct NetworkDenial {
    /// When it was last refused, in seconds since the epoch.
    pub time: f64,
    /// `tcp`, `udp` or `dns`.
    pub protocol: String,
    /// The address; null for a name that was not resolved.
    pub address: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The name, if it is known.
    pub name: Option<String>,
    /// The rule that refused it, such as `loopback` or `not_on_allowlist`.
    pub rule: String,
    /// How often it was refused.
    pub count: u64,
}
