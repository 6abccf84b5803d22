use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

#[test]
fn directories_that_clients_may_mount_are_found_by_their_true_paths() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().canonicalize().unwrap();
    fs::create_dir_all(base.join("srv/a")).unwrap();
    fs::create_dir_all(base.join("etc")).unwrap();
    fs::write(base.join("file"), "").unwrap();
    symlink("../etc", base.join("srv/link")).unwrap();
    symlink("srv", base.join("alias")).unwrap();
    let find = |text: &str, limit: &MountRoots| {
        let mut root: MountRoot = base.join(text).to_str().unwrap().parse().unwrap();
        find_mount_root(&mut root, limit).ok()?;
        let found = std::path::Path::new(&root.host).strip_prefix(&base).unwrap();
        Some((found.to_str().unwrap().to_owned(), root.writable))
    };
    let found = |path: &str, writable| Some((path.to_owned(), writable));
    assert_eq!(find("srv/link", &MountRoots::Any), found("etc", false));
    assert_eq!(find("srv:rw", &MountRoots::Any), found("srv", true));
    assert_eq!(find("file", &MountRoots::Any), None);
    assert_eq!(find("missing", &MountRoots::Any), None);
    assert_eq!(find("srv", &MountRoots::Off), None);

    let below = MountRoots::Below(vec![base.join("alias")]);
    assert_eq!(find("srv/a:ro", &below), found("srv/a", false));
    assert_eq!(find("srv/../etc", &below), None);
    assert_eq!(find("srv/link", &below), None);
    // Of what is below it, the engine allows what PYRO_MOUNTS names.
    assert_eq!(find("", &below), found("", false));
}

#[test]
fn clients_that_may_mount_directories_find_their_own_tasks() {
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: McpServeArgs,
    }
    let caller_of = |words: &[&str]| {
        let words = ["pyro"].iter().chain(words);
        caller(&Line::try_parse_from(words).unwrap().args).unwrap()
    };
    let sees_all =
        |words: &[&str]| matches!(caller_of(words), Caller::Client { visibility: Visibility::All, .. });
    assert!(sees_all(&[]));
    assert!(!sees_all(&["--allow-mount", "/srv"]));
    assert!(sees_all(&["--allow-mount", "/srv", "--tasks", "all"]));
}
