//! The kernel modules that a guest loads from its initrd, in an order that satisfies their dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use object::{Object, ObjectSection};
use thiserror::Error;

/// Modules that the guest needs before it can access its disks and its host. The base image's file system is included;
/// ext4, for the writable layer, is built into Debian's kernel.
pub(crate) const WANTED: [&str; 11] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    // In place of the console and the network where the VMM is Firecracker.
    "vmw_vsock_virtio_transport",
    "tun",
    "overlay",
    "libcrc32c",
    "erofs",
    "fuse",
];

/// Where the guest finds the modules.
const DIR: &str = "lib/modules/pyro";

/// The archive's length is a multiple of this, so that another archive can be placed before or after it.
const ALIGNMENT: usize = 512;

/// Why the dependencies of a module are unknown.
#[derive(Debug, Error)]
pub(crate) enum ModuleError {
    /// It is not an object file that can be read.
    #[error(transparent)]
    Object(#[from] object::Error),
    /// The section with its properties is missing.
    #[error("it has no .modinfo section")]
    NoModinfo,
}

/// The dependencies of a module lead back to it.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("circular dependency of kernel module {module}")]
pub(crate) struct CircularDependency {
    module: String,
}

/// Returns a module name as the kernel compares it: the file `virtio-rng.ko` is the module `virtio_rng`.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the module name in a path such as `kernel/fs/erofs/erofs.ko`, if the path is a module's.
pub(crate) fn name_of_file(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    Some(canonical(file.strip_suffix(".ko")?))
}

/// Returns the names on the `depends=` lines of a module's `.modinfo` section.
pub(crate) fn dependencies(module: &[u8]) -> Result<Vec<String>, ModuleError> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").ok_or(ModuleError::NoModinfo)?;
    Ok(parse_depends(section.data()?))
}

fn parse_depends(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|field| field.strip_prefix(b"depends="))
        .flat_map(|names| names.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| canonical(&String::from_utf8_lossy(name)))
        .collect()
}

/// Orders `wanted` and all of its dependencies so that every module follows its dependencies.
///
/// `load` returns a module's dependencies, or `None` for a module that is built into the kernel.
pub(crate) fn load_order<E: From<CircularDependency>>(
    wanted: &[&str],
    mut load: impl FnMut(&str) -> Result<Option<Vec<String>>, E>,
) -> Result<Vec<String>, E> {
    let mut known: BTreeMap<String, Option<Vec<String>>> = BTreeMap::new();
    let mut done: BTreeSet<String> = BTreeSet::new();
    let mut order = Vec::new();
    // Use an explicit stack: the nesting depth comes from the archive's data.
    let mut stack: Vec<String> = wanted.iter().rev().map(|name| canonical(name)).collect();
    while let Some(name) = stack.last().cloned() {
        if done.contains(&name) {
            stack.pop();
            continue;
        }
        let first_visit = !known.contains_key(&name);
        if first_visit {
            known.insert(name.clone(), load(&name)?);
        }
        let missing: Vec<String> = known
            .get(&name)
            .and_then(Option::as_ref)
            .map(|needs| needs.iter().filter(|need| !done.contains(*need)).cloned().collect())
            .unwrap_or_default();
        if missing.is_empty() {
            if known.get(&name).is_some_and(Option::is_some) {
                order.push(name.clone());
            }
            done.insert(name);
            stack.pop();
        } else if first_visit {
            stack.extend(missing.into_iter().rev());
        } else {
            return Err(CircularDependency { module: name }.into());
        }
    }
    Ok(order)
}

/// Packs modules, given in load order, into a cpio archive that depends only on the arguments.
pub(crate) fn pack(modules: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut archive = Archive { bytes: Vec::new(), next_inode: 1 };
    let mut parent = String::new();
    for component in DIR.split('/') {
        if !parent.is_empty() {
            parent.push('/');
        }
        parent.push_str(component);
        archive.add(&parent, 0o040_755, 2, &[])?;
    }
    let mut order = String::new();
    for (index, (name, content)) in modules.iter().enumerate() {
        let file = format!("{index:02}-{name}.ko");
        archive.add(&format!("{DIR}/{file}"), 0o100_644, 1, content)?;
        order.push_str(&file);
        order.push('\n');
    }
    archive.add(&format!("{DIR}/order"), 0o100_644, 1, order.as_bytes())?;
    let mut bytes = cpio::newc::trailer(archive.bytes)?;
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    Ok(bytes)
}

struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, links: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let builder = cpio::newc::Builder::new(name).ino(self.next_inode).mode(mode).nlink(links);
        self.next_inode += 1;
        let mut writer = builder.write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Failed {
        Missing(String),
        Circular(CircularDependency),
    }

    impl From<CircularDependency> for Failed {
        fn from(error: CircularDependency) -> Self {
            Self::Circular(error)
        }
    }

    fn order(wanted: &[&str], graph: &[(&str, &[&str])]) -> Result<Vec<String>, Failed> {
        load_order(wanted, |name| {
            graph
                .iter()
                .find(|(module, _)| *module == name)
                .map(|(_, needs)| Some(needs.iter().map(|need| (*need).to_owned()).collect()))
                .map_or(if name == "builtin" { Ok(None) } else { Err(Failed::Missing(name.to_owned())) }, Ok)
        })
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let graph: [(&str, &[&str]); 4] = [
            ("net", &["failover", "core"]),
            ("failover", &["core", "builtin"]),
            ("core", &[]),
            ("disk", &["core"]),
        ];
        assert_eq!(
            order(&["disk", "net", "disk"], &graph).expect("ordered"),
            ["core", "disk", "failover", "net"]
        );
        assert_eq!(order(&["other"], &graph), Err(Failed::Missing("other".to_owned())));
    }

    #[test]
    fn circles_are_refused() {
        let circular = |module: &str| Err(Failed::Circular(CircularDependency { module: module.to_owned() }));
        assert_eq!(order(&["a"], &[("a", &["b"]), ("b", &["a"])]), circular("a"));
        assert_eq!(order(&["a"], &[("a", &["a"])]), circular("a"));
    }

    #[test]
    fn file_names_give_module_names() {
        assert_eq!(
            name_of_file("kernel/drivers/char/hw_random/virtio-rng.ko").as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(name_of_file("kernel/fs/erofs/erofs.ko.xz"), None);
    }

    #[test]
    fn the_archive_is_deterministic_aligned_and_readable() {
        let modules = vec![("b".to_owned(), b"1".to_vec()), ("a".to_owned(), vec![7; 1001])];
        let bytes = pack(&modules).expect("packed");
        assert_eq!(bytes, pack(&modules).expect("packed"));
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let mut names = Vec::new();
        let mut rest: &[u8] = &bytes;
        loop {
            let mut reader = cpio::newc::Reader::new(rest).expect("an entry");
            if reader.entry().is_trailer() {
                break;
            }
            let name = reader.entry().name().to_owned();
            if name.ends_with("/order") {
                let mut text = String::new();
                io::Read::read_to_string(&mut reader, &mut text).expect("text");
                assert_eq!(text, "00-b.ko\n01-a.ko\n");
            }
            names.push(name);
            rest = reader.finish().expect("whole entry");
        }
        let expected = ["lib", "lib/modules", "lib/modules/pyro"].map(str::to_owned);
        assert_eq!(names[..3], expected);
        assert_eq!(names[3..], ["00-b.ko", "01-a.ko", "order"].map(|name| format!("{DIR}/{name}")));
    }

    proptest! {
        #[test]
        fn hostile_modules_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\x3e\0\x01\0\0\0".to_vec();
            elf.extend(&bytes);
            let _ = dependencies(&elf);
            let _ = dependencies(&bytes);
            let _ = parse_depends(&bytes);
        }

        #[test]
        fn every_order_satisfies_its_graph(edges in proptest::collection::vec((0usize..12, 0usize..12), 0..40)) {
            // Edges point only to smaller numbers, so there is no cycle.
            let needs = |n: usize| -> Vec<String> {
                edges.iter().filter(|(from, to)| *from == n && to < from).map(|(_, to)| format!("m{to}")).collect()
            };
            let index = |name: &str| name[1..].parse::<usize>().expect("a number");
            let load = |name: &str| Ok::<_, Failed>(Some(needs(index(name))));
            let order = load_order(&["m11", "m5"], load).expect("no circle");
            for (position, name) in order.iter().enumerate() {
                for need in needs(index(name)) {
                    prop_assert!(order[..position].contains(&need));
                }
            }
        }
    }
}
