use pyro_engine::PruneReport;

use super::*;

fn environment() -> Environment {
    Environment {
        name: "debian:12".to_owned(),
        version: "1.0.0".to_owned(),
        description: "Debian with git".to_owned(),
        default_packages: vec!["bash".to_owned(), "git".to_owned()],
        distribution: "debian".to_owned(),
        distribution_version: "12".to_owned(),
        platform: "linux-x86_64".to_owned(),
        shell: "sh".to_owned(),
        oci_registry: Some("registry.example".to_owned()),
        oci_repository: Some("pyro/debian-12".to_owned()),
        oci_reference: Some("1.0.0".to_owned()),
        source_digest: None,
        compatibility: ">=2.0.0,<3.0.0".to_owned(),
        catalog_version: "2.1.0".to_owned(),
        installed: true,
        cache_dir: "/c".into(),
        install_dir: "/c/linux-x86_64/debian_12-1.0.0".into(),
        install_manifest: Some("/c/linux-x86_64/debian_12-1.0.0/environment.json".into()),
        size_bytes: Some(312 << 20),
    }
}

fn missing() -> Environment {
    Environment {
        installed: false,
        install_manifest: None,
        size_bytes: None,
        oci_reference: None,
        description: String::new(),
        default_packages: Vec::new(),
        ..environment()
    }
}

#[test]
fn a_list_has_a_line_per_environment() {
    let all =
        EnvironmentList { catalog_version: "2.1.0".to_owned(), environments: vec![environment(), missing()] };
    insta::assert_snapshot!(listed(&all), @r"
    Catalog version: 2.1.0
    debian:12 [installed] Debian with git (shell: sh; 312 MiB)
    debian:12 [not installed] (shell: sh)
    ");
}

#[test]
fn an_empty_list_says_so() {
    let none = EnvironmentList { catalog_version: "2.1.0".to_owned(), environments: Vec::new() };
    insta::assert_snapshot!(listed(&none), @r"
    Catalog version: 2.1.0
    No environments found.
    ");
}

#[test]
fn an_installed_environment_is_shown_in_full() {
    insta::assert_snapshot!(inspected(&environment()), @r"
    Environment: debian:12
    Version: 1.0.0
    Distribution: debian 12
    Installed: yes
    Shell: sh
    Cache dir: /c
    Default packages: bash, git
    Description: Debian with git
    Install dir: /c/linux-x86_64/debian_12-1.0.0
    Install manifest: /c/linux-x86_64/debian_12-1.0.0/environment.json
    Size: 312 MiB
    OCI source: registry.example/pyro/debian-12:1.0.0
    ");
}

#[test]
fn what_is_not_known_is_left_out() {
    insta::assert_snapshot!(inspected(&missing()), @r"
    Environment: debian:12
    Version: 1.0.0
    Distribution: debian 12
    Installed: no
    Shell: sh
    Cache dir: /c
    ");
}

#[test]
fn a_pull_shows_the_images_too() {
    let pull = PulledEnvironment {
        environment: environment(),
        kernel_image: "/c/vmlinux".into(),
        rootfs_image: "/c/rootfs.ext4".into(),
        source: "oci://registry.example/pyro/debian-12@sha256:00".to_owned(),
    };
    insta::assert_snapshot!(pulled(&pull), @r"
    Pulled: debian:12
    Version: 1.0.0
    Distribution: debian 12
    Installed: yes
    Shell: sh
    Cache dir: /c
    Default packages: bash, git
    Description: Debian with git
    Install dir: /c/linux-x86_64/debian_12-1.0.0
    Install manifest: /c/linux-x86_64/debian_12-1.0.0/environment.json
    Size: 312 MiB
    Kernel image: /c/vmlinux
    Rootfs image: /c/rootfs.ext4
    OCI source: registry.example/pyro/debian-12:1.0.0
    ");
}

#[test]
fn a_prune_counts_in_words() {
    let report = |names: &[&str]| Pruned {
        environments: PruneReport {
            deleted_environment_dirs: names.iter().copied().map(Into::into).collect(),
            count: names.len() as _,
        },
        deleted_templates: names.len(),
    };
    assert_eq!(pruned(&report(&[])), "Deleted 0 cached environment entries.\n");
    assert_eq!(pruned(&report(&["a"])), "Deleted 1 cached environment entry.\n- a\nDeleted 1 template.\n");
    assert_eq!(
        pruned(&report(&["a", "b"])),
        "Deleted 2 cached environment entries.\n- a\n- b\nDeleted 2 templates.\n"
    );
}

#[test]
fn a_removal_says_what_it_freed() {
    let removed = |deleted_templates| RemovedEnvironment {
        environment: "debian:12".to_owned(),
        freed_bytes: (312 << 20) - 1,
        deleted_templates,
    };
    assert_eq!(removed_text(&removed(0)), "Removed: debian:12 (312 MiB)\n");
    assert_eq!(removed_text(&removed(2)), "Removed: debian:12 (312 MiB)\nDeleted 2 templates.\n");
}
