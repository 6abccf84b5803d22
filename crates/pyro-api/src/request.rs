//! The parts of requests. The fields of the parts of a request ([`crate::operations`]) together are its parameters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DirectoryMount, Error, ErrorKind, FileEncoding, Hint, Naming, NetworkPolicy, PortMapping, TtlFrom,
};

/// Maximum size of a file that is read or written as a whole, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// An environment by its name.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct EnvironmentName {
    /// Environment name, such as `debian:12`.
    pub environment: String,
}

/// Size, lifetime, and permissions of a VM to create.
///
/// The numbers are as the caller gave them; those outside the limits of the contract are refused with
/// [`ErrorKind::InvalidInput`] before anything else happens.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct VmSpec {
    /// Environment name, such as `debian:12`.
    pub environment: String,
    /// Virtual CPUs, 1 to 8.
    #[serde(default = "default_vcpu_count")]
    pub vcpu_count: i64,
    /// Guest memory in MiB, 256 to 32768.
    #[serde(default = "default_mem_mib")]
    pub mem_mib: i64,
    /// Lifetime in seconds from creation, 60 to 3600. After it, a VM is removed and a task is stopped.
    #[serde(default = "default_ttl_seconds")]
    pub ttl_seconds: i64,
    /// Give the guest outbound network access.
    #[serde(default)]
    pub network: bool,
    /// What a guest with a network may reach. Default: the public internet.
    pub network_policy: Option<NetworkPolicy>,
    /// Certification authorities for the guest to trust: `true` for those that this host trusts, or the absolute path of a
    /// file on it with certificates in PEM. Default: `PYRO_HOST_CA`.
    pub host_ca: Option<HostCa>,
    /// Give a guest with a network the proxy settings of this host, credentials included, and access to these proxies.
    /// Default: `PYRO_HOST_PROXY`.
    pub host_proxy: Option<bool>,
    /// Directories of this host that the guest has mounted, at most 16.
    #[serde(default)]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub mounts: Vec<DirectoryMount>,
    /// Allow commands on the host, without isolation, if VMs cannot run there.
    #[serde(default)]
    pub allow_host_compat: bool,
}

/// Certification authorities of the host that a guest trusts.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(untagged, expecting = "invalid host_ca: expected true, false, or the path of a file")]
pub enum HostCa {
    /// `true`: those that the host trusts. `false`: only those of the guest's image.
    Host(bool),
    /// Those whose certificates are in this file, in PEM.
    Bundle(String),
}

fn default_vcpu_count() -> i64 {
    1
}

fn default_mem_mib() -> i64 {
    1024
}

fn default_ttl_seconds() -> i64 {
    600
}

impl VmSpec {
    /// `environment` with the contract's defaults: 1 vCPU, 1024 MiB, 600 s, no network, no host mode.
    pub fn new(environment: impl Into<String>) -> Self {
        Self {
            environment: environment.into(),
            vcpu_count: default_vcpu_count(),
            mem_mib: default_mem_mib(),
            ttl_seconds: default_ttl_seconds(),
            network: false,
            network_policy: None,
            host_ca: None,
            host_proxy: None,
            mounts: Vec::new(),
            allow_host_compat: false,
        }
    }
}

/// The disk of a task to create.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Disk {
    /// Size of the disk in MiB, 256 to 1048576. Space is allocated as it is used. Default: 8192, or less if the host's
    /// disk is too small.
    pub disk_mib: Option<i64>,
}

impl Disk {
    /// Default size in MiB, if the host's disk can hold it.
    pub const DEFAULT_MIB: i64 = 8192;
}

/// The published ports of a task to create.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Ports {
    /// TCP ports of the guest to publish on this host, at most 32, each as `[HOST_IP:]HOST_PORT:GUEST_PORT`. The address is
    /// 127.0.0.1 by default; host port 0 is one that the system chooses at each start.
    #[serde(default)]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub publish: Vec<PortMapping>,
}

impl From<Vec<PortMapping>> for Ports {
    fn from(publish: Vec<PortMapping>) -> Self {
        Self { publish }
    }
}

/// When the lifetime of a task to create is renewed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Renewal {
    /// `create`: the lifetime begins when the task is created. `use`: it begins again with each use of the task.
    #[serde(default)]
    pub ttl_from: TtlFrom,
}

/// How the time limit of a command relates to the lifetime of its task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Lasting {
    /// The caller extends the lifetime of the task while the command runs. Otherwise a time limit that is beyond what is left of
    /// the lifetime is refused.
    #[serde(default)]
    pub extends_lifetime: bool,
}

/// A port of a task to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct PortToPublish {
    /// The TCP port, as `[HOST_IP:]HOST_PORT:GUEST_PORT`. The address is 127.0.0.1 by default; host port 0 is one that the
    /// system chooses at each start.
    pub mapping: PortMapping,
}

/// A port of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct HostPort {
    /// Number of the port on this host.
    pub host_port: u16,
}

/// A task to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// Its VM. The lifetime can be renewed.
    pub vm: VmSpec,
    /// Size of its disk in MiB, 256 to 1048576. Space is taken as it is used. `None`: 8192, or less if the host's disk
    /// could not hold that.
    pub disk_mib: Option<i64>,
    /// Ports of its guest to publish on this host, at most 32.
    pub publish: Vec<PortMapping>,
    /// Its name and labels.
    pub naming: Naming,
    /// When its lifetime is renewed.
    pub ttl_from: TtlFrom,
}

impl TaskSpec {
    /// `environment` with the contract's defaults, and a disk of the usual size.
    pub fn new(environment: impl Into<String>) -> Self {
        Self {
            vm: VmSpec::new(environment),
            disk_mib: None,
            publish: Vec::new(),
            naming: Naming::default(),
            ttl_from: TtlFrom::default(),
        }
    }
}

/// A VM by its id.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct VmName {
    /// Id of the VM.
    pub vm_id: String,
}

impl From<&str> for VmName {
    fn from(vm_id: &str) -> Self {
        Self { vm_id: vm_id.to_owned() }
    }
}

/// A task by its id, its name, or the first digits of its id.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskName {
    /// Id of the task, its name, or at least the first 3 digits of its id, if no other id begins with them.
    pub task_id: String,
}

impl From<&str> for TaskName {
    fn from(task_id: &str) -> Self {
        Self { task_id: task_id.to_owned() }
    }
}

/// A new lifetime of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Lifetime {
    /// Lifetime in seconds from now, 60 to 3600.
    pub ttl_seconds: i64,
}

/// One command of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Sequence {
    /// Number of the command in the task's journal, from 1.
    pub sequence: u64,
}

/// Part of a journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Entries {
    /// Number of the only command to return. Default: a page of commands.
    pub sequence: Option<u64>,
    /// Without `sequence`: return a page of the commands with larger numbers.
    #[serde(default)]
    pub after: u64,
}

/// A copy out of a task.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct CopyOut {
    /// File or directory in the task; below `/workspace` unless it is absolute.
    pub path: String,
    /// Absolute path on this host. If it is an existing directory, the copy is placed in it under its own name.
    pub target: String,
    /// Keep the modes of the files, without the umask of the server taken from them.
    #[serde(default)]
    pub preserve_mode: bool,
    /// Fail if something was left out of the copy, after the rest is copied.
    #[serde(default)]
    pub strict: bool,
}

/// A copy into a task.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct CopyIn {
    /// Absolute path of a file or directory on this host.
    pub source: String,
    /// Path in the task, below `/workspace` unless it is absolute. If it is an existing directory, the copy is placed in it
    /// under its own name.
    pub path: String,
    /// Fail if something was left out of the copy, after the rest is copied.
    #[serde(default)]
    pub strict: bool,
}

/// Limits of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct CopyLimits {
    /// Maximum number of files, directories and symbolic links together.
    pub max_entries: u64,
    /// Maximum total size of the files, in bytes.
    pub max_bytes: u64,
}

impl Default for CopyLimits {
    /// A million entries and 8 GiB.
    fn default() -> Self {
        Self { max_entries: 1_000_000, max_bytes: 8 << 30 }
    }
}

/// Part of a file of a task.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct FilePart {
    /// File in the task, of at most 16 MiB; below `/workspace` unless it is absolute.
    pub path: String,
    /// Offset of the part, in bytes.
    #[serde(default)]
    pub offset: u64,
    /// Maximum number of bytes to return, 1 to 16777216.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: u64,
}

fn default_max_bytes() -> u64 {
    MAX_FILE_BYTES
}

impl FilePart {
    /// The part, if its size is within the limits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn range(&self) -> Result<FileRange, Error> {
        match (1..=MAX_FILE_BYTES).contains(&self.max_bytes) {
            true => Ok(FileRange { offset: self.offset, max_bytes: self.max_bytes }),
            false => Err(Error::out_of_range("max_bytes", 1, MAX_FILE_BYTES as i64)),
        }
    }
}

/// The part of a file to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Maximum size, in bytes.
    pub max_bytes: u64,
}

/// A file of a task to create or replace.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct NewFile {
    /// Path in the task, below `/workspace` unless it is absolute. Missing parent directories are created.
    pub path: String,
    /// Content of the file, at most 16 MiB.
    pub content: String,
    /// Encoding of `content`.
    #[serde(default = "default_encoding")]
    pub encoding: FileEncoding,
    /// Create the file with mode 0755 instead of 0644.
    #[serde(default)]
    pub executable: bool,
}

fn default_encoding() -> FileEncoding {
    FileEncoding::Utf8
}

/// The bytes of a file as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// The text.
    pub text: String,
    /// Its encoding.
    pub encoding: FileEncoding,
}

impl FileContent {
    /// `bytes` in base64.
    pub fn base64(bytes: &[u8]) -> Self {
        Self { text: BASE64.encode(bytes), encoding: FileEncoding::Base64 }
    }

    /// The bytes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the text is not in its encoding, or there are more than 16 MiB.
    pub fn decode(&self) -> Result<Vec<u8>, Error> {
        let bytes = match self.encoding {
            FileEncoding::Utf8 => self.text.clone().into_bytes(),
            FileEncoding::Base64 => BASE64.decode(&self.text).map_err(|error| {
                Error::new(ErrorKind::InvalidInput, format!("invalid content: expected base64: {error}"))
                    .hint(Hint::GiveText)
            })?,
        };
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let message = format!(
                "content is too large: it has {} bytes, and the maximum is {MAX_FILE_BYTES}",
                bytes.len()
            );
            return Err(Error::new(ErrorKind::InvalidInput, message).hint(Hint::CopyLargeFile));
        }
        Ok(bytes)
    }
}

/// A platform to report on.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Platform {
    /// Platform to report on.
    #[serde(default = "default_platform")]
    pub platform: String,
}

fn default_platform() -> String {
    "linux-x86_64".to_owned()
}

impl Default for Platform {
    fn default() -> Self {
        Self { platform: default_platform() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_that_is_not_base64_is_refused() {
        let content = FileContent { text: "?".to_owned(), encoding: FileEncoding::Base64 };
        assert_eq!(content.decode().unwrap_err().kind, ErrorKind::InvalidInput);
    }
}
