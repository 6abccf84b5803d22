//! `environment.json`: what is installed, and how to check that it is unchanged.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::{Damage, IoError};
use crate::fsio;
use crate::image::RootfsFormat;
use crate::verified::Verified;

pub(crate) const FILE_NAME: &str = "environment.json";
pub(crate) const KERNEL: &str = "vmlinuz";
pub(crate) const MODULES: &str = "modules.cpio";

/// Maximum size in bytes. A manifest lists a few hundred packages, about 20 KiB.
const LARGEST: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) catalog_version: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) source: String,
    pub(crate) source_digest: String,
    /// Seconds since the epoch.
    pub(crate) installed_at: u64,
    pub(crate) format: RootfsFormat,
    pub(crate) kernel_release: String,
    pub(crate) artifacts: BTreeMap<String, Artifact>,
    pub(crate) packages: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Artifact {
    pub(crate) sha256: String,
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    /// Absent in the manifest of an older release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inode: Option<u64>,
    /// The time of the inode's last change, which no program can set. Absent in the manifest of an older release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ctime_ns: Option<i64>,
}

impl Artifact {
    pub(crate) fn of_file(path: &Path) -> Result<Artifact, IoError> {
        let file = File::open(path).map_err(IoError::at("open", path))?;
        let sha256 = fsio::sha256(&file, path)?;
        let metadata = file.metadata().map_err(IoError::at("inspect", path))?;
        Ok(Artifact {
            sha256,
            size: metadata.len(),
            mtime_ns: mtime_ns(&metadata),
            inode: Some(metadata.ino()),
            ctime_ns: Some(ctime_ns(&metadata)),
        })
    }

    /// Compares size, times and inode, which is cheap enough for every start. If only the inode or its time differ, as in a
    /// copy of the cache, or after a change that was hidden, the content decides, unless `comparisons` has it already.
    /// Returns the file that was compared, open.
    fn check(&self, path: &Path, comparisons: &mut Comparisons<'_>) -> Result<Result<File, Damage>, IoError> {
        let Some(file) = fsio::open_own(path)? else {
            return Ok(Err(Damage::Missing { path: path.to_owned() }));
        };
        let seen = Seen::new(&file, path)?;
        let metadata = &seen.metadata;
        if metadata.len() != self.size {
            let (expected, actual) = (self.size, metadata.len());
            return Ok(Err(Damage::Size { path: path.to_owned(), expected, actual }));
        }
        let is_same = self.inode.is_none_or(|inode| inode == metadata.ino())
            && self.ctime_ns.is_none_or(|time| time == ctime_ns(metadata));
        let is_intact = mtime_ns(metadata) == self.mtime_ns
            && (is_same || comparisons.is_intact(&file, &seen, path, &self.sha256)?);
        if !is_intact {
            return Ok(Err(Damage::Modified { path: path.to_owned() }));
        }
        Ok(Ok(file))
    }
}

/// What a file looked like before its content was read.
struct Seen {
    metadata: Metadata,
    /// Not later than the metadata.
    at: SystemTime,
}

impl Seen {
    fn new(file: &File, path: &Path) -> Result<Self, IoError> {
        let at = SystemTime::now();
        Ok(Self { metadata: file.metadata().map_err(IoError::at("inspect", path))?, at })
    }
}

/// The comparisons of contents with digests, so that each is made once.
struct Comparisons<'a> {
    dir: &'a Path,
    known: Option<Verified>,
    has_more: bool,
}

impl Comparisons<'_> {
    /// Whether an open file has this digest.
    fn is_intact(&mut self, file: &File, seen: &Seen, path: &Path, sha256: &str) -> Result<bool, IoError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let known = self.known.get_or_insert_with(|| Verified::read(self.dir));
        if known.covers(&name, sha256, &seen.metadata) {
            return Ok(true);
        }
        if fsio::sha256(file, path)? != sha256 {
            return Ok(false);
        }
        self.has_more |= known.add(&name, sha256, &seen.metadata, seen.at);
        Ok(true)
    }
}

pub(crate) fn mtime_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

pub(crate) fn ctime_ns(metadata: &Metadata) -> i64 {
    metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec())
}

/// The contents of a directory.
#[derive(Debug)]
pub(crate) enum Found {
    /// There is no manifest, so no installation was ever completed here.
    Nothing,
    Damaged(Damage),
    Installed(Box<Installed>),
}

/// An environment whose files are unchanged since it was installed.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) manifest: Manifest,
    pub(crate) files: OpenFiles,
    /// What was compared now and need not be compared again, with what is known already. `None`: nothing new.
    pub(crate) verified: Option<Verified>,
}

/// The artifacts of an environment, open since they were checked.
#[derive(Clone, Debug)]
pub struct OpenFiles {
    /// The guest kernel.
    pub kernel: Arc<File>,
    /// The kernel's modules.
    pub modules: Arc<File>,
    /// The base image.
    pub rootfs: Arc<File>,
}

/// Why bytes are not a manifest.
#[derive(Debug, Error)]
pub(crate) enum DecodeError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("it does not list {file}")]
    NotListed { file: &'static str },
}

/// A line of the package list does not have the form `name version`.
#[derive(Debug, Error)]
#[error("invalid line in the package list: '{line}'; expected a package and its version")]
pub(crate) struct InvalidPackage {
    line: String,
}

impl Manifest {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, DecodeError> {
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        for file in [KERNEL, MODULES, manifest.format.file_name()] {
            if !manifest.artifacts.contains_key(file) {
                return Err(DecodeError::NotListed { file });
            }
        }
        Ok(manifest)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("strings and numbers always encode");
        bytes.push(b'\n');
        bytes
    }

    /// Reads and verifies the contents of `dir`. Errors are only those that say nothing about the contents.
    pub(crate) fn find(dir: &Path, name: &str, version: &str) -> Result<Found, IoError> {
        let path = dir.join(FILE_NAME);
        let damaged = |reason: String| Ok(Found::Damaged(Damage::Manifest { path: path.clone(), reason }));
        let bytes = match fsio::read_bounded(&path, LARGEST) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Found::Nothing),
            Err(error) => match error.source.kind() {
                ErrorKind::FileTooLarge | ErrorKind::IsADirectory => {
                    return damaged(error.source.to_string());
                }
                ErrorKind::NotADirectory => return Ok(Found::Nothing),
                _ => return Err(error),
            },
        };
        let manifest = match Manifest::decode(&bytes) {
            Ok(manifest) => manifest,
            Err(error) => return damaged(error.to_string()),
        };
        if (manifest.name.as_str(), manifest.version.as_str()) != (name, version) {
            return damaged(format!("it describes {} {}", manifest.name, manifest.version));
        }
        // Check only the files that pyro uses: a manifest must not make it look anywhere else.
        let mut comparisons = Comparisons { dir, known: None, has_more: false };
        let mut files = Vec::with_capacity(3);
        for file in [KERNEL, MODULES, manifest.format.file_name()] {
            let Some(artifact) = manifest.artifacts.get(file) else { continue };
            match artifact.check(&dir.join(file), &mut comparisons)? {
                Ok(file) => files.push(Arc::new(file)),
                Err(damage) => return Ok(Found::Damaged(damage)),
            }
        }
        match <[_; 3]>::try_from(files) {
            Ok([kernel, modules, rootfs]) => {
                let files = OpenFiles { kernel, modules, rootfs };
                let verified = comparisons.known.filter(|_| comparisons.has_more);
                Ok(Found::Installed(Box::new(Installed { manifest, files, verified })))
            }
            Err(_) => damaged("it does not list all files".to_owned()),
        }
    }

    /// Returns the SHA-256 over the sorted `file sha256` lines: two installs with equal digests hold equal bytes.
    pub(crate) fn digest(&self) -> String {
        fsio::sha256_lines(
            self.artifacts.iter().map(|(file, artifact)| format!("{file} {}", artifact.sha256)),
        )
    }
}

/// Returns the SHA-256 over the sorted `name=version` lines.
pub(crate) fn packages_digest(packages: &BTreeMap<String, String>) -> String {
    fsio::sha256_lines(packages.iter().map(|(name, version)| format!("{name}={version}")))
}

/// Parses the `name version` lines that the build writes.
pub(crate) fn parse_packages(text: &str) -> Result<BTreeMap<String, String>, InvalidPackage> {
    text.lines()
        .map(|line| match line.split_once(' ') {
            Some((name, version)) if !name.is_empty() && !version.trim().is_empty() => {
                Ok((name.to_owned(), version.trim().to_owned()))
            }
            _ => Err(InvalidPackage { line: line.to_owned() }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Manifest {
        let artifact =
            Artifact { sha256: "00".repeat(32), size: 3, mtime_ns: 5, inode: None, ctime_ns: None };
        let files = [KERNEL, MODULES, RootfsFormat::Erofs.file_name()];
        Manifest {
            catalog_version: "2.1.0".into(),
            name: "debian:12".into(),
            version: "1.0.0".into(),
            source: "debian:bookworm".into(),
            source_digest: "11".repeat(32),
            installed_at: 7,
            format: RootfsFormat::Erofs,
            kernel_release: "6.1.0-1-cloud-amd64".into(),
            artifacts: files.into_iter().map(|file| (file.to_owned(), artifact.clone())).collect(),
            packages: [("bash".to_owned(), "5".to_owned())].into(),
        }
    }

    #[test]
    fn the_manifest_keeps_its_form() {
        insta::assert_snapshot!(String::from_utf8(sample().encode()).expect("text"), @r#"
        {
          "catalog_version": "2.1.0",
          "name": "debian:12",
          "version": "1.0.0",
          "source": "debian:bookworm",
          "source_digest": "1111111111111111111111111111111111111111111111111111111111111111",
          "installed_at": 7,
          "format": "erofs",
          "kernel_release": "6.1.0-1-cloud-amd64",
          "artifacts": {
            "modules.cpio": {
              "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
              "size": 3,
              "mtime_ns": 5
            },
            "rootfs.erofs": {
              "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
              "size": 3,
              "mtime_ns": 5
            },
            "vmlinuz": {
              "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
              "size": 3,
              "mtime_ns": 5
            }
          },
          "packages": {
            "bash": "5"
          }
        }
        "#);
        assert_eq!(Manifest::decode(&sample().encode()).expect("decodes"), sample());
    }

    #[test]
    fn a_manifest_without_an_artifact_is_none() {
        let mut manifest = sample();
        manifest.artifacts.remove(KERNEL);
        assert!(Manifest::decode(&manifest.encode()).is_err());
    }

    #[test]
    fn the_digest_follows_contents_and_nothing_else() {
        let mut other = sample();
        other.installed_at = 8;
        if let Some(artifact) = other.artifacts.get_mut(KERNEL) {
            artifact.mtime_ns = 6;
        }
        assert_eq!(other.digest(), sample().digest());
        if let Some(artifact) = other.artifacts.get_mut(KERNEL) {
            artifact.sha256 = "22".repeat(32);
        }
        assert_ne!(other.digest(), sample().digest());
    }

    #[test]
    fn a_file_that_changed_shortly_before_its_content_was_read_is_compared_again() {
        use std::time::{Duration, UNIX_EPOCH};

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rootfs");
        std::fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        let sha256 = fsio::sha256(&file, &path).unwrap();
        let changed =
            Duration::from_nanos(ctime_ns(&file.metadata().unwrap()).try_into().expect("after 1970"));
        // However long reading takes, and whatever the time is by then.
        for (age, is_remembered) in [(0, false), (99, false), (100, true)] {
            let mut comparisons = Comparisons { dir: dir.path(), known: None, has_more: false };
            let at = UNIX_EPOCH + changed + Duration::from_millis(age);
            let seen = Seen { metadata: file.metadata().unwrap(), at };
            assert!(comparisons.is_intact(&file, &seen, &path, &sha256).unwrap());
            assert_eq!(comparisons.has_more, is_remembered, "{age} ms");
        }
    }

    #[test]
    fn package_lines() {
        let packages = parse_packages("bash 5.2\ngit 1:2.39\n").expect("parses");
        assert_eq!(packages["git"], "1:2.39");
        assert!(parse_packages("bash").is_err());
        assert!(parse_packages("bash 5\n\n").is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::decode(&bytes);
        }

        #[test]
        fn a_damaged_manifest_never_panics(at in 0usize..900, byte in any::<u8>()) {
            let mut bytes = sample().encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Manifest::decode(&bytes);
            let _ = Manifest::decode(&bytes[..at]);
        }
    }
}
