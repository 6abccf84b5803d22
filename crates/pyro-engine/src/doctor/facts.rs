//! Gathers facts about the host. Changes nothing.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pyro_machine::spawn::Spawn;
use pyro_machine::{Layer, Vmm};
use rustix::fs::{Access, access, statvfs};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::{
    BuildReport, ConfinementLayer, ConfinementReport, DiskReport, KvmReport, NetworkingReport, RootlessReport,
};
use crate::guest_kernel::GuestKernelError;
use crate::{Config, guest_kernel, search_path, state_dir};

/// Returns the program to search for if none is configured.
pub(super) fn vmm_name(vmm: Vmm) -> &'static str {
    match vmm {
        Vmm::Qemu => "qemu-system-x86_64",
        Vmm::Firecracker => "firecracker",
    }
}

/// Maximum time for a program to report its version.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Possible locations of the Debian archive keys; Debian's package has changed the path over time.
const KEYRINGS: [&str; 2] =
    ["usr/share/keyrings/debian-archive-keyring.gpg", "usr/share/keyrings/debian-archive-keyring.pgp"];

/// Settings that forbid user namespaces to ordinary users: file below `/proc/sys`, forbidding value, allowing value.
/// The last two exist only on some distributions.
const USER_NAMESPACE_SETTINGS: [(&str, &str, &str); 3] = [
    ("user/max_user_namespaces", "0", "15000"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
];

/// Facts about the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostFacts {
    pub(super) kvm: KvmReport,
    pub(super) networking: NetworkingReport,
    pub(super) vmm: VmmFacts,
    /// Release of the configured guest kernel, or the reason why it cannot be used.
    pub(super) guest_kernel: Option<Result<String, GuestKernelError>>,
    pub(super) build: BuildReport,
    pub(super) rootless: RootlessReport,
    pub(super) confinement: ConfinementReport,
    pub(super) disk: DiskReport,
    /// The setting that forbids user namespaces, as the `sysctl -w` argument that allows them.
    pub(super) user_namespaces_allowed_by: Option<String>,
    /// What is wrong with the state directory.
    pub(super) state_dir_problem: Option<&'static str>,
}

/// Facts about the VMM.
#[derive(Debug, Clone, Default)]
pub(super) struct VmmFacts {
    /// The program, if it exists.
    pub(super) program: Option<PathBuf>,
    /// Its output for `--version`, or why it gave none.
    pub(super) answer: Option<Result<String, VmmProblem>>,
}

/// Why a VMM does not report its version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum VmmProblem {
    /// The program cannot be started.
    #[error("it cannot be started ({0})")]
    NotStarted(String),
    /// Its output cannot be read, or its exit status is lost.
    #[error("{0}")]
    Lost(String),
    /// It takes too long to answer.
    #[error("it gave no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer,
    /// It exits with a failure.
    #[error("`--version` failed ({0})")]
    Failed(std::process::ExitStatus),
}

impl HostFacts {
    /// Inspects the host whose file system is rooted at `root`, which is `/` except in tests.
    pub(crate) async fn gather(config: &Config, root: &Path) -> Self {
        let vmm = look_at_vmm(config).await;
        let rest = {
            let (config, root, program) = (config.clone(), root.to_owned(), vmm.program.clone());
            let look = move || {
                let confinement = program.as_deref().map(look_at_confinement).unwrap_or_default();
                Self { confinement, ..look(&config, &root) }
            };
            // This fails only if it panics; the facts are then those of a host that has nothing.
            tokio::task::spawn_blocking(look).await.unwrap_or_default()
        };
        Self { vmm, ..rest }
    }
}

async fn look_at_vmm(config: &Config) -> VmmFacts {
    let configured = match config.vmm {
        Vmm::Qemu => &config.vmm_program,
        Vmm::Firecracker => &config.firecracker_program,
    };
    let program = match configured {
        Some(program) if search_path::is_bare(program) => None,
        Some(program) => access(program, Access::EXEC_OK).is_ok().then(|| program.clone()),
        None => search_path::find(vmm_name(config.vmm), &config.search_path),
    };
    let answer = match &program {
        Some(program) => Some(ask_version(program, &config.search_path).await),
        None => None,
    };
    VmmFacts { program, answer }
}

/// Returns the first 4 KiB of the output of `program --version`.
async fn ask_version(program: &Path, search_path: &OsStr) -> Result<String, VmmProblem> {
    let mut child = Spawn::new(program)
        .args(["--version"])
        .clear_env()
        .env("PATH", search_path)
        .stdout(Stdio::piped())
        .start()
        .map_err(|error| VmmProblem::NotStarted(error.to_string()))?;
    let mut text = Vec::new();
    let lost = |error: io::Error| VmmProblem::Lost(error.to_string());
    let answer = async {
        if let Some(stdout) = child.stdout.take() {
            stdout.take(4096).read_to_end(&mut text).await.map_err(lost)?;
        }
        child.wait().await.map_err(lost)
    };
    let status = timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| VmmProblem::NoAnswer)??;
    if status.success() {
        Ok(String::from_utf8_lossy(&text).into_owned())
    } else {
        Err(VmmProblem::Failed(status))
    }
}

/// Confines the VMM, and returns what was reached. A VMM that cannot be started is a problem that is reported elsewhere.
fn look_at_confinement(program: &Path) -> ConfinementReport {
    let Ok(found) = pyro_machine::probe_confinement(program) else { return ConfinementReport::default() };
    let layers = found.layers().map(|(name, layer)| {
        let note = match (layer, name, found.landlock_abi) {
            (Layer::Unavailable { reason }, ..) => reason.clone(),
            (Layer::Active, "landlock", Some(abi)) => format!("ABI {abi}"),
            (Layer::Active, ..) => String::new(),
        };
        ConfinementLayer { name: name.to_owned(), active: layer.is_active(), note }
    });
    ConfinementReport { full: found.is_full(), layers: layers.into(), uid: Some(found.uid) }
}

fn look(config: &Config, root: &Path) -> HostFacts {
    let tool =
        |name: &str| search_path::find(name, &config.search_path).map(|path| path.display().to_string());
    let kvm = root.join("dev/kvm");
    let blocked_by = USER_NAMESPACE_SETTINGS
        .into_iter()
        .find(|(file, forbidding, _)| setting(root, file).is_some_and(|value| value == *forbidding));
    HostFacts {
        kvm: KvmReport {
            exists: access(&kvm, Access::EXISTS).is_ok(),
            readable: access(&kvm, Access::READ_OK).is_ok(),
            writable: access(&kvm, Access::WRITE_OK).is_ok(),
        },
        networking: NetworkingReport {
            enabled_by_default: false,
            tun_available: root.join("dev/net/tun").exists(),
            ip_binary: tool("ip"),
            nft_binary: tool("nft"),
            iptables_binary: tool("iptables"),
            ip_forward_enabled: setting(root, "net/ipv4/ip_forward").is_some_and(|value| value == "1"),
        },
        vmm: VmmFacts::default(),
        guest_kernel: config.guest_kernel.as_deref().map(guest_kernel::release),
        build: BuildReport {
            mmdebstrap: tool("mmdebstrap"),
            keyring: KEYRINGS
                .into_iter()
                .map(|file| root.join(file))
                .find(|file| file.is_file())
                .map(|file| file.display().to_string()),
        },
        rootless: RootlessReport {
            euid: rustix::process::geteuid().as_raw(),
            // A kernel without user namespaces does not have the first setting at all.
            user_namespaces: blocked_by.is_none() && setting(root, USER_NAMESPACE_SETTINGS[0].0).is_some(),
            subuid: has_subuid(root, rustix::process::geteuid().as_raw()),
            newuidmap: tool("newuidmap").is_some(),
        },
        confinement: ConfinementReport::default(),
        disk: DiskReport {
            state_dir_free_mib: free_mib(&config.base_dir),
            cache_dir_free_mib: free_mib(&config.cache_dir),
            vms_used_mib: used_mib(&state_dir::vms(&config.base_dir)),
            state_dir_used_mib: used_mib(&config.base_dir),
        },
        user_namespaces_allowed_by: blocked_by
            .map(|(file, _, allowing)| format!("{}={allowing}", file.replace('/', "."))),
        state_dir_problem: fs::metadata(&config.base_dir)
            .ok()
            .and_then(|metadata| state_dir::problem(&metadata)),
    }
}

/// Returns the space used by everything below a directory; 0 if it does not exist.
fn used_mib(dir: &Path) -> u64 {
    used_bytes(dir).div_ceil(1 << 20)
}

fn used_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let bytes = entries.filter_map(|entry| {
        // Use the metadata of the entry itself: links lead elsewhere.
        let metadata = entry.metadata().ok()?;
        let below = if metadata.is_dir() { used_bytes(&entry.path()) } else { 0 };
        Some(metadata.blocks() * 512 + below)
    });
    bytes.sum()
}

/// Returns the value of a kernel setting.
fn setting(root: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(root.join("proc/sys").join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// Returns whether `/etc/subuid` assigns a range to `uid`, by number or by name.
fn has_subuid(root: &Path, uid: u32) -> bool {
    let table = |file: &str| fs::read(root.join(file)).unwrap_or_default();
    let (uid, passwd, subuid) = (uid.to_string(), table("etc/passwd"), table("etc/subuid"));
    let passwd = String::from_utf8_lossy(&passwd);
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then_some(name)
    });
    String::from_utf8_lossy(&subuid).lines().any(|line| {
        let owner = line.split(':').next();
        owner == Some(uid.as_str()) || (name.is_some() && owner == name)
    })
}

/// Returns the space available to this user where `path` is or would be.
fn free_mib(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let stat = statvfs(existing).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn config(root: &Path) -> Config {
        Config {
            search_path: root.join("bin").into_os_string(),
            ..Config::new(root.join("state/pyro"), root.join("cache/pyro"), root.join("pyro"))
        }
    }

    fn put(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn a_host_that_has_nothing() {
        let root = TempDir::new().unwrap();
        let facts = HostFacts::gather(&config(root.path()), root.path()).await;
        assert_eq!(facts.kvm, KvmReport::default());
        assert_eq!(facts.networking, NetworkingReport::default());
        assert_eq!(facts.build, BuildReport::default());
        assert!(facts.vmm.program.is_none() && facts.vmm.answer.is_none());
        assert!(!facts.rootless.user_namespaces && !facts.rootless.subuid && !facts.rootless.newuidmap);
        assert!(facts.disk.state_dir_free_mib.is_some());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "looking has changed something");
    }

    #[tokio::test]
    async fn a_host_that_has_everything() {
        let root = TempDir::new().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        put(root.path(), "dev/kvm", "");
        put(root.path(), "dev/net/tun", "");
        put(root.path(), "proc/sys/net/ipv4/ip_forward", "1\n");
        put(root.path(), "proc/sys/user/max_user_namespaces", "1000\n");
        put(root.path(), "etc/passwd", &format!("broken\nme:x:{uid}:1::/:/bin/sh\n"));
        put(root.path(), "etc/subuid", "me:100000:65536\n");
        put(root.path(), "usr/share/keyrings/debian-archive-keyring.gpg", "");
        for tool in ["ip", "nft", "iptables", "mmdebstrap", "newuidmap"] {
            put(root.path(), &format!("bin/{tool}"), "");
        }
        put(root.path(), "bin/qemu-system-x86_64", "#!/bin/sh\necho QEMU emulator version 10.0.2 $*\n");
        let facts = HostFacts::gather(&config(root.path()), root.path()).await;
        assert_eq!(facts.kvm, KvmReport { exists: true, readable: true, writable: true });
        let networking = facts.networking;
        assert!(networking.tun_available && networking.ip_forward_enabled && !networking.enabled_by_default);
        assert!(networking.nft_binary.unwrap().ends_with("/bin/nft"));
        assert!(networking.ip_binary.is_some() && networking.iptables_binary.is_some());
        assert!(facts.build.mmdebstrap.is_some() && facts.build.keyring.is_some());
        let rootless = RootlessReport { euid: uid, user_namespaces: true, subuid: true, newuidmap: true };
        assert_eq!(facts.rootless, rootless);
        assert_eq!(facts.vmm.answer, Some(Ok("QEMU emulator version 10.0.2 --version\n".to_owned())));
    }

    #[tokio::test]
    async fn a_vmm_that_is_asked_for_its_version_inherits_no_open_file() {
        let root = TempDir::new().unwrap();
        let secret = tempfile::NamedTempFile::new().unwrap();
        // Unlike an opened file, a copied descriptor is not closed by exec.
        let _leaky = rustix::io::dup(secret.as_file()).unwrap();
        put(root.path(), "vmm", "#!/bin/sh\nexec /bin/ls -l /proc/self/fd\n");
        let config = Config { vmm_program: Some(root.path().join("vmm")), ..config(root.path()) };
        let facts = HostFacts::gather(&config, root.path()).await;
        let found = facts.vmm.answer.unwrap().unwrap();
        assert!(found.contains("/dev/null"), "{found}");
        assert!(!found.contains(secret.path().to_str().unwrap()), "{found}");
    }

    #[tokio::test]
    async fn a_vmm_that_fails_is_not_believed() {
        let root = TempDir::new().unwrap();
        put(root.path(), "vmm", "#!/bin/sh\nexit 3\n");
        let config = Config { vmm_program: Some(root.path().join("vmm")), ..config(root.path()) };
        let facts = HostFacts::gather(&config, root.path()).await;
        assert!(facts.guest_kernel.is_none());
        assert_eq!(
            facts.vmm.answer.map(|answer| answer.map_err(|problem| problem.to_string())),
            Some(Err("`--version` failed (exit status: 3)".to_owned()))
        );
    }

    #[test]
    fn each_setting_can_forbid_user_namespaces() {
        for (file, forbidding, expected) in [
            ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
            ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
            (
                "kernel/apparmor_restrict_unprivileged_userns",
                "1",
                "kernel.apparmor_restrict_unprivileged_userns=0",
            ),
        ] {
            let root = TempDir::new().unwrap();
            put(root.path(), "proc/sys/user/max_user_namespaces", "1000");
            put(root.path(), &format!("proc/sys/{file}"), forbidding);
            let config = Config { search_path: OsString::new(), ..config(root.path()) };
            let facts = look(&config, root.path());
            assert!(!facts.rootless.user_namespaces);
            assert_eq!(facts.user_namespaces_allowed_by.as_deref(), Some(expected));
        }
    }

    #[test]
    fn subuid_is_found_by_number_too() {
        let root = TempDir::new().unwrap();
        put(root.path(), "etc/subuid", "other:1:1\n4711:100000:65536\n");
        assert!(has_subuid(root.path(), 4711));
        assert!(!has_subuid(root.path(), 471));
    }

    #[test]
    fn a_state_directory_open_to_others_is_seen() {
        let root = TempDir::new().unwrap();
        let config = config(root.path());
        fs::create_dir_all(&config.base_dir).unwrap();
        fs::set_permissions(&config.base_dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(look(&config, root.path()).state_dir_problem, Some("may be written by other users"));
    }
}
