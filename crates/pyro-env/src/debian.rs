//! The root file system tree, built from Debian's signed archive with mmdebstrap.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::catalog::CatalogEntry;
use crate::child;
use crate::error::PullError;
use crate::process::Tools;

/// Script that runs as the tree's root once the packages are installed.
pub(crate) const HOOK: &str = include_str!("settle-tree.sh");

/// Documentation and translations that are of no use in a sandbox; licences stay.
const LEAVE_OUT: [&str; 7] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// A dead network must cause an error within minutes; an unreliable one must not. apt tries every index in turn, so the
/// build also limits the silence of the whole step.
const APT_OPTIONS: [&str; 4] = [
    "Acquire::Retries \"2\"",
    "Acquire::http::Timeout \"20\"",
    "Acquire::https::Timeout \"20\"",
    "Acquire::Languages \"none\"",
];

/// Where to fetch a release from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Archive {
    /// These repositories.
    Mirror { main: String, security: String },
    /// mmdebstrap's default for a Debian release.
    Default,
}

impl Archive {
    /// Chooses the configured mirror, else the archive that the host itself uses, else mmdebstrap's default.
    pub(crate) fn choose(configured: Option<&str>, suite: &str, tools: &Tools) -> Result<Archive, PullError> {
        match configured {
            Some(mirror) => Self::configured(mirror),
            None => Ok(Self::of_host(suite, tools)),
        }
    }

    /// Mirrors keep security updates next to the main archive, under a name that ends in `-security`.
    fn configured(mirror: &str) -> Result<Archive, PullError> {
        if let Err(reason) = check_uri(mirror) {
            return Err(PullError::InvalidMirror { mirror: without_user(mirror), reason });
        }
        let main = mirror.trim_end_matches('/');
        Ok(Archive::Mirror { main: main.to_owned(), security: format!("{main}-security") })
    }

    fn of_host(suite: &str, tools: &Tools) -> Archive {
        const FORMAT: &str = "$(ORIGIN)|$(CODENAME)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)";
        let output = child::command(&tools.apt_get)
            .args(["indextargets", "--format", FORMAT, "Created-By: Packages"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => {
                Self::from_index_targets(&String::from_utf8_lossy(&output.stdout), suite)
            }
            _ => Archive::Default,
        }
    }

    fn from_index_targets(targets: &str, suite: &str) -> Archive {
        let serves = |codename: &str| {
            targets.lines().find_map(|line| {
                let mut fields = line.splitn(5, '|');
                let (origin, code, release, component, uri) =
                    (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
                // Origin and codename are known only once the host has fetched the archive's index. Taking the wrong
                // repository would cause a failure but no harm: the keyring decides what is accepted as Debian's.
                let is_debian = origin == "Debian" || origin.is_empty();
                let is_suite = code == codename || (code.is_empty() && release == codename);
                (is_debian && is_suite && component == "main" && check_uri(uri).is_ok())
                    .then(|| uri.to_owned())
            })
        };
        match (serves(suite), serves(&format!("{suite}-security"))) {
            (Some(main), Some(security)) => Archive::Mirror { main, security },
            _ => Archive::Default,
        }
    }

    /// Returns the arguments that follow the suite and the target.
    fn arguments(&self, suite: &str, keyring: &Path) -> Vec<OsString> {
        match self {
            Archive::Default => Vec::new(),
            Archive::Mirror { main, security } => {
                let keyring = keyring.display();
                let line =
                    |uri: &str, suite: &str| format!("deb [signed-by={keyring}] {uri} {suite} main").into();
                vec![
                    line(main, suite),
                    line(main, &format!("{suite}-updates")),
                    line(security, &format!("{suite}-security")),
                ]
            }
        }
    }
}

/// Validates the address, which becomes part of a line of apt's configuration and stays in the image.
fn check_uri(uri: &str) -> Result<(), &'static str> {
    let rest = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://"));
    let rest = rest.ok_or("it must start with http:// or https://")?;
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() {
        return Err("it names no host");
    }
    if host.contains('@') {
        return Err("it holds a user name, which would stay in the image");
    }
    if !uri.chars().all(|c| c.is_ascii_alphanumeric() || "-._~:/%+".contains(c)) {
        return Err("it holds characters that an archive address cannot have");
    }
    Ok(())
}

/// Returns the address for messages, without a part that may contain a password.
fn without_user(uri: &str) -> String {
    match (uri.split_once("://"), uri.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => uri.to_owned(),
    }
}

/// Returns the command that builds `entry`'s tree in `work/tree` and leaves the kernel's package in `work/kernel`.
pub(crate) fn bootstrap(entry: &CatalogEntry, archive: &Archive, work: &Path, tools: &Tools) -> Command {
    let mut command = tools.confined(&tools.mmdebstrap);
    // In this mode, mmdebstrap running as root creates a mount namespace and leaves user ids unchanged.
    command.args(["--mode=unshare", "--format=directory", "--variant=minbase", "--architectures=amd64"]);
    command.args(APT_OPTIONS.map(|option| format!("--aptopt={option}")));
    command.args(LEAVE_OUT.map(|option| format!("--dpkgopt={option}")));
    command.arg(format!("--include={}", entry.packages().collect::<Vec<_>>().join(",")));
    if *archive == Archive::Default {
        command.arg(prefixed("--keyring=", &tools.keyring));
    }
    command.arg(prefixed("--customize-hook=", &work.join("settle-tree")));
    command.arg(&entry.suite).arg(work.join("tree")).args(archive.arguments(&entry.suite, &tools.keyring));
    // A crash discards the whole tree, so dpkg need not flush every file.
    command.env("DPKG_FORCE", "unsafe-io");
    command.env("TMPDIR", work.join("tmp"));
    command.env("PYRO_WORK", work).env("PYRO_KERNEL_PACKAGE", &entry.kernel_package);
    command.current_dir(work);
    command
}

fn prefixed(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TARGETS: &str = "\
Other|bookworm|bookworm|main|http://other.example/debian/
Debian|bookworm|bookworm|contrib|http://host.example/contrib/
Debian|bookworm|bookworm|main|http://host.example/debian/
Debian|bookworm-updates|bookworm-updates|main|http://host.example/debian/
||bookworm-security|main|http://host.example/debian-security/
";

    #[test]
    fn the_hosts_own_archive_is_found() {
        assert_eq!(
            Archive::from_index_targets(TARGETS, "bookworm"),
            Archive::Mirror {
                main: "http://host.example/debian/".into(),
                security: "http://host.example/debian-security/".into()
            }
        );
        assert_eq!(Archive::from_index_targets(TARGETS, "trixie"), Archive::Default);
        assert_eq!(Archive::from_index_targets("", "bookworm"), Archive::Default);
    }

    #[test]
    fn a_mirror_brings_its_security_archive() {
        assert_eq!(
            Archive::configured("https://host.example/debian/").expect("valid"),
            Archive::Mirror {
                main: "https://host.example/debian".into(),
                security: "https://host.example/debian-security".into()
            }
        );
    }

    #[test]
    fn unusable_mirrors_are_refused_without_showing_a_password() {
        for bad in ["", "file:/x", "http://", "http:///x", "http://h/a b", "http://h/]x", "http://h/\n"] {
            assert!(Archive::configured(bad).is_err(), "{bad:?}");
        }
        let error = Archive::configured("http://me:secret@h/debian").expect_err("refused");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn an_accepted_mirror_stays_one_word(uri in "https?://.{0,30}") {
            if let Ok(Archive::Mirror { main, security }) = Archive::configured(&uri) {
                prop_assert!(!main.contains(|c: char| c.is_whitespace() || "[]@".contains(c)));
                prop_assert!(security.starts_with(&main));
            }
        }

        #[test]
        fn any_index_listing_is_survived(text in ".{0,200}") {
            let _ = Archive::from_index_targets(&text, "bookworm");
        }
    }
}
