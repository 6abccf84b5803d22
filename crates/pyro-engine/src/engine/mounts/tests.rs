use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::MountRoot;

/// Directories `a`, `a/below`, and `b`, a link to `a/below`, and the settings of an engine next to them.
struct World {
    dir: TempDir,
    config: Config,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["a/below", "b", "own/state", "own/cache"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        symlink("a/below", root.join("link")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let config = Config::new(root.join("own/state"), root.join("own/cache"), root.join("pyro"));
        Self { dir, config }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().canonicalize().unwrap().join(name).to_str().unwrap().to_owned()
    }

    fn mount(&self, name: &str, writable: bool) -> DirectoryMount {
        DirectoryMount { host: self.path(name), guest: "/x".to_owned(), writable, uid: 0 }
    }

    fn engine(&self) -> Engine {
        Engine::new(self.config.clone())
    }

    /// Returns the path of what would be mounted, or why nothing would be.
    async fn checked(&self, name: &str, writable: bool) -> Result<String, String> {
        let checked = self.engine().check_mounts(&[self.mount(name, writable)]).await;
        let path = |mut mounts: Vec<DirectoryMount>| mounts.remove(0).host;
        checked.map(path).map_err(|error| error.to_string())
    }

    fn below(&self, names: &[&str]) -> MountRoots {
        MountRoots::Below(names.iter().map(|name| self.path(name).into()).collect())
    }

    fn client(&self, name: &str, writable: bool) -> MountRoot {
        MountRoot { host: self.path(name), writable }
    }
}

#[tokio::test]
async fn a_directory_is_mounted_by_its_true_path() {
    let world = World::new();
    assert_eq!(world.checked("link", true).await, Ok(world.path("a/below")));
    for name in ["missing", "file"] {
        assert!(world.checked(name, false).await.unwrap_err().contains("cannot mount"), "{name}");
    }
}

#[tokio::test]
async fn directories_of_the_kernel_and_of_pyro_are_never_mounted() {
    let world = World::new();
    for name in ["/", "/proc", "/proc/self", "/sys", "/dev", "own", "own/state", "own/cache"] {
        assert!(world.checked(name, false).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn pyro_mounts_limits_what_is_mounted_by_true_paths() {
    let mut world = World::new();
    world.config.mount_roots = world.below(&["link"]);
    assert_eq!(world.checked("a/below", true).await, Ok(world.path("a/below")));
    for name in ["a", "b"] {
        assert!(world.checked(name, false).await.unwrap_err().contains("PYRO_MOUNTS does not allow it"));
    }
    world.config.mount_roots = world.below(&["b/../missing"]);
    assert!(world.checked("a", false).await.is_err());
    world.config.mount_roots = MountRoots::Off;
    assert!(world.checked("a", false).await.unwrap_err().contains("PYRO_MOUNTS is off"));
}

#[tokio::test]
async fn clients_mount_what_both_their_server_and_pyro_mounts_allow() {
    let mut world = World::new();
    world.config.client_mounts = Some(vec![world.client("a", false), world.client("b", true)]);
    assert!(world.checked("a/below", false).await.is_ok());
    assert!(world.checked("b", true).await.is_ok());
    assert!(world.checked("a", true).await.unwrap_err().contains("read-only (--allow-mount)"));
    world.config.mount_roots = world.below(&["link", "b"]);
    assert!(world.checked("link", false).await.is_ok());
    assert!(world.checked("a", false).await.unwrap_err().contains("PYRO_MOUNTS"));
    world.config.client_mounts = Some(Vec::new());
    assert!(world.checked("b", false).await.unwrap_err().contains("--allow-mount"));
}

#[test]
fn a_directory_that_was_replaced_by_a_link_is_not_opened_at_a_later_start() {
    let world = World::new();
    let engine = world.engine();
    let opened = || open(&engine.shared, &world.mount("a/below", false));
    opened().unwrap();
    fs::rename(world.path("a"), world.path("moved")).unwrap();
    assert_eq!(opened().unwrap_err().kind, ErrorKind::BootFailed);
    symlink("moved", world.path("a")).unwrap();
    assert!(opened().is_err());
    assert!(open_without_links(Path::new(&world.path("a/below"))).is_err());
}

#[test]
fn what_was_allowed_when_a_guest_was_created_is_checked_again_at_each_start() {
    let mut world = World::new();
    world.config.mount_roots = world.below(&["b"]);
    assert!(open(&world.engine().shared, &world.mount("a", false)).is_err());
    assert!(open(&world.engine().shared, &world.mount("b", false)).is_ok());
}
