//! The command line of QEMU's `microvm` machine: one code path for hosts with hardware virtualisation and for hosts without.

use std::ffi::OsString;
use std::path::Path;

use pyro_wire::{BASE_DISK_SERIAL, LAYER_DISK_SERIAL, PORT_NAME};
use serde_json::json;

use crate::accel::Accelerator;
use crate::disk::LayerLifetime;
use crate::hardware::{Disks, Hardware, Start};
use crate::network::NetworkInterface;

/// Descriptor of the guest channel, a connected stream socket, in QEMU's process.
pub(super) const CHANNEL_FD: i32 = 3;
/// Descriptor of the network's stream socket, where the machine has an interface.
pub(super) const NETWORK_FD: i32 = 4;
/// Descriptor of the control connection, a stream socket.
pub(super) const CONTROL_FD: i32 = 5;

/// Descriptor of KVM's device, where the VMM may not open it itself.
pub(super) const KVM_FD: i32 = 6;

/// ACPI describes the virtio-mmio devices: Debian's kernel does not take them from its command line. Without
/// the real-time clock the kernel waits a second for it; the timer and interrupt controllers of a PC are
/// what the kernel calibrates its clocks with under emulation.
const MACHINE: &str = "microvm,acpi=on,rtc=on,pit=on,pic=on,isa-serial=on,usb=off,pcie=off";

/// Maximum size of the code that QEMU has translated and keeps, in MiB. By default it may grow to 1 GiB, and a guest can make
/// it do so. The same work takes as long as with more (`docs/design/0018-confinement.md`).
pub(super) const TRANSLATED_CODE_MIB: u32 = 128;

/// `reboot=t`: a triple fault ends the machine without ACPI. `panic=-1`: at once, and `-no-reboot` turns that
/// into the end of the VMM. `no_timer_check`: emulated timers are late enough to fail the kernel's test.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet reboot=t panic=-1 no_timer_check";

/// The guest's clock is kvm-clock, which QEMU saves at another moment than the processors' counters. A kernel that
/// compares the two after it was restored would report that the counters are unstable.
const KVM_CLOCK: &str = "tsc=nowatchdog";

/// The VMM may do nothing but run its machine.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Whether a machine that starts like this is sent commands through the control connection.
pub(super) fn takes_commands(start: &Start) -> bool {
    start.memory().is_some()
}

/// Whether the memory of such a machine may be in huge pages. Under emulation it is the emulator's own, mostly translated
/// code, and smaller than a few huge pages: those cost 3 MiB for each idle clone, and no command was found to run faster.
pub(super) fn huge_pages(accelerator: Accelerator) -> bool {
    accelerator == Accelerator::Kvm
}

/// QEMU's arguments without the program's name. `tsc_khz` is the rate of the time stamp counter in kHz, for a guest
/// that starts from its kernel and cannot measure it itself.
pub(super) fn arguments(
    hardware: &Hardware,
    disks: &Disks,
    start: &Start,
    tsc_khz: Option<u32>,
) -> Vec<OsString> {
    let Hardware { config, layer_lifetime, interface } = hardware;
    let mut args = Args::default();
    args.flags(["-no-user-config", "-nodefaults", "-no-reboot"]);
    args.option("-display", "none");
    args.option("-sandbox", SANDBOX);
    match start.memory() {
        Some(_) => args.option("-machine", format!("{MACHINE},memory-backend=memory")),
        None => args.option("-machine", MACHINE),
    }
    let (accelerator, cpu) = match config.accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        Accelerator::Tcg => {
            // With one CPU, a separate thread for it only costs time.
            let thread = if config.vcpu_count == 1 { "single" } else { "multi" };
            (format!("tcg,thread={thread},tb-size={TRANSLATED_CODE_MIB}"), "max")
        }
    };
    args.option("-accel", accelerator);
    args.option("-cpu", cpu);
    args.option("-smp", config.vcpu_count.to_string());
    let mem_mib = bootable_size(config.mem_mib);
    args.option("-m", format!("{mem_mib}M"));

    if let Some(memory) = start.memory() {
        args.option("-object", memory_object(memory, mem_mib, start));
    }

    match start {
        Start::Kernel { .. } => {
            args.option("-kernel", disks.kernel.path());
            args.option("-initrd", disks.initrd.as_os_str());
            let clock = match (config.accelerator, tsc_khz) {
                // All processors of the guest see the host's counter.
                (Accelerator::Tcg, Some(khz)) => format!(" tsc_early_khz={khz} tsc=reliable"),
                (Accelerator::Tcg, None) => String::new(),
                (Accelerator::Kvm, _) => format!(" {KVM_CLOCK}"),
            };
            args.option("-append", format!("{KERNEL_ARGUMENTS}{clock}"));
        }
        Start::Saved { .. } => args.option("-incoming", "defer"),
    }
    args.option("-chardev", format!("socket,id=control,fd={}", CONTROL_FD));
    args.option("-mon", "chardev=control,mode=control");
    args.option("-chardev", "stdio,id=console,signal=off");
    args.option("-serial", "chardev:console");

    args.option("-device", "virtio-serial-device");
    args.option("-chardev", format!("socket,id=agent,fd={}", CHANNEL_FD));
    args.option("-device", format!("virtserialport,chardev=agent,name={PORT_NAME}"));
    args.option("-device", "virtio-rng-device");

    args.disk("base", disks.base_image.path(), Access::ReadOnly);
    args.option("-device", format!("virtio-blk-device,drive=base,serial={BASE_DISK_SERIAL}"));
    args.disk("layer", &disks.layer, Access::Writable(*layer_lifetime));
    // A full or failing host disk becomes the guest's I/O error, not a machine that stops forever.
    args.option(
        "-device",
        format!("virtio-blk-device,drive=layer,serial={LAYER_DISK_SERIAL},rerror=report,werror=report"),
    );
    if let Some(NetworkInterface { mac_address }) = interface {
        args.option("-netdev", format!("stream,id=net,addr.type=fd,addr.str={}", NETWORK_FD));
        args.option("-device", format!("virtio-net-device,netdev=net,mac={mac_address}"));
    }
    args.0
}

/// Has QEMU use the device of KVM that it has open as [`KVM_FD`]. QEMU knows that option from version 9 on.
pub(super) fn with_kvm_by_descriptor(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if let Some(accelerator) = arguments.iter_mut().find(|argument| *argument == "kvm") {
        accelerator.push(",device=/dev/fdset/1");
        arguments.extend(["-add-fd".into(), format!("fd={KVM_FD},set=1").into()]);
    }
    arguments
}

/// The size itself, but for one that does not boot: with exactly 2 GiB of memory the initrd, which is loaded at the
/// end of memory, is damaged before the kernel reads it (seen with QEMU 10.0 and its SeaBIOS; 2047 and 2049 MiB boot).
fn bootable_size(mem_mib: u32) -> u32 {
    if mem_mib == 2048 { 2049 } else { mem_mib }
}

/// Guest memory in a file: written to while a machine is made to be saved, only read by those who start from it. For these
/// the file must be opened read-only and yet be memory that the guest may write to (`rom`).
fn memory_object(file: &Path, mem_mib: u32, start: &Start) -> String {
    let mut object = json!({
        "qom-type": "memory-backend-file",
        "id": "memory",
        "size": u64::from(mem_mib) * 1024 * 1024,
        "mem-path": file,
        "share": matches!(start, Start::Kernel { .. }),
    });
    if matches!(start, Start::Saved { .. }) {
        object["readonly"] = true.into();
        object["rom"] = "off".into();
    }
    object.to_string()
}

enum Access {
    ReadOnly,
    Writable(LayerLifetime),
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flags<const N: usize>(&mut self, flags: [&str; N]) {
        self.0.extend(flags.map(OsString::from));
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.extend([name.into(), value.into()]);
    }

    /// JSON, because in QEMU's own syntax a comma in a path would start another option.
    fn disk(&mut self, name: &str, path: &Path, access: Access) {
        let (read_only, no_flush) = match access {
            Access::ReadOnly => (true, true),
            Access::Writable(lifetime) => (false, lifetime == LayerLifetime::OneStart),
        };
        self.option(
            "-blockdev",
            json!({
                "driver": "raw",
                "node-name": name,
                "read-only": read_only,
                "discard": "unmap",
                "cache": { "direct": false, "no-flush": no_flush },
                "file": { "driver": "file", "filename": path, "locking": if read_only { "off" } else { "auto" } },
            })
            .to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{MachineConfig, SavedFiles};

    const KERNEL: Start = Start::Kernel { save_in: None };
    const TSC_KHZ: Option<u32> = Some(2_600_000);

    fn plan(
        accelerator: Accelerator,
        vcpu_count: u32,
        interface: Option<NetworkInterface>,
        start: Start,
        tsc_khz: Option<u32>,
    ) -> String {
        let config = MachineConfig {
            vmm_program: "/usr/bin/qemu-system-x86_64".into(),
            accelerator,
            vcpu_count,
            mem_mib: 1024,
        };
        let disks = Disks {
            kernel: "/env/vmlinuz".into(),
            initrd: "/vm/initrd".into(),
            base_image: "/env/rootfs,with,commas".into(),
            layer: "/vm/layer".into(),
        };
        let layer_lifetime =
            if vcpu_count == 1 { LayerLifetime::OneStart } else { LayerLifetime::ManyStarts };
        let hardware = Hardware { config, layer_lifetime, interface };
        let args = arguments(&hardware, &disks, &start, tsc_khz);
        let args = args.iter().map(|arg| arg.to_str().unwrap());
        let lines = args.map(|arg| if arg.starts_with('-') { format!("\n{arg}") } else { format!(" {arg}") });
        format!("{}{}", hardware.config.vmm_program.display(), lines.collect::<String>())
    }

    #[test]
    fn emulated_machine_with_one_cpu() {
        insta::assert_snapshot!(plan(Accelerator::Tcg, 1, None, KERNEL, TSC_KHZ));
    }

    #[test]
    fn emulated_machine_with_two_cpus_and_a_network() {
        let network = NetworkInterface { mac_address: "52:54:00:12:34:56".into() };
        insta::assert_snapshot!(plan(Accelerator::Tcg, 2, Some(network), KERNEL, TSC_KHZ));
    }

    #[test]
    fn machine_with_hardware_virtualisation() {
        insta::assert_snapshot!(plan(Accelerator::Kvm, 4, None, KERNEL, None));
    }

    #[test]
    fn the_device_of_kvm_can_be_a_descriptor() {
        let arguments = ["-accel", "kvm", "-cpu", "host"].map(OsString::from).into();
        let expected = ["-accel", "kvm,device=/dev/fdset/1", "-cpu", "host", "-add-fd", "fd=6,set=1"];
        assert_eq!(with_kvm_by_descriptor(arguments), expected);
    }

    #[test]
    fn a_template_and_its_clone_differ_only_in_where_they_start() {
        let files =
            SavedFiles { memory: "/templates/x,y/memory".into(), state: "/templates/x,y/state".into() };
        let start = Start::Kernel { save_in: Some(files.clone()) };
        let made = plan(Accelerator::Tcg, 1, None, start, None);
        let clone = plan(Accelerator::Tcg, 1, None, Start::Saved { files }, None);
        insta::assert_snapshot!(made);
        insta::assert_snapshot!(clone);
        let rest = |text: &str| {
            let differs = ["-kernel", "-initrd", "-append", "-incoming", "-object"];
            let lines = text.lines().filter(|line| !differs.iter().any(|start| line.starts_with(start)));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(rest(&made), rest(&clone));
    }
}
