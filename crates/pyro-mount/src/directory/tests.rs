use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fuse_backend_rs::api::filesystem::ROOT_ID;
use rustix::fs::{Mode, mkfifoat};
use tempfile::TempDir;

use super::*;

/// A served directory, next to one that must not be reached.
struct World {
    dir: TempDir,
    served: Directory,
}

const CONTEXT: Context = Context { uid: 1000, gid: 1000, pid: 1 };

impl World {
    fn new(writable: bool) -> Self {
        Self::with(writable, 100)
    }

    fn with(writable: bool, max_open: usize) -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("served")).unwrap();
        fs::create_dir(dir.path().join("secret")).unwrap();
        fs::write(dir.path().join("secret/key"), "secret").unwrap();
        let directory = fs::File::open(dir.path().join("served")).unwrap().into();
        let export = Export { directory, writable, owner: 7, max_open };
        Self { served: Directory::new(export).unwrap(), dir }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join("served").join(path)
    }

    fn look_up(&self, parent: u64, name: &str) -> io::Result<u64> {
        let entry = self.served.lookup(&CONTEXT, parent, &CString::new(name).unwrap())?;
        if entry.inode == 0 { Err(Errno::NOENT.into()) } else { Ok(entry.inode) }
    }

    fn walk(&self, path: &str) -> io::Result<u64> {
        path.split('/').try_fold(ROOT_ID, |parent, name| self.look_up(parent, name))
    }

    fn open(&self, inode: u64, flags: OFlags) -> io::Result<u64> {
        Ok(self.served.open(&CONTEXT, inode, flags.bits(), 0)?.0.unwrap())
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let inode = self.walk(path)?;
        let handle = self.open(inode, OFlags::RDONLY)?;
        let file = &self.served.handles.get(handle, inode)?.file;
        let mut data = vec![0; 4096];
        let length = rustix::io::pread(file, &mut data, 0)?;
        data.truncate(length);
        self.served.release(&CONTEXT, inode, 0, handle, false, false, None)?;
        Ok(data)
    }

    fn names(&self, inode: u64) -> Vec<String> {
        let handle = self.served.opendir(&CONTEXT, inode, 0).unwrap().0.unwrap();
        let mut names = Vec::new();
        let mut add = |entry: DirEntry<'_>, found: Entry| {
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            self.served.forget(&CONTEXT, found.inode, 1);
            Ok(1)
        };
        self.served.readdirplus(&CONTEXT, inode, handle, 4096, 0, &mut add).unwrap();
        self.served.releasedir(&CONTEXT, inode, 0, handle).unwrap();
        names.sort();
        names
    }

    fn create(&self, parent: u64, name: &CStr, mode: u32) -> io::Result<u64> {
        let flags = (OFlags::WRONLY | OFlags::CREATE).bits();
        let arguments = CreateIn { flags, mode, umask: 0o022, fuse_flags: 0 };
        let (entry, handle, ..) = self.served.create(&CONTEXT, parent, name, arguments)?;
        self.served.release(&CONTEXT, entry.inode, 0, handle.unwrap(), false, false, None)?;
        Ok(entry.inode)
    }
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<Errno> {
    Errno::from_io_error(&result.unwrap_err())
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_are_read_as_they_are() {
    let world = World::new(false);
    fs::create_dir_all(world.path("a/b")).unwrap();
    fs::write(world.path("a/b/file"), "content").unwrap();
    assert_eq!(world.read("a/b/file").unwrap(), b"content");
    assert_eq!(world.names(world.walk("a").unwrap()), ["b"]);
    let (attr, _) = world.served.getattr(&CONTEXT, world.walk("a/b/file").unwrap(), None).unwrap();
    assert_eq!((attr.st_uid, attr.st_gid, attr.st_size), (7, 7, 7));
    fs::write(world.path("a/b/file"), "changed").unwrap();
    assert_eq!(world.read("a/b/file").unwrap(), b"changed");
    assert_eq!(errno(world.walk("a/none")), Some(Errno::NOENT));
}

#[test]
fn an_open_file_goes_on_working_when_the_host_removes_or_replaces_it() {
    let world = World::with(true, 2);
    for name in ["file", "a", "b", "c"] {
        fs::write(world.path(name), "content").unwrap();
    }
    let inode = world.walk("file").unwrap();
    let handle = world.open(inode, OFlags::RDWR).unwrap();
    fs::remove_file(world.path("file")).unwrap();
    fs::write(world.path("file"), "another one").unwrap();
    // The way to it is not kept open any more.
    for name in ["a", "b", "c"] {
        world.walk(name).unwrap();
    }
    assert!(crate::nodes::is_stale(&world.served.nodes.get(inode).unwrap_err()));
    let size = |inode| world.served.getattr(&CONTEXT, inode, None).map(|(attr, _)| attr.st_size);
    assert_eq!(size(inode).unwrap(), 7);
    let mut shorter = Entry::default().attr;
    shorter.st_size = 3;
    world.served.setattr(&CONTEXT, inode, shorter, Some(handle), SetattrValid::SIZE).unwrap();
    assert_eq!(size(inode).unwrap(), 3);
    let again = world.open(inode, OFlags::RDONLY).unwrap();
    world.served.release(&CONTEXT, inode, 0, again, false, false, None).unwrap();
    assert_ne!(world.walk("file").unwrap(), inode);
    assert_eq!(fs::read(world.path("file")).unwrap(), b"another one");
    world.served.release(&CONTEXT, inode, 0, handle, false, false, None).unwrap();
    assert_eq!(errno(size(inode)), Some(Errno::STALE));
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let world = World::new(true);
    fs::create_dir(world.path("a")).unwrap();
    let inner = world.walk("a").unwrap();
    for parent in [ROOT_ID, inner] {
        for name in ["..", ".", "../secret", "a/../../secret", "/etc/passwd"] {
            let name = CString::new(name).unwrap();
            assert_eq!(errno(world.served.lookup(&CONTEXT, parent, &name)), Some(Errno::INVAL), "{name:?}");
            assert_eq!(errno(world.create(parent, &name, 0o644)), Some(Errno::INVAL), "{name:?}");
            assert_eq!(errno(world.served.unlink(&CONTEXT, parent, &name)), Some(Errno::INVAL));
            let moved = world.served.rename(&CONTEXT, ROOT_ID, c"a", parent, &name, 0);
            assert_eq!(errno(moved), Some(Errno::INVAL));
        }
    }
    assert!(world.names(ROOT_ID) == ["a"]);
}

#[test]
fn symbolic_links_are_shown_and_never_followed() {
    let world = World::new(true);
    symlink("../secret", world.path("out")).unwrap();
    symlink("../secret/key", world.path("key")).unwrap();
    let out = world.walk("out").unwrap();
    assert_eq!(world.served.readlink(&CONTEXT, out).unwrap(), b"../secret");
    assert_eq!(errno(world.look_up(out, "key")), Some(Errno::NOTDIR));
    for inode in [out, world.walk("key").unwrap()] {
        assert_eq!(errno(world.open(inode, OFlags::RDONLY)), Some(Errno::LOOP));
        assert!(world.served.opendir(&CONTEXT, inode, 0).is_err());
        let mut attr = Entry::default().attr;
        attr.st_mode = 0o777;
        let changed = world.served.setattr(&CONTEXT, inode, attr, None, SetattrValid::MODE);
        assert_eq!(errno(changed), Some(Errno::OPNOTSUPP));
    }
    // Programs that copy links set their owner, which has no effect, and their times.
    let key = world.walk("key").unwrap();
    let (inside, outside) = (world.path("key"), world.dir.path().join("secret/key"));
    let times = |path: &Path| fs::symlink_metadata(path).map(|it| (it.mtime(), it.mtime_nsec())).unwrap();
    let untouched = times(&outside);
    let mut attr = Entry::default().attr;
    (attr.st_uid, attr.st_mtime, attr.st_mtime_nsec) = (1, 1_000_000, 5);
    let (shown, _) = world.served.setattr(&CONTEXT, key, attr, None, SetattrValid::UID).unwrap();
    assert_eq!(shown.st_uid, 7);
    world.served.setattr(&CONTEXT, key, attr, None, SetattrValid::MTIME).unwrap();
    assert_eq!((times(&inside), times(&outside)), ((1_000_000, 5), untouched));
    // One that the guest makes may lead anywhere.
    world.served.symlink(&CONTEXT, c"/etc/passwd", ROOT_ID, c"link").unwrap();
    assert!(world.read("link").is_err());
}

/// The host replaces a directory by a link while the guest uses it.
#[test]
fn a_directory_that_becomes_a_link_does_not_lead_out() {
    for max_open in [100, 1] {
        let world = World::with(true, max_open);
        fs::create_dir(world.path("a")).unwrap();
        let directory = world.walk("a").unwrap();
        fs::create_dir(world.path("b")).unwrap();
        world.walk("b").unwrap();
        fs::rename(world.path("a"), world.path("old")).unwrap();
        symlink("../secret", world.path("a")).unwrap();
        let found = errno(world.look_up(directory, "key"));
        assert!(matches!(found, Some(Errno::NOENT | Errno::STALE)), "{found:?}");
        assert!(world.read("a/key").is_err());
    }
}

#[test]
fn devices_and_fifos_are_listed_and_never_opened_or_made() {
    let world = World::new(true);
    mkfifoat(rustix::fs::CWD, world.path("fifo"), Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.path("socket")).unwrap();
    assert_eq!(world.names(ROOT_ID), ["fifo", "socket"]);
    for name in ["fifo", "socket"] {
        let inode = world.walk(name).unwrap();
        for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
            assert_eq!(errno(world.open(inode, flags)), Some(Errno::NXIO), "{name}");
        }
    }
    for kind in [libc::S_IFIFO, libc::S_IFCHR, libc::S_IFBLK, libc::S_IFSOCK] {
        let made = world.served.mknod(&CONTEXT, ROOT_ID, c"new", kind | 0o666, 0x0103, 0);
        assert_eq!(errno(made), Some(Errno::PERM));
    }
    let whiteout = world.served.rename(&CONTEXT, ROOT_ID, c"fifo", ROOT_ID, c"x", 4);
    assert_eq!(errno(whiteout), Some(Errno::INVAL), "it would make a device");
    world.served.mknod(&CONTEXT, ROOT_ID, c"new", libc::S_IFREG | 0o644, 0, 0).unwrap();
}

#[test]
fn a_read_only_directory_is_not_changed_in_any_way() {
    let world = World::new(false);
    fs::write(world.path("file"), "content").unwrap();
    fs::create_dir(world.path("a")).unwrap();
    let file = world.walk("file").unwrap();
    let served = &world.served;
    let attr = Entry::default().attr;
    let all = SetattrValid::all();
    let results = [
        errno(world.open(file, OFlags::WRONLY)),
        errno(world.open(file, OFlags::RDWR)),
        errno(world.open(file, OFlags::RDONLY | OFlags::TRUNC)),
        errno(world.create(ROOT_ID, c"new", 0o644)),
        errno(world.create(ROOT_ID, c"file", 0o644)),
        errno(served.mknod(&CONTEXT, ROOT_ID, c"new", libc::S_IFREG, 0, 0)),
        errno(served.mkdir(&CONTEXT, ROOT_ID, c"new", 0o755, 0)),
        errno(served.symlink(&CONTEXT, c"x", ROOT_ID, c"new")),
        errno(served.link(&CONTEXT, file, ROOT_ID, c"new")),
        errno(served.unlink(&CONTEXT, ROOT_ID, c"file")),
        errno(served.rmdir(&CONTEXT, ROOT_ID, c"a")),
        errno(served.rename(&CONTEXT, ROOT_ID, c"file", ROOT_ID, c"new", 0)),
        errno(served.setattr(&CONTEXT, file, attr, None, all)),
    ];
    assert_eq!(results, [Some(Errno::ROFS); 13]);
    let handle = world.open(file, OFlags::RDONLY).unwrap();
    assert_eq!(errno(served.fallocate(&CONTEXT, file, handle, 0, 0, 10)), Some(Errno::ROFS));
    assert_eq!(fs::read(world.path("file")).unwrap(), b"content");
    assert_eq!(world.names(ROOT_ID), ["a", "file"]);
}

/// A flag that would create an unnamed file is not passed on.
#[test]
fn opening_takes_no_flags_that_create() {
    let world = World::new(false);
    fs::create_dir(world.path("a")).unwrap();
    let directory = world.walk("a").unwrap();
    assert!(world.open(directory, OFlags::TMPFILE).is_err());
    assert!(world.served.opendir(&CONTEXT, directory, OFlags::TMPFILE.bits() | 2).is_ok());
    assert_eq!(world.served.open_flags(OFlags::CREATE.bits()).unwrap(), OFlags::RDONLY);
}

#[test]
fn what_the_guest_makes_has_neither_its_owner_nor_special_bits() {
    let world = World::new(true);
    let file = world.create(ROOT_ID, c"file", 0o6755).unwrap();
    world.served.mkdir(&CONTEXT, ROOT_ID, c"dir", 0o3777, 0o022).unwrap();
    assert_eq!((mode_of(&world.path("file")), mode_of(&world.path("dir"))), (0o755, 0o755));
    let mut attr = Entry::default().attr;
    (attr.st_mode, attr.st_uid, attr.st_gid) = (0o6711, 1, 1);
    let valid = SetattrValid::MODE | SetattrValid::UID | SetattrValid::GID;
    let (shown, _) = world.served.setattr(&CONTEXT, file, attr, None, valid).unwrap();
    assert_eq!((shown.st_uid, shown.st_mode & 0o7777), (7, 0o711));
    let (made, own) = (fs::metadata(world.path("file")).unwrap(), fs::metadata(world.dir.path()).unwrap());
    assert_eq!((made.uid(), made.mode() & 0o7777), (own.uid(), 0o711));
}

#[test]
fn sizes_and_times_are_set() {
    let world = World::new(true);
    let file = world.create(ROOT_ID, c"file", 0o644).unwrap();
    let mut attr = Entry::default().attr;
    (attr.st_size, attr.st_mtime, attr.st_mtime_nsec) = (5000, 1_000_000, 5);
    let valid = SetattrValid::SIZE | SetattrValid::MTIME;
    world.served.setattr(&CONTEXT, file, attr, None, valid).unwrap();
    let made = fs::metadata(world.path("file")).unwrap();
    assert_eq!((made.len(), made.mtime(), made.mtime_nsec()), (5000, 1_000_000, 5));
    attr.st_size = -1;
    let negative = world.served.setattr(&CONTEXT, file, attr, None, SetattrValid::SIZE);
    assert_eq!(errno(negative), Some(Errno::INVAL));
}

#[test]
fn files_are_renamed_linked_and_removed() {
    let world = World::with(true, 2);
    fs::create_dir_all(world.path("a/b")).unwrap();
    fs::write(world.path("a/b/file"), "content").unwrap();
    let file = world.walk("a/b/file").unwrap();
    world.served.link(&CONTEXT, file, ROOT_ID, c"link").unwrap();
    assert_eq!(world.walk("link").unwrap(), file, "it is the same file");
    world.served.rename(&CONTEXT, ROOT_ID, c"a", ROOT_ID, c"moved", 0).unwrap();
    let directory = world.walk("moved").unwrap();
    let inner = world.look_up(directory, "b").unwrap();
    // Others take their place among what is open.
    for name in ["x", "y", "z"] {
        fs::write(world.path(name), "").unwrap();
        world.walk(name).unwrap();
    }
    assert_eq!(world.names(inner), ["file"], "it is found again by its new name");
    world.served.unlink(&CONTEXT, inner, c"file").unwrap();
    world.served.rmdir(&CONTEXT, directory, c"b").unwrap();
    assert_eq!(world.names(directory), [""; 0]);
    let replaced = world.served.rename(&CONTEXT, ROOT_ID, c"x", ROOT_ID, c"y", 1);
    assert_eq!(errno(replaced), Some(Errno::EXIST), "it must not replace anything");
}

#[test]
fn few_files_are_open_however_many_are_looked_up() {
    let world = World::with(false, 4);
    for directory in 0..10 {
        fs::create_dir(world.path(&directory.to_string())).unwrap();
        for file in 0..10 {
            fs::write(world.path(&format!("{directory}/{file}")), format!("{directory}{file}")).unwrap();
        }
    }
    for _ in 0..2 {
        for number in 0..100 {
            let read = world.read(&format!("{}/{}", number / 10, number % 10)).unwrap();
            assert_eq!(read, format!("{}{}", number / 10, number % 10).into_bytes());
            assert!(world.served.nodes.open_count() <= 4);
        }
    }
    assert_eq!(world.served.nodes.count(), 111);
    let first = world.walk("0/0").unwrap();
    world.served.forget(&CONTEXT, first, u64::MAX);
    assert_eq!(world.served.nodes.count(), 110);
    assert_eq!(errno(world.open(first, OFlags::RDONLY)), Some(Errno::STALE));
    let handles: Vec<_> = (0..5).map(|_| world.open(world.walk("0/1").unwrap(), OFlags::RDONLY)).collect();
    assert!(handles[..4].iter().all(Result::is_ok));
    assert_eq!(errno(handles.into_iter().next_back().unwrap()), Some(Errno::NFILE));
}

/// What the host has put in the place of a file is another file.
#[test]
fn a_file_that_was_replaced_is_not_the_one_that_was_looked_up() {
    let world = World::with(false, 1);
    fs::write(world.path("file"), "old").unwrap();
    fs::write(world.path("other"), "other").unwrap();
    let file = world.walk("file").unwrap();
    world.walk("other").unwrap();
    fs::write(world.path("new"), "new").unwrap();
    fs::rename(world.path("new"), world.path("file")).unwrap();
    assert_eq!(errno(world.open(file, OFlags::RDONLY)), Some(Errno::STALE));
    assert_eq!(world.read("file").unwrap(), b"new");
}

#[test]
fn a_file_that_has_not_changed_may_stay_in_the_guests_cache() {
    let world = World::new(false);
    fs::write(world.path("file"), "content").unwrap();
    let file = world.walk("file").unwrap();
    let keeps = || {
        let (handle, options, _) = world.served.open(&CONTEXT, file, 0, 0).unwrap();
        world.served.release(&CONTEXT, file, 0, handle.unwrap(), false, false, None).unwrap();
        options.contains(OpenOptions::KEEP_CACHE)
    };
    assert_eq!([keeps(), keeps()], [false, true]);
    fs::write(world.path("file"), "another content").unwrap();
    assert_eq!([keeps(), keeps()], [false, true]);
}

#[test]
fn files_of_the_kernel_are_not_served() {
    let directory = fs::File::open("/").unwrap().into();
    let export = Export { directory, writable: false, owner: 0, max_open: 10 };
    let served = Directory::new(export).unwrap();
    assert_eq!(errno(served.lookup(&CONTEXT, ROOT_ID, c"proc")), Some(Errno::ACCESS));
}

#[test]
fn a_directory_whose_files_are_made_by_the_kernel_is_not_served() {
    for path in ["/proc", "/proc/self", "/sys"] {
        let directory = fs::File::open(path).unwrap().into();
        let export = Export { directory, writable: false, owner: 0, max_open: 10 };
        let refused = Directory::new(export).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{path}");
    }
}
