//! The certificates of the certification authorities that a host trusts.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::host_file::{self, UnusableFile};

/// Maximum size of a file with certificates, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Maximum size of the certificates alone, in PEM and in bytes. Those that common distributions trust have a quarter of that.
const MAX_BUNDLE_BYTES: usize = 768 << 10;
/// Length of a line in PEM (RFC 7468 §2).
const LINE: usize = 64;

/// The word for [`CaSource::Host`] in the registry.
const HOST: &str = "host";

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CaSource {
    /// In the file that programs of this host use.
    Host,
    /// In this file.
    Bundle(PathBuf),
}

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusableBundle {
    #[error(
        "cannot find the certificates that this host trusts: set SSL_CERT_FILE, or give their file with --host-ca=PATH (SDK: host_ca=PATH)"
    )]
    NotFound,
    #[error("cannot read the certificates in {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("invalid certificates in {}: expected a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("invalid certificates in {}: expected at most {MAX_FILE_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("invalid certificates in {}: expected PEM: {cause}", path.display())]
    Pem { path: PathBuf, cause: rustls_pki_types::pem::Error },
    #[error("invalid certificates in {}: expected at least one in PEM", .0.display())]
    Empty(PathBuf),
    #[error(
        "invalid certificates in {}: expected at most {MAX_BUNDLE_BYTES} bytes of certificates, got {bytes}", path.display()
    )]
    TooMany { path: PathBuf, bytes: usize },
}

impl CaSource {
    /// Returns the certificates in PEM. Whatever else is in the file, such as private keys and comments, is left out. Blocks.
    pub(super) fn read(&self, of_host: Option<&Path>) -> Result<String, UnusableBundle> {
        let path = match self {
            Self::Bundle(path) => path.clone(),
            Self::Host => match of_host {
                Some(path) => path.to_owned(),
                None => openssl_probe::probe().cert_file.ok_or(UnusableBundle::NotFound)?,
            },
        };
        let content = content(&path)?;
        let mut bundle = String::new();
        for certificate in CertificateDer::pem_slice_iter(&content) {
            let certificate =
                certificate.map_err(|cause| UnusableBundle::Pem { path: path.clone(), cause })?;
            push_pem(&mut bundle, &certificate);
        }
        match bundle.len() {
            0 => Err(UnusableBundle::Empty(path)),
            bytes if bytes > MAX_BUNDLE_BYTES => Err(UnusableBundle::TooMany { path, bytes }),
            _ => Ok(bundle),
        }
    }
}

fn content(path: &Path) -> Result<Vec<u8>, UnusableBundle> {
    host_file::read(path, MAX_FILE_BYTES).map_err(|error| match error {
        UnusableFile::Read(cause) => UnusableBundle::Read { path: path.to_owned(), cause },
        UnusableFile::NotAFile => UnusableBundle::NotAFile(path.to_owned()),
        UnusableFile::TooLarge(_) => UnusableBundle::TooLarge(path.to_owned()),
    })
}

fn push_pem(bundle: &mut String, certificate: &[u8]) {
    bundle.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut text = BASE64.encode(certificate);
    while !text.is_empty() {
        let rest = text.split_off(text.len().min(LINE));
        bundle.push_str(&text);
        bundle.push('\n');
        text = rest;
    }
    bundle.push_str("-----END CERTIFICATE-----\n");
}

impl fmt::Display for CaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str(HOST),
            Self::Bundle(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for CaSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            HOST => Self::Host,
            path => Self::Bundle(path.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Not a certificate, but bytes in the form of one.
    fn pem(label: &str, bytes: &[u8]) -> String {
        let mut text = String::new();
        push_pem(&mut text, bytes);
        text.replace("CERTIFICATE", label)
    }

    fn read(content: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle");
        fs::write(&path, content).unwrap();
        let read = CaSource::Bundle(path.clone()).read(None);
        read.map_err(|error| error.to_string().replace(path.to_str().unwrap(), "BUNDLE"))
    }

    #[test]
    fn only_certificates_are_kept() {
        let (first, second) = (pem("CERTIFICATE", &[1; 700]), pem("CERTIFICATE", &[2; 48]));
        let file = format!(
            "# a comment\n{first}{}junk \u{1b}[31m\n{}{second}trailing",
            pem("PRIVATE KEY", b"secret"),
            pem("RSA PRIVATE KEY", b"secret"),
        );
        let bundle = read(file.as_bytes()).unwrap();
        assert_eq!(bundle, first + &second);
        assert!(bundle.lines().all(|line| line.len() <= LINE));
    }

    #[test]
    fn what_has_no_certificates_is_refused() {
        let empty = "invalid certificates in BUNDLE: expected at least one in PEM";
        assert_eq!(read(b"").unwrap_err(), empty);
        assert_eq!(read(b"\0\xff junk\n").unwrap_err(), empty);
        assert_eq!(read(pem("PRIVATE KEY", b"secret").as_bytes()).unwrap_err(), empty);
        let damaged = b"-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n";
        let error = read(damaged).unwrap_err();
        assert!(error.starts_with("invalid certificates in BUNDLE: expected PEM: "), "{error}");
    }

    #[test]
    fn sizes_are_bounded() {
        let large = vec![b'#'; MAX_FILE_BYTES as usize + 1];
        assert_eq!(
            read(&large).unwrap_err(),
            "invalid certificates in BUNDLE: expected at most 4194304 bytes"
        );
        let many = pem("CERTIFICATE", &[7; 3000]).repeat(200);
        let error = read(many.as_bytes()).unwrap_err();
        assert!(error.contains("expected at most 786432 bytes of certificates, got "), "{error}");
    }

    #[test]
    fn a_file_that_is_missing_or_not_regular_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| CaSource::Bundle(path.to_owned()).read(None).unwrap_err().to_string();
        let missing = dir.path().join("missing");
        assert_eq!(
            error(&missing),
            format!(
                "cannot read the certificates in {}: No such file or directory (os error 2)",
                missing.display()
            )
        );
        assert!(error(dir.path()).ends_with("expected a regular file"));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        assert!(error(&pipe).ends_with("expected a regular file"));
    }

    #[test]
    fn the_file_of_the_host_is_the_one_that_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle");
        fs::write(&path, pem("CERTIFICATE", b"one")).unwrap();
        assert_eq!(CaSource::Host.read(Some(&path)).unwrap(), pem("CERTIFICATE", b"one"));
        assert!(CaSource::Host.read(Some(&dir.path().join("missing"))).is_err());
    }

    #[test]
    fn the_source_is_stored_as_a_word() {
        for source in [CaSource::Host, CaSource::Bundle("/etc/ca.pem".into())] {
            assert_eq!(source.to_string().parse::<CaSource>().unwrap(), source);
        }
    }
}
