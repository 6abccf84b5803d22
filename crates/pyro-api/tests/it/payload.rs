//! The keys of every payload: a changed snapshot is a changed contract. Keys may be added; a renamed or
//! missing one breaks callers.

use std::collections::BTreeMap;

use pyro_api::{
    DeleteReason, Deleted, Egress, ExecutionMode, NetworkDenial, NetworkInfo, NetworkPolicy, Output, Reaped,
    RunResult, Vm, VmId, VmState,
};

fn id() -> VmId {
    VmId::parse("de259a89b184").expect("a well-formed id")
}

fn vm() -> Vm {
    Vm {
        vm_id: id(),
        environment: "debian:12".to_owned(),
        environment_version: Some("1.0.0".to_owned()),
        vcpu_count: 1,
        mem_mib: 1024,
        ttl_seconds: 600,
        created_at: 1_700_000_000.25,
        expires_at: 1_700_000_600.25,
        state: VmState::Started,
        network_enabled: false,
        network_policy: None,
        allow_host_compat: false,
        guest_ip: None,
        tap_name: None,
        execution_mode: ExecutionMode::GuestVsock,
        metadata: BTreeMap::from([("boot_mode".to_owned(), "native".to_owned())]),
        accelerator: Some("tcg".to_owned()),
        mounts: Vec::new(),
        owner: None,
    }
}

fn policy() -> NetworkPolicy {
    NetworkPolicy {
        egress: Egress::Allowlist,
        allow_cidrs: vec!["10.1.0.0/16".parse().expect("an entry")],
        allow_hosts: vec!["db.example.test:5432".parse().expect("an entry")],
        allow_domains: vec!["*.example.test".parse().expect("an entry")],
    }
}

fn denial() -> NetworkDenial {
    NetworkDenial {
        time: 1_700_000_001.5,
        protocol: "tcp".to_owned(),
        address: Some("169.254.169.254".to_owned()),
        port: Some(80),
        name: None,
        rule: "link_local".to_owned(),
        count: 3,
    }
}

#[test]
fn run_result() {
    insta::assert_json_snapshot!(RunResult {
        vm_id: id(),
        environment: "debian:12".to_owned(),
        environment_version: None,
        command: "printf '\\377'; exit 3".to_owned(),
        shell: Some("sh".to_owned()),
        stdout: Output::from(b"\xff\0ok\n".to_vec()),
        stderr: Output::default(),
        exit_code: -9,
        duration_ms: 9,
        execution_mode: ExecutionMode::HostCompat,
        cleanup: Deleted::new(id(), DeleteReason::PostExecCleanup),
        stdout_truncated: 0,
        stderr_truncated: 12,
        timed_out: false,
        accelerator: None,
        channel: None,
        kernel_release: None,
        network_denials: Vec::new(),
        timings: Vec::new(),
    });
}

#[test]
fn run_result_of_a_guest_has_its_kernel() {
    let result = RunResult {
        vm_id: id(),
        environment: "debian:12".to_owned(),
        environment_version: Some("1.0.0".to_owned()),
        command: String::new(),
        shell: None,
        stdout: Output::default(),
        stderr: Output::default(),
        exit_code: 124,
        duration_ms: 1000,
        execution_mode: ExecutionMode::GuestVsock,
        cleanup: Deleted::new(id(), DeleteReason::PostExecCleanup),
        stdout_truncated: 0,
        stderr_truncated: 0,
        timed_out: true,
        accelerator: Some("kvm".to_owned()),
        channel: Some("virtio-serial".to_owned()),
        kernel_release: Some("6.1.0".to_owned()),
        network_denials: Vec::new(),
        timings: Vec::new(),
    };
    let json = serde_json::to_value(result).unwrap();
    assert_eq!(json["kernel_release"], "6.1.0");
    assert_eq!(json["execution_mode"], "guest_vsock");
    assert_eq!(json["cleanup"]["reason"], "post_exec_cleanup");
}

#[test]
fn vm_payload() {
    insta::assert_json_snapshot!(vm());
}

#[test]
fn deleted_and_reaped() {
    insta::assert_json_snapshot!(Deleted::new(id(), DeleteReason::ExplicitDelete));
    let other = VmId::parse("000000000001").unwrap();
    insta::assert_json_snapshot!(Reaped::from(vec![id(), other]));
}

#[test]
fn network_info() {
    insta::assert_json_snapshot!(NetworkInfo::of(&vm(), Vec::new()));
    let with_network = Vm {
        network_enabled: true,
        network_policy: Some(policy()),
        guest_ip: Some("10.0.2.15".to_owned()),
        metadata: [
            ("gateway_ip", "10.0.2.2"),
            ("subnet_cidr", "10.0.2.0/24"),
            ("mac_address", "06:00:de:25:9a:89"),
            ("dns_servers", "10.0.2.3, 1.1.1.1,"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
        ..vm()
    };
    insta::assert_json_snapshot!(NetworkInfo::of(&with_network, vec![denial()]));
}

#[test]
fn words_of_states_and_modes() {
    for state in VmState::ALL.iter().copied() {
        assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
    }
    for mode in ExecutionMode::ALL.iter().copied() {
        assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
}

#[test]
fn output_keeps_its_bytes() {
    let output = Output::from(b"\xff\0".to_vec());
    assert_eq!(output.as_bytes(), b"\xff\0");
    assert_eq!(output.to_text(), "\u{fffd}\0");
}
