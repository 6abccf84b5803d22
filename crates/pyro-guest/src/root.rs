//! The root filesystem: a shared read-only base image under a private writable layer.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pyro_wire::{BASE_DISK_SERIAL, Failure, LAYER_DISK_SERIAL, Preparation};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_move, mount_remount};

use crate::boot::mount_virtual;
use crate::failure::During;
use crate::workspace;

/// Where the kernel lists the disks.
const DISKS: &str = "/sys/block";
const BASE: &str = "/base";
const LAYER: &str = "/layer";
const UPPER: &str = "/layer/upper";
const NEW_ROOT: &str = "/root";

/// Limits of the kernel that tools which watch many files, such as bundlers and editors, soon exceed.
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/fs/inotify/max_user_instances", "1024"),
    ("/proc/sys/fs/inotify/max_user_watches", "524288"),
];

/// The mount of the writable layer. No path leads to it once the root is in place.
static LAYER_MOUNT: OnceLock<OwnedFd> = OnceLock::new();

/// Assembles the root from both disks and makes it this process's root.
pub(crate) fn enter(preparation: &Preparation) -> Result<(), Failure> {
    let filesystem = preparation.base_filesystem.as_str();
    for dir in [BASE, LAYER, NEW_ROOT] {
        fs::create_dir_all(dir).during(format!("creating {dir}"))?;
    }
    let (base_disk, layer_disk) = find_disks(Path::new(DISKS))?;
    mount(&base_disk, BASE, filesystem, MountFlags::RDONLY | MountFlags::NOATIME, None)
        .during(format!("mounting the base image ({})", filesystem))?;
    mount(&layer_disk, LAYER, "ext4", MountFlags::NOATIME, None).during("mounting the writable layer")?;
    let layer = openat(CWD, LAYER, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .during("opening the writable layer")?;
    let _ = LAYER_MOUNT.set(layer);
    for dir in [UPPER, "/layer/work"] {
        fs::create_dir_all(dir).during(format!("creating {dir}"))?;
    }
    let workspace = workspace::in_layer(Path::new(BASE), Path::new(LAYER), Path::new(UPPER))?;
    mount(
        "overlay",
        NEW_ROOT,
        "overlay",
        MountFlags::NOATIME,
        c"lowerdir=/base,upperdir=/layer/upper,workdir=/layer/work",
    )
    .during("joining base image and writable layer")?;
    if let Some(directory) = workspace {
        workspace::mount(&directory, Path::new(NEW_ROOT))?;
    }

    for dir in ["/proc", "/sys", "/dev"] {
        let target = format!("{NEW_ROOT}{dir}");
        fs::create_dir_all(&target).during(format!("creating {target}"))?;
        mount_move(dir, &target).during(format!("moving {dir}"))?;
    }
    rustix::process::chdir(NEW_ROOT).during("entering the root")?;
    mount_move(".", "/").during("moving the root into place")?;
    rustix::process::chroot(".").during("changing the root")?;
    rustix::process::chdir("/").during("entering the root")?;
    // Programs that unshare mounts expect a shared root to begin with, as systemd sets it up.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .during("sharing the mount tree")?;
    furnish()
}

/// The devices of the base image and of the writable layer.
fn find_disks(listed: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let by_serial = || Ok((find_disk(listed, BASE_DISK_SERIAL)?, find_disk(listed, LAYER_DISK_SERIAL)?));
    by_serial().or_else(|failure| find_by_access(listed).ok_or(failure))
}

/// The only virtual disk that is read-only, and the only other one.
fn find_by_access(listed: &Path) -> Option<(PathBuf, PathBuf)> {
    let (mut read_only, mut writable) = (Vec::new(), Vec::new());
    for disk in fs::read_dir(listed).ok()? {
        let disk = disk.ok()?;
        if disk.file_name().as_encoded_bytes().starts_with(b"vd") {
            let kind = match fs::read_to_string(disk.path().join("ro")).ok()?.trim() {
                "0" => &mut writable,
                _ => &mut read_only,
            };
            kind.push(Path::new("/dev").join(disk.file_name()));
        }
    }
    match (read_only.as_slice(), writable.as_slice()) {
        ([base], [layer]) => Some((base.clone(), layer.clone())),
        _ => None,
    }
}

/// The device of the disk with this serial number.
fn find_disk(listed: &Path, serial: &str) -> Result<PathBuf, Failure> {
    let step = || format!("looking for disk {serial}");
    for disk in fs::read_dir(listed).during(step())? {
        let disk = disk.during(step())?;
        if fs::read_to_string(disk.path().join("serial")).is_ok_and(|text| text.trim() == serial) {
            return Ok(Path::new("/dev").join(disk.file_name()));
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound)).during(step())
}

/// Makes the mounts and links that programs expect.
fn furnish() -> Result<(), Failure> {
    let secure = MountFlags::NOSUID | MountFlags::NODEV;
    mount_virtual(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "mode=0620,gid=5,ptmxmode=0666",
    )?;
    mount_virtual("tmpfs", "/dev/shm", secure, "mode=1777")?;
    mount_virtual("tmpfs", "/run", secure, "mode=0755")?;
    mount_control_groups(secure | MountFlags::NOEXEC)?;
    // A kernel may lack them. Programs that need them say so.
    if let Err(failure) = mount_virtual("mqueue", "/dev/mqueue", secure | MountFlags::NOEXEC, "") {
        eprintln!("pyro-guest: {failure}");
    }
    for (setting, value) in SETTINGS {
        if let Err(error) = fs::write(setting, value) {
            eprintln!("pyro-guest: cannot write {setting}: {error}");
        }
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        symlink(target, link).during(format!("linking {link}"))?;
    }
    fs::create_dir_all("/run/lock").during("creating /run/lock")
}

/// Mounts the control groups. Every command enters one, which takes a grace period of the kernel's RCU unless the hierarchy
/// favours such changes. Kernels before 6.0 do not know that option.
fn mount_control_groups(flags: MountFlags) -> Result<(), Failure> {
    let mount = |options| mount_virtual("cgroup2", "/sys/fs/cgroup", flags, options);
    mount("favordynmods").or_else(|_| mount(""))
}

/// Makes the root read-only, and with it the layer, whose filesystem is then marked as clean. Everything must have
/// been written and closed before.
pub(crate) fn seal() -> Result<(), Failure> {
    mount_remount("/", MountFlags::RDONLY, c"").during("remounting the root read-only")?;
    let Some(layer) = LAYER_MOUNT.get() else { return Ok(()) };
    // Its only name is this process's directory.
    rustix::process::fchdir(layer).during("entering the writable layer")?;
    mount_remount(".", MountFlags::RDONLY, c"").during("remounting the writable layer read-only")
}

#[cfg(test)]
mod tests {
    use pyro_wire::FailureKind;

    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial_number() {
        let dir = tempfile::tempdir().unwrap();
        for (disk, serial) in [("vda", LAYER_DISK_SERIAL), ("vdb", BASE_DISK_SERIAL)] {
            fs::create_dir(dir.path().join(disk)).unwrap();
            fs::write(dir.path().join(disk).join("serial"), serial).unwrap();
        }
        fs::create_dir(dir.path().join("loop0")).unwrap();
        assert_eq!(find_disk(dir.path(), BASE_DISK_SERIAL).unwrap(), Path::new("/dev/vdb"));
        assert_eq!(find_disk(dir.path(), LAYER_DISK_SERIAL).unwrap(), Path::new("/dev/vda"));
        assert_eq!(find_disks(dir.path()).unwrap(), ("/dev/vdb".into(), "/dev/vda".into()));
        let failure = find_disk(dir.path(), "other").unwrap_err();
        assert_eq!(failure.kind, FailureKind::FileNotFound);
        assert_eq!(failure.step, "looking for disk other");
    }

    #[test]
    fn without_serial_numbers_the_base_image_is_what_cannot_be_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let add = |disk: &str, read_only: &str| {
            fs::create_dir(dir.path().join(disk)).unwrap();
            fs::write(dir.path().join(disk).join("ro"), read_only).unwrap();
            fs::write(dir.path().join(disk).join("serial"), "25606590").unwrap();
        };
        add("loop0", "0\n");
        add("vda", "0\n");
        let failure = find_disks(dir.path()).unwrap_err();
        assert_eq!(failure.step, "looking for disk pyro-base");
        add("vdb", "1\n");
        assert_eq!(find_disks(dir.path()).unwrap(), ("/dev/vdb".into(), "/dev/vda".into()));
        add("vdc", "1\n");
        find_disks(dir.path()).unwrap_err();
    }
}
