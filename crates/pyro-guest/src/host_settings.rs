//! What this machine gets of its host's settings: certificates to trust, and variables.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use pyro_wire::{Failure, HostSettings};

use crate::failure::During;

/// Where the certificates are. Not on the disk: the next start may bring others, or none.
pub(crate) const DIR: &str = "/run/pyro";

/// The certificates, in PEM.
const BUNDLE: &str = "host-ca.pem";
/// Settings of APT, which knows no variable for certificates.
const APT_CONFIG: &str = "apt.conf";

/// Variables that name a file with the certificates to trust: those of OpenSSL, Requests, pip, curl, Node.js, Git, and Cargo.
const CA_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];

/// Writes what programs read to `dir`, and returns the variables of commands.
pub(crate) fn apply(dir: &Path, settings: &HostSettings) -> Result<BTreeMap<String, String>, Failure> {
    let mut variables = settings.variables.clone();
    if let Some(certificates) = &settings.ca_bundle {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .during(format!("creating {}", dir.display()))?;
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).during(format!("writing {}", path.display()))?;
            Ok::<_, Failure>(path.display().to_string())
        };
        let bundle = write(BUNDLE, certificates)?;
        let apt = write(APT_CONFIG, &format!("Acquire::https::CaInfo \"{bundle}\";\n"))?;
        variables.extend(CA_VARIABLES.map(|name| (name.to_owned(), bundle.clone())));
        variables.insert("APT_CONFIG".to_owned(), apt);
    }
    Ok(variables)
}

/// Returns the variables of a command: the machine's, and those of the command's caller in their place. Programs read the
/// variables for proxies in either case, so the caller's variable also takes the place of the one in the other case.
pub(crate) fn for_command(
    mut variables: BTreeMap<String, String>,
    own: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let is_proxy = |name: &str| name.to_ascii_lowercase().ends_with("_proxy");
    variables.retain(|name, _| !is_proxy(name) || !own.keys().any(|other| other.eq_ignore_ascii_case(name)));
    variables.extend(own);
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_settings_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("run");
        let settings =
            HostSettings { variables: [("A".to_owned(), "b".to_owned())].into(), ..HostSettings::default() };
        assert_eq!(apply(&dir, &settings).unwrap(), settings.variables);
        assert!(!dir.exists());
    }

    #[test]
    fn a_command_replaces_a_proxy_in_both_cases() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let host = map(&[("APT_CONFIG", "/x"), ("HTTP_PROXY", "http://p"), ("https_proxy", "http://p")]);
        let own = map(&[("HTTPS_PROXY", ""), ("apt_config", "other")]);
        let expected = map(&[
            ("APT_CONFIG", "/x"),
            ("HTTPS_PROXY", ""),
            ("HTTP_PROXY", "http://p"),
            ("apt_config", "other"),
        ]);
        assert_eq!(for_command(host, own), expected);
    }

    #[test]
    fn programs_are_pointed_to_the_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("run");
        for certificates in ["first and long\n", "second\n"] {
            let settings =
                HostSettings { ca_bundle: Some(certificates.to_owned()), ..HostSettings::default() };
            let variables = apply(&dir, &settings).unwrap();
            for name in CA_VARIABLES {
                assert_eq!(fs::read_to_string(&variables[name]).unwrap(), certificates, "{name}");
            }
            let apt = fs::read_to_string(&variables["APT_CONFIG"]).unwrap();
            assert_eq!(apt, format!("Acquire::https::CaInfo \"{}\";\n", variables["SSL_CERT_FILE"]));
        }
    }
}
