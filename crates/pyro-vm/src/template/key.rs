//! The key of a template: a digest over everything that must be equal in the machine that was saved and in one
//! that starts from it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::hex::hex;
use crate::spec::{GuestKernel, LaunchSpec};
use crate::vmm::{Disks, Hardware, NetworkAttachment, Start, Vmm};

/// Raised when the meaning of a template's files changes.
const FORMAT: u32 = 2;
/// The first QEMU that can load memory from a file which it may not write to.
const LEAST_VMM_MAJOR: u32 = 9;
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// Why there can be no template for machines of this VMM, if so. `dir` remembers what its version is.
pub(super) async fn check_vmm(dir: &Path, spec: &LaunchSpec) -> Result<(), String> {
    let version = vmm_version(dir, &spec.machine.vmm_program).await?;
    let major = version.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    match major.and_then(|digits| digits.parse::<u32>().ok()) {
        Some(LEAST_VMM_MAJOR..) => Ok(()),
        _ => Err(format!("{version} is too old for templates")),
    }
}

/// The key for machines like that of `spec`.
pub(super) async fn of(dir: &Path, spec: &LaunchSpec, vmm: &dyn Vmm) -> Result<String, String> {
    let version = vmm_version(dir, &spec.machine.vmm_program).await?;
    // Machine state also depends on the host's kernel and processor; neither changes before a reboot.
    let boot_id = host_boot_id()?;
    let kernel = kernel_identity(&spec.guest.kernel)?;
    Ok(digest(spec, vmm, &version, &boot_id, pyro_guest_image::SHA256, kernel))
}

fn digest(
    spec: &LaunchSpec,
    vmm: &dyn Vmm,
    version: &str,
    boot_id: &str,
    agent: &str,
    kernel: Option<Value>,
) -> String {
    let layer = spec.guest.layer_template.file_name().unwrap_or_default();
    let parts = json!([
        FORMAT,
        command_line(spec, vmm),
        version,
        boot_id,
        spec.guest.digest,
        kernel,
        spec.guest.base_filesystem,
        layer.to_string_lossy(),
        agent,
    ]);
    hex(&Sha256::digest(parts.to_string()))[..32].to_owned()
}

/// Which boot of the host this is.
pub(super) fn host_boot_id() -> Result<String, String> {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(format!("cannot read the host's boot id: {error}")),
    }
}

/// The VMM's arguments, with names in place of paths.
fn command_line(spec: &LaunchSpec, vmm: &dyn Vmm) -> Vec<String> {
    let disks = Disks {
        kernel: "kernel".into(),
        initrd: "initrd".into(),
        base_image: "base".into(),
        layer: "layer".into(),
        layer_lifetime: spec.layer_lifetime(),
    };
    let hardware = Hardware {
        machine: spec.machine.clone(),
        disks,
        network: spec.network.then(NetworkAttachment::default),
        start: Start::Kernel { tsc_khz: None, memory: Some("memory".into()) },
    };
    vmm.plan(&hardware).args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect()
}

/// Which file a kernel is that no digest covers. A template does not outlive the host's uptime, so the file's
/// identity will do, and reading all of it would cost more than restoring a machine's state.
pub(super) fn kernel_identity(kernel: &GuestKernel) -> Result<Option<Value>, String> {
    match kernel {
        GuestKernel::WithModules { .. } => Ok(None),
        GuestKernel::SelfContained { image } => file_identity(image).map(Some),
    }
}

/// Differs for files that differ, as far as can be told without reading them: nobody can set the time of the
/// last change of the inode.
fn file_identity(path: &Path) -> Result<Value, String> {
    let file = fs::metadata(path).map_err(|error| format!("cannot examine {}: {error}", path.display()))?;
    Ok(json!([
        path,
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec()
    ]))
}

/// What the VMM says of itself. Asking takes as long as starting it, so the answer is remembered for the file.
async fn vmm_version(dir: &Path, program: &Path) -> Result<String, String> {
    let remembered = remembered(dir, program)?;
    match fs::read_to_string(&remembered) {
        Ok(version) if !version.is_empty() => return Ok(version),
        _ => {}
    }
    let child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(VERSION_LIMIT, child).await {
        Ok(Ok(output)) if output.status.success() => output,
        _ => return Err(format!("{} does not tell its version", program.display())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
    super::make_dir(dir)?;
    let remember = || -> std::io::Result<()> {
        let mut partial = tempfile::Builder::new().prefix(".vmm-").tempfile_in(dir)?;
        partial.write_all(version.as_bytes())?;
        partial.persist(&remembered)?;
        Ok(())
    };
    // Not being able to remember only costs another question.
    let _ = remember();
    Ok(version)
}

/// `dir` remembers the VMM's version, so that it need not be asked.
pub(super) fn is_version_known(dir: &Path, program: &Path) -> bool {
    remembered(dir, program).is_ok_and(|file| file.exists())
}

/// Where the version is remembered.
fn remembered(dir: &Path, program: &Path) -> Result<PathBuf, String> {
    let identity = file_identity(program)?;
    Ok(dir.join(format!("vmm-{}", &hex(&Sha256::digest(identity.to_string()))[..32])))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::Accelerator;
    use crate::qemu::Qemu;
    use crate::spec::{GuestImage, Machine, Purpose, Retention, Spares};

    fn spec() -> LaunchSpec {
        LaunchSpec {
            vm_id: "0123456789ab".to_owned(),
            dir: "/vms/0123456789ab".into(),
            retention: Retention::Caller,
            expires_at: 0.0,
            boot_limit_seconds: 1,
            machine: Machine {
                vmm_program: "/usr/bin/qemu".into(),
                accelerator: Accelerator::Tcg,
                vcpu_count: 1,
                mem_mib: 1024,
            },
            guest: GuestImage {
                digest: "kernel, modules and image".to_owned(),
                kernel: GuestKernel::WithModules {
                    image: "/env/vmlinuz".into(),
                    modules: "/env/modules.cpio".into(),
                },
                base_image: "/env/rootfs".into(),
                base_filesystem: "erofs".to_owned(),
                layer_template: "/layers/scratch-8192.img".into(),
            },
            template_dir: Some("/templates".into()),
            network: false,
            spares: Spares::default(),
            purpose: Purpose::Vm,
        }
    }

    fn key_of(change: impl FnOnce(&mut LaunchSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        digest(&spec, &Qemu, "QEMU 10.0.2", "boot", "agent", None)
    }

    #[test]
    fn what_makes_state_unfit_changes_the_key() {
        let mut keys = vec![
            key_of(|_| {}),
            digest(&spec(), &Qemu, "QEMU 10.0.3", "boot", "agent", None),
            digest(&spec(), &Qemu, "QEMU 10.0.2", "another boot", "agent", None),
            digest(&spec(), &Qemu, "QEMU 10.0.2", "boot", "another agent", None),
            key_of(|spec| spec.guest.digest = "another kernel".to_owned()),
            key_of(|spec| spec.guest.base_filesystem = "ext4".to_owned()),
            key_of(|spec| spec.guest.layer_template = "/layers/scratch-512.img".into()),
            key_of(|spec| spec.machine.vcpu_count = 2),
            key_of(|spec| spec.machine.mem_mib = 2048),
            key_of(|spec| spec.machine.accelerator = Accelerator::Kvm),
            key_of(|spec| spec.network = true),
            key_of(|spec| spec.retention = Retention::Lifetime),
        ];
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn what_each_vm_has_for_itself_does_not() {
        let other = key_of(|spec| {
            spec.vm_id = "ba9876543210".to_owned();
            spec.dir = "/vms/ba9876543210".into();
            spec.expires_at = 1.0;
            spec.purpose = Purpose::Spare;
            spec.spares.wanted = 3;
        });
        assert_eq!(other, key_of(|_| {}));
    }

    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new() -> Self {
            let fixture = Self(tempfile::tempdir().unwrap());
            fs::write(fixture.path("kernel"), b"kernel one").unwrap();
            fixture
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// The key with this kernel. The VMM is only asked for its version.
        async fn key(&self, kernel: GuestKernel) -> Result<String, String> {
            let vmm_program = self.path("vmm");
            if !vmm_program.exists() {
                fs::write(&vmm_program, "#!/bin/sh\necho QEMU emulator version 10.0.2\n").unwrap();
                fs::set_permissions(&vmm_program, fs::Permissions::from_mode(0o755)).unwrap();
            }
            let mut spec = spec();
            spec.machine.vmm_program = vmm_program;
            spec.guest.kernel = kernel;
            of(&self.path("templates"), &spec, &Qemu).await
        }

        async fn of_own_kernel(&self) -> String {
            self.key(GuestKernel::SelfContained { image: self.path("kernel") }).await.unwrap()
        }

        async fn with_modules(&self) -> String {
            let (image, modules) = (self.path("kernel"), self.path("modules"));
            self.key(GuestKernel::WithModules { image, modules }).await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_replaced_kernel_has_another_key() {
        let fixture = Fixture::new();
        let first = fixture.of_own_kernel().await;
        assert_eq!(fixture.of_own_kernel().await, first);

        // As the build of one installs it; equal in size and time.
        let kernel = fixture.path("kernel");
        let time = fs::metadata(&kernel).unwrap().modified().unwrap();
        let new = fixture.path("new");
        fs::write(&new, b"kernel two").unwrap();
        fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
        fs::rename(&new, &kernel).unwrap();
        let second = fixture.of_own_kernel().await;
        assert_ne!(second, first);

        // Written over in place: only the time of the inode tells, whose clock ticks a few hundred times a second.
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&kernel, b"kernel 333").unwrap();
        fs::File::options().write(true).open(&kernel).unwrap().set_modified(time).unwrap();
        assert_ne!(fixture.of_own_kernel().await, second);
    }

    #[tokio::test]
    async fn a_kernel_with_modules_is_known_by_the_digest() {
        let fixture = Fixture::new();
        let key = fixture.with_modules().await;
        assert_ne!(key, fixture.of_own_kernel().await);
        fs::remove_file(fixture.path("kernel")).unwrap();
        assert_eq!(fixture.with_modules().await, key);
    }

    #[tokio::test]
    async fn without_its_kernel_there_is_no_key() {
        let fixture = Fixture::new();
        let error =
            fixture.key(GuestKernel::SelfContained { image: fixture.path("none") }).await.unwrap_err();
        assert!(error.starts_with("cannot examine ") && error.contains("/none: "), "{error}");
    }
}
