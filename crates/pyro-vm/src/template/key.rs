//! The key of a template: a digest over everything that must be equal in the machine that was saved and in one
//! that starts from it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::agent;
use crate::hex::hex;
use crate::spec::LaunchSpec;
use crate::vmm::{Disks, Hardware, NetworkAttachment, Start, Vmm};

/// Raised when the meaning of a template's files changes.
const FORMAT: u32 = 2;
/// The first QEMU that can load memory from a file which it may not write to.
const LEAST_VMM_MAJOR: u32 = 9;
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// The key for machines like that of `spec`, or why there can be no template. `dir` remembers what the VMM's
/// version is.
pub(super) async fn of(dir: &Path, spec: &LaunchSpec, vmm: &dyn Vmm) -> Result<String, String> {
    let version = vmm_version(dir, &spec.machine.vmm_program).await?;
    let major = version.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    if major.and_then(|digits| digits.parse().ok()).is_none_or(|major: u32| major < LEAST_VMM_MAJOR) {
        return Err(format!("{version} is too old for templates"));
    }
    // Machine state also depends on the host's kernel and processor; neither changes before a reboot.
    let boot_id = host_boot_id()?;
    Ok(digest(spec, vmm, &version, &boot_id, agent::SHA256))
}

fn digest(spec: &LaunchSpec, vmm: &dyn Vmm, version: &str, boot_id: &str, agent: &str) -> String {
    let layer = spec.guest.layer_template.file_name().unwrap_or_default();
    let parts = json!([
        FORMAT,
        command_line(spec, vmm),
        version,
        boot_id,
        spec.guest.digest,
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

/// What the VMM says of itself. Asking takes as long as starting it, so the answer is remembered for the file.
async fn vmm_version(dir: &Path, program: &Path) -> Result<String, String> {
    let file =
        fs::metadata(program).map_err(|error| format!("cannot examine {}: {error}", program.display()))?;
    let identity = json!([
        program,
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime_nsec()
    ]);
    let remembered = dir.join(format!("vmm-{}", &hex(&Sha256::digest(identity.to_string()))[..32]));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Accelerator;
    use crate::qemu::Qemu;
    use crate::spec::{GuestImage, Machine, Purpose, Spares};

    fn spec() -> LaunchSpec {
        LaunchSpec {
            vm_id: "0123456789ab".to_owned(),
            dir: "/vms/0123456789ab".into(),
            bound_to_caller: true,
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
                kernel: "/env/vmlinuz".into(),
                modules: "/env/modules.cpio".into(),
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
        digest(&spec, &Qemu, "QEMU 10.0.2", "boot", "agent")
    }

    #[test]
    fn what_makes_state_unfit_changes_the_key() {
        let mut keys = vec![
            key_of(|_| {}),
            digest(&spec(), &Qemu, "QEMU 10.0.3", "boot", "agent"),
            digest(&spec(), &Qemu, "QEMU 10.0.2", "another boot", "agent"),
            digest(&spec(), &Qemu, "QEMU 10.0.2", "boot", "another agent"),
            key_of(|spec| spec.guest.digest = "another kernel".to_owned()),
            key_of(|spec| spec.guest.base_filesystem = "ext4".to_owned()),
            key_of(|spec| spec.guest.layer_template = "/layers/scratch-512.img".into()),
            key_of(|spec| spec.machine.vcpu_count = 2),
            key_of(|spec| spec.machine.mem_mib = 2048),
            key_of(|spec| spec.machine.accelerator = Accelerator::Kvm),
            key_of(|spec| spec.network = true),
            key_of(|spec| spec.bound_to_caller = false),
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
}
