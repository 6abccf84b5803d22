use std::collections::BTreeMap;

use pyro_engine::doctor::{
    BuildReport, Capabilities, ConfinementLayer, KvmReport, NetworkingReport, Remedy, RuntimeReport,
};

use super::*;

fn bare_machine() -> DoctorReport {
    DoctorReport {
        platform: "linux-x86_64".to_owned(),
        runtime_ok: false,
        issues: vec!["QEMU was not found".to_owned(), "/dev/kvm is not available on this host".to_owned()],
        kvm: KvmReport::default(),
        networking: NetworkingReport::default(),
        runtime: None,
        accelerator: AcceleratorReport::default(),
        vmm: VmmReport::default(),
        guest_kernel: GuestKernelReport { image: Some("/k".to_owned()), release: None },
        environment_build: BuildReport::default(),
        rootless: RootlessReport { euid: 1000, ..RootlessReport::default() },
        confinement: ConfinementReport::default(),
        disk: DiskReport::default(),
        remedies: vec![Remedy {
            issue: "QEMU was not found".to_owned(),
            remedy: "install qemu-system-x86".to_owned(),
        }],
    }
}

#[test]
fn a_bare_machine_is_told_what_to_do() {
    insta::assert_snapshot!(text(&bare_machine()), @r"
    Platform: linux-x86_64
    Runtime: FAIL
    KVM: exists=no readable=no writable=no
    Networking: tun=no ip_forward=no
    Accelerator: none
    VMM: not found
    Guest kernel: /k usable=no
    Environment build: mmdebstrap=missing keyring=missing
    Rootless: euid=1000 user_namespaces=no subuid=no newuidmap=no
    Confinement: unknown
    Disk: state_free=unknown cache_free=unknown state_used=0MiB vms_used=0MiB
    Issues:
    - QEMU was not found
      remedy: install qemu-system-x86
    - /dev/kvm is not available on this host
    ");
}

#[test]
fn a_good_machine_has_no_issues() {
    let good = DoctorReport {
        runtime_ok: true,
        issues: Vec::new(),
        remedies: Vec::new(),
        kvm: KvmReport { exists: true, readable: true, writable: true },
        networking: NetworkingReport { tun_available: true, ..NetworkingReport::default() },
        runtime: Some(RuntimeReport {
            capabilities: Capabilities {
                supports_vm_boot: true,
                supports_guest_exec: true,
                supports_guest_network: false,
                reason: None,
            },
            catalog_version: "2.1.0".to_owned(),
            cache_dir: "/c".into(),
            environments: Vec::new(),
            component_versions: BTreeMap::new(),
        }),
        accelerator: AcceleratorReport {
            selected: Some("tcg".to_owned()),
            reason: "this host's KVM emulates supervisor code".to_owned(),
            measured_ms: Some(0.03),
            kvm_costs: Some(KvmCosts {
                host_loop_ns: 0.27,
                loop_ns: 0.271,
                paging_ns: 310.0,
                fault_ns: 1234.0,
                exit_ns: 180_000.0,
            }),
            cached: true,
        },
        vmm: VmmReport {
            program: Some("/usr/bin/qemu-system-x86_64".into()),
            version: Some("10.0.2".to_owned()),
            ok: true,
            note: String::new(),
        },
        guest_kernel: GuestKernelReport {
            image: Some("/k".to_owned()),
            release: Some("6.12.9-pyro".to_owned()),
        },
        environment_build: BuildReport {
            mmdebstrap: Some("/usr/bin/mmdebstrap".into()),
            keyring: Some("/usr/share/keyrings/debian-archive-keyring.gpg".into()),
        },
        confinement: ConfinementReport {
            full: false,
            layers: vec![
                ConfinementLayer { name: "seccomp".to_owned(), active: true, note: String::new() },
                ConfinementLayer { name: "landlock".to_owned(), active: false, note: "none here".to_owned() },
            ],
            uid: Some(1000),
        },
        disk: DiskReport {
            state_dir_free_mib: Some(2048),
            cache_dir_free_mib: Some(1),
            vms_used_mib: 7,
            state_dir_used_mib: 300,
        },
        ..bare_machine()
    };
    insta::assert_snapshot!(text(&good), @r"
    Platform: linux-x86_64
    Runtime: PASS
    KVM: exists=yes readable=yes writable=yes
    Environment cache: /c
    Capabilities: vm_boot=yes guest_exec=yes guest_network=no
    Networking: tun=yes ip_forward=no
    Accelerator: tcg (this host's KVM emulates supervisor code)
    KVM costs: host_loop=0.27ns guest_loop=0.27ns paging=0.31us fault=1.23us exit=0.18ms
    VMM: /usr/bin/qemu-system-x86_64 version=10.0.2 usable=yes
    Guest kernel: /k release=6.12.9-pyro usable=yes
    Environment build: mmdebstrap=/usr/bin/mmdebstrap keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    Rootless: euid=1000 user_namespaces=no subuid=no newuidmap=no
    Confinement: partial uid=1000 seccomp=yes landlock=no (none here)
    Disk: state_free=2048MiB cache_free=1MiB state_used=300MiB vms_used=7MiB
    ");
}
