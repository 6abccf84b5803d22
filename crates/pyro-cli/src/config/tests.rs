use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt as _;

use super::*;

fn variables(set: &[(&str, &str)]) -> Variables {
    let set: BTreeMap<String, OsString> =
        set.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    Variables(Box::new(move |name| set.get(name).cloned()))
}

fn config(set: &[(&str, &str)]) -> Config {
    engine_config(&variables(set)).unwrap()
}

/// The message for a home that is fine and one more variable that is not.
fn complaint(name: &str, value: &str) -> String {
    engine_config(&variables(&[("HOME", "/h"), (name, value)])).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_in_the_home() {
    let config = config(&[("HOME", "/h"), ("PATH", "/bin")]);
    assert_eq!(config.base_dir, PathBuf::from("/h/.local/state/pyro-mcp"));
    assert_eq!(config.cache_dir, PathBuf::from("/h/.cache/pyro-mcp/environments"));
    assert_eq!(config.max_active_vms, 4);
    assert_eq!((config.accelerator, config.vmm_program, config.debian_mirror), (None, None, None));
    assert_eq!(config.search_path, "/bin");
}

#[test]
fn xdg_directories_come_before_the_home_and_ours_before_both() {
    let xdg = [("HOME", "/h"), ("XDG_STATE_HOME", "/s"), ("XDG_CACHE_HOME", "/c")];
    let of_xdg = config(&xdg);
    assert_eq!(of_xdg.base_dir, PathBuf::from("/s/pyro-mcp"));
    assert_eq!(of_xdg.cache_dir, PathBuf::from("/c/pyro-mcp/environments"));

    let ours = [("PYRO_BASE_DIR", "/b"), ("PYRO_ENVIRONMENT_CACHE_DIR", "/e")];
    let of_ours = config(&[xdg.as_slice(), &ours].concat());
    assert_eq!(of_ours.base_dir, PathBuf::from("/b"));
    assert_eq!(of_ours.cache_dir, PathBuf::from("/e"));
}

#[test]
fn a_home_is_not_needed_when_both_directories_are_given() {
    config(&[("PYRO_BASE_DIR", "/b"), ("PYRO_ENVIRONMENT_CACHE_DIR", "/e")]);
}

#[test]
fn without_a_home_the_message_says_what_to_set() {
    for set in [&[][..], &[("HOME", "")], &[("HOME", "relative")], &[("XDG_STATE_HOME", "relative")]] {
        let error = engine_config(&variables(set)).unwrap_err();
        assert!(error.to_string().contains("PYRO_BASE_DIR, XDG_STATE_HOME and HOME"), "{error}");
        assert!(error.hint.as_deref().unwrap().contains("set PYRO_BASE_DIR"));
    }
    let error = engine_config(&variables(&[("PYRO_BASE_DIR", "/b")])).unwrap_err();
    assert!(error.to_string().contains("PYRO_ENVIRONMENT_CACHE_DIR, XDG_CACHE_HOME and HOME"), "{error}");
}

#[test]
fn relative_paths_of_ours_count_from_the_current_directory() {
    let here = std::env::current_dir().unwrap();
    let config = config(&[("HOME", "/h"), ("PYRO_BASE_DIR", "state"), ("PYRO_QEMU", "./qemu")]);
    assert_eq!(config.base_dir, here.join("state"));
    assert_eq!(config.vmm_program, Some(here.join("qemu")));
}

#[test]
fn the_other_settings_are_taken() {
    let config = config(&[
        ("HOME", "/h"),
        ("PYRO_MAX_ACTIVE_VMS", "9"),
        ("PYRO_ACCEL", "tcg"),
        ("PYRO_QEMU", "/opt/qemu"),
        ("PYRO_VMM", "firecracker"),
        ("PYRO_FIRECRACKER", "/opt/firecracker"),
        ("PYRO_DEBIAN_MIRROR", "https://mirror.example/debian"),
    ]);
    assert_eq!(config.max_active_vms, 9);
    assert_eq!(config.accelerator, Some(Accelerator::Tcg));
    assert_eq!(config.vmm_program, Some(PathBuf::from("/opt/qemu")));
    assert_eq!(config.vmm, Vmm::Firecracker);
    assert_eq!(config.firecracker_program, Some(PathBuf::from("/opt/firecracker")));
    assert_eq!(config.debian_mirror.as_deref(), Some("https://mirror.example/debian"));
}

#[test]
fn a_bare_vmm_name_is_looked_up() {
    let config = config(&[("HOME", "/h"), ("PATH", "/no/such/dir:/bin"), ("PYRO_QEMU", "sh")]);
    assert_eq!(config.vmm_program, Some(PathBuf::from("/bin/sh")));
}

/// The engine reports it, so that `pyro doctor` can.
#[test]
fn a_bare_vmm_name_that_is_not_found_is_kept() {
    let config = config(&[("HOME", "/h"), ("PATH", "/no/such/dir"), ("PYRO_QEMU", "no-such-program")]);
    assert_eq!(config.vmm_program, Some(PathBuf::from("no-such-program")));
}

#[test]
fn the_guest_kernel_that_was_built_is_used_unless_told_otherwise() {
    let home = tempfile::tempdir().unwrap();
    let kernel = |set: &[(&str, &str)]| {
        config(&[&[("HOME", "/h"), ("XDG_DATA_HOME", home.path().to_str().unwrap())], set].concat())
            .guest_kernel
    };
    assert_eq!(kernel(&[]), None);
    let built = home.path().join("pyro-mcp/guest-kernel/bzImage");
    std::fs::create_dir_all(built.parent().unwrap()).unwrap();
    std::fs::write(&built, "").unwrap();
    assert_eq!(kernel(&[]), Some(built.clone()));
    assert_eq!(kernel(&[("PYRO_GUEST_KERNEL", "")]), Some(built));
    assert_eq!(kernel(&[("PYRO_GUEST_KERNEL", "environment")]), None);
    // Whether it is there and fit is for the engine to say.
    assert_eq!(kernel(&[("PYRO_GUEST_KERNEL", "/none")]), Some("/none".into()));
    let here = std::env::current_dir().unwrap();
    assert_eq!(kernel(&[("PYRO_GUEST_KERNEL", "./environment")]), Some(here.join("environment")));
}

#[test]
fn bad_values_are_named() {
    for (name, value) in [
        ("PYRO_MAX_ACTIVE_VMS", "0"),
        ("PYRO_MAX_ACTIVE_VMS", "-1"),
        ("PYRO_MAX_ACTIVE_VMS", "many"),
        ("PYRO_MAX_ACTIVE_VMS", "4294967296"),
        ("PYRO_ACCEL", "xen"),
        ("PYRO_ACCEL", "KVM "),
        ("PYRO_VMM", "Firecracker"),
        ("PYRO_DEBIAN_MIRROR", "ftp://mirror"),
        ("PYRO_DEBIAN_MIRROR", "https://"),
        ("PYRO_DEBIAN_MIRROR", "https:///debian"),
        ("PYRO_DEBIAN_MIRROR", "http://a b"),
    ] {
        let message = complaint(name, value);
        assert!(message.starts_with(&format!("{name} is set to `{value}`; expected ")), "{message}");
    }
}

#[test]
fn empty_means_unset() {
    let ours = ["PYRO_BASE_DIR", "PYRO_MAX_ACTIVE_VMS", "PYRO_ACCEL", "PYRO_QEMU", "PYRO_DEBIAN_MIRROR"];
    let mut set: Vec<(&str, &str)> = ours.map(|name| (name, "")).into();
    set.push(("HOME", "/h"));
    assert_eq!(config(&set).base_dir, PathBuf::from("/h/.local/state/pyro-mcp"));
}

#[test]
fn values_that_are_no_text_are_refused_where_text_is_needed() {
    let junk = || {
        Variables(Box::new(|name| match name {
            "HOME" => Some("/h".into()),
            "PYRO_ACCEL" | "PYRO_LOG" => Some(OsString::from_vec(vec![0xff])),
            _ => None,
        }))
    };
    assert!(engine_config(&junk()).unwrap_err().to_string().starts_with("PYRO_ACCEL "));
    assert!(log_filter(&junk()).unwrap_err().to_string().starts_with("PYRO_LOG "));
}

#[test]
fn directories_that_are_no_text_are_refused_by_name() {
    for set in ["PYRO_BASE_DIR", "PYRO_ENVIRONMENT_CACHE_DIR", "HOME"] {
        let junk = Variables(Box::new(move |name| match name {
            _ if name == set => Some(OsString::from_vec(b"/h\xff".to_vec())),
            "HOME" => Some("/h".into()),
            _ => None,
        }));
        let error = engine_config(&junk).unwrap_err();
        assert!(error.to_string().starts_with("the path /h\u{fffd}"), "{error}");
        assert!(error.to_string().ends_with(" is not valid UTF-8"), "{error}");
        assert!(error.hint.unwrap().starts_with("set PYRO_"));
    }
}

#[test]
fn mounts_can_be_forbidden_or_limited() {
    assert_eq!(config(&[("HOME", "/h")]).mount_roots, MountRoots::Any);
    assert_eq!(config(&[("HOME", "/h"), ("PYRO_MOUNTS", "off")]).mount_roots, MountRoots::Off);
    let some = config(&[("HOME", "/h"), ("PYRO_MOUNTS", "/src:/data")]).mount_roots;
    assert_eq!(some, MountRoots::Below(vec!["/src".into(), "/data".into()]));
    let expected = "expected `off`, or absolute paths with colons between them";
    assert!(complaint("PYRO_MOUNTS", "src").contains(expected));
}

#[test]
fn the_hosts_settings_for_guests_are_off_by_default() {
    let off = config(&[("HOME", "/h"), ("HTTP_PROXY", "http://user:secret@proxy.test:3128")]);
    assert_eq!((off.host_ca.clone(), off.host_proxy), (None, false));
    assert!(!format!("{off:?}").contains("secret"), "{off:?}");
    let on = config(&[
        ("HOME", "/h"),
        ("PYRO_HOST_CA", "1"),
        ("PYRO_HOST_PROXY", "1"),
        ("SSL_CERT_FILE", "/ca.pem"),
        ("https_proxy", "http://proxy.test:3128"),
        ("NO_PROXY", "localhost"),
        ("FTP_PROXY", "http://proxy.test:21"),
    ]);
    assert_eq!((on.host_ca, on.host_proxy), (Some(HostCa::Host(true)), true));
    assert_eq!(on.ssl_cert_file, Some("/ca.pem".into()));
    let names: Vec<_> = on.proxy_variables.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["https_proxy", "NO_PROXY"]);
    let bundle = config(&[("HOME", "/h"), ("PYRO_HOST_CA", "/etc/ours.pem")]);
    assert_eq!(bundle.host_ca, Some(HostCa::Bundle("/etc/ours.pem".to_owned())));
    assert_eq!(config(&[("HOME", "/h"), ("PYRO_HOST_CA", "0")]).host_ca, Some(HostCa::Host(false)));
    for value in ["yes", "ours.pem"] {
        let expected = "expected 1 for what this host trusts, 0, or the absolute path of a file in PEM";
        assert!(complaint("PYRO_HOST_CA", value).contains(expected));
    }
    let expected = "expected 1 to give guests this host's proxy settings, or 0";
    assert!(complaint("PYRO_HOST_PROXY", "yes").contains(expected));
}
