//! The configuration of a Firecracker machine. It sees its files under the same paths in every machine, because saved state
//! contains paths.

use std::ffi::OsString;

use pyro_wire::VSOCK_PORT_ARGUMENT;
use serde_json::{Value, json};

use crate::disk::LayerLifetime;
use crate::hardware::{Hardware, Start};

/// Where the machine sees its files.
pub(super) const KERNEL: &str = "/machine/kernel";
pub(super) const INITRD: &str = "/machine/initrd";
pub(super) const BASE: &str = "/machine/base";
pub(super) const LAYER: &str = "/machine/layer";
pub(super) const MEMORY: &str = "/machine/memory";
pub(super) const STATE: &str = "/machine/state";
/// The directory of its sockets and its configuration.
pub(super) const SCRATCH: &str = "/machine/run";

/// Names in that directory: the configuration, the control socket, and the socket on which Firecracker would accept
/// connections to the guest, which pyro does not use.
pub(super) const CONFIG: &str = "config.json";
pub(super) const API: &str = "api";
const VSOCK: &str = "vsock";

/// The host's port that the guest agent connects to.
const PORT: u32 = 1024;

/// The guest's address. Each machine has a network of its own, so all can have the same.
const GUEST_CID: u32 = 3;

/// `reboot=k`: the reset through the keyboard controller, which Firecracker has, ends the VMM. `panic=-1`: at once. It
/// has no PCI bus, and no keyboard for which the kernel would have to wait.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet reboot=k panic=-1 pci=off i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd";

/// Returns the name of the socket on which the host accepts the agent's connection.
pub(super) fn agent_socket() -> String {
    format!("{VSOCK}_{PORT}")
}

/// Returns the name of the socket on which what carries the guest's packets accepts a connection.
pub(super) fn packet_socket() -> String {
    format!("{VSOCK}_{}", PORT + 1)
}

/// Whether a machine that starts like this is sent commands.
pub(super) fn needs_control(start: &Start) -> bool {
    start.saved_files().is_some()
}

/// Returns Firecracker's arguments without the program's name.
pub(super) fn arguments(start: &Start) -> Vec<OsString> {
    let mut arguments = vec!["--level".to_owned(), "Warn".to_owned()];
    if matches!(start, Start::Kernel { .. }) {
        arguments.extend(["--config-file".to_owned(), format!("{SCRATCH}/{CONFIG}")]);
    }
    match needs_control(start) {
        true => arguments.extend(["--api-sock".to_owned(), format!("{SCRATCH}/{API}")]),
        false => arguments.push("--no-api".to_owned()),
    }
    arguments.into_iter().map(OsString::from).collect()
}

/// Returns the configuration of a machine that starts from its kernel. One that is restored has that of the saved one.
pub(super) fn config(hardware: &Hardware, is_saved: bool) -> Value {
    let disk = |id: &str, path: &str, is_read_only: bool, cache: &str| {
        json!({
            "drive_id": id, "path_on_host": path, "is_root_device": false, "is_read_only": is_read_only, "cache_type": cache,
            "io_engine": "Sync",
        })
    };
    // Whether what the guest flushes is flushed on the host.
    let cache = match hardware.layer_lifetime {
        LayerLifetime::OneStart => "Unsafe",
        LayerLifetime::ManyStarts => "Writeback",
    };
    json!({
        "boot-source": {
            "kernel_image_path": KERNEL,
            "initrd_path": INITRD,
            "boot_args": format!("{KERNEL_ARGUMENTS} {VSOCK_PORT_ARGUMENT}={PORT}"),
        },
        "drives": [disk("base", BASE, true, "Unsafe"), disk("layer", LAYER, false, cache)],
        "machine-config": {
            "vcpu_count": hardware.config.vcpu_count,
            "mem_size_mib": hardware.config.mem_mib,
            // Only what the guest has written to is saved, and the rest of the file is a hole.
            "track_dirty_pages": is_saved,
        },
        "vsock": { "guest_cid": GUEST_CID, "uds_path": format!("{SCRATCH}/{VSOCK}") },
        "entropy": {},
    })
}

/// A request to Firecracker: method, path, and body.
pub(super) type Request = (&'static str, &'static str, Value);

/// Returns what has a machine saved, after which it stays paused.
pub(super) fn save() -> [Request; 2] {
    let files = json!({ "snapshot_type": "Diff", "snapshot_path": STATE, "mem_file_path": MEMORY });
    [("PATCH", "/vm", json!({ "state": "Paused" })), ("PUT", "/snapshot/create", files)]
}

/// Returns what has a machine restored, which then runs.
pub(super) fn restore() -> Request {
    let memory = json!({ "backend_type": "File", "backend_path": MEMORY });
    let files = json!({ "snapshot_path": STATE, "mem_backend": memory, "resume_vm": true });
    ("PUT", "/snapshot/load", files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Accelerator;
    use crate::hardware::{MachineConfig, SavedFiles};

    fn hardware(vcpu_count: u32, layer_lifetime: LayerLifetime) -> Hardware {
        let config = MachineConfig {
            vmm_program: "/usr/bin/firecracker".into(),
            accelerator: Accelerator::Kvm,
            vcpu_count,
            mem_mib: 1024,
        };
        Hardware { config, layer_lifetime, interface: None }
    }

    fn plan(hardware: &Hardware, start: &Start) -> String {
        let arguments = arguments(start);
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        let config = match start {
            Start::Kernel { save_in } => config(hardware, save_in.is_some()),
            Start::Saved { .. } => Value::Null,
        };
        format!("{}\n{config:#}", arguments.join(" "))
    }

    fn files() -> SavedFiles {
        SavedFiles { memory: "/templates/x/memory".into(), state: "/templates/x/state".into() }
    }

    #[test]
    fn machine_of_a_task() {
        let start = Start::Kernel { save_in: None };
        insta::assert_snapshot!(plan(&hardware(2, LayerLifetime::ManyStarts), &start));
    }

    #[test]
    fn a_template_and_its_clone() {
        let hardware = hardware(1, LayerLifetime::OneStart);
        insta::assert_snapshot!(plan(&hardware, &Start::Kernel { save_in: Some(files()) }));
        insta::assert_snapshot!(plan(&hardware, &Start::Saved { files: files() }));
    }
}
