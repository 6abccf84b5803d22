//! Swap files, which the kernel keeps open for writing until they are taken out of use.
#![expect(unsafe_code, reason = "the standard bindings lack swapoff")]

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};

use crate::proc::unescaped;

/// Takes every swap file out of use whose contents fit into memory: for others, the kernel would find nothing to kill, and panic.
/// Afterwards, the disk that it is on can be made read-only.
pub(crate) fn end_all(proc: impl AsFd) {
    let list = match read(&proc, "swaps") {
        Ok(list) => list,
        // The kernel has no swap.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return eprintln!("pyro-guest: listing swap files: {error}"),
    };
    for file in files(&list) {
        if let Err(error) = ended(&file, &read(&proc, "meminfo").unwrap_or_default()) {
            eprintln!("pyro-guest: ending the use of swap file {}: {error}", file.path.to_string_lossy());
        }
    }
}

fn ended(SwapFile { path, used }: &SwapFile, memory: &[u8]) -> io::Result<()> {
    match available(memory).is_none_or(|available| *used < available) {
        true => swap_off(path),
        false => Err(io::ErrorKind::OutOfMemory.into()),
    }
}

fn read(proc: impl AsFd, name: &str) -> io::Result<Vec<u8>> {
    let file = openat(proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    std::fs::File::from(file).read_to_end(&mut text)?;
    Ok(text)
}

#[derive(Debug, PartialEq, Eq)]
struct SwapFile {
    path: CString,
    /// In KiB.
    used: u64,
}

/// Reads the table, which has a heading: path, type, size, use, priority.
fn files(list: &[u8]) -> Vec<SwapFile> {
    let lines = list.split(|&byte| byte == b'\n').skip(1);
    lines
        .filter_map(|line| {
            let mut columns = words(line);
            let path = CString::new(unescaped(columns.next()?)).ok()?;
            Some(SwapFile { path, used: columns.nth(2).and_then(number).unwrap_or_default() })
        })
        .collect()
}

/// Returns how much memory can be used, in KiB.
fn available(memory: &[u8]) -> Option<u64> {
    let line = memory.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"MemAvailable:"))?;
    words(line).next().and_then(number)
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty())
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn swap_off(path: &CStr) -> io::Result<()> {
    // SAFETY: the kernel reads the path, which ends with a zero byte, and nothing else.
    match unsafe { libc::swapoff(path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_swap_file_is_listed_by_its_path() {
        let list = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                     /workspace/swap                         file\t\t16380\t\t12\t\t-2\n\
                     /a\\040b\\134                               file\t\t16380\t\t0\t\t-3\n\
                     /dev/vdc                                partition\t1\t\t0\t\t-4\n";
        let files = files(list);
        let files: Vec<_> = files.iter().map(|file| (file.path.to_str().unwrap(), file.used)).collect();
        assert_eq!(files, [("/workspace/swap", 12), ("/a b\\", 0), ("/dev/vdc", 0)]);
    }

    #[test]
    fn the_memory_that_can_be_used_is_read() {
        let memory =
            b"MemTotal:         237904 kB\nMemFree:           8044 kB\nMemAvailable:     181960 kB\n";
        assert_eq!(available(memory), Some(181_960));
        for text in [&b""[..], b"MemAvailable:", b"MemAvailable: x kB", b"MemFree: 1 kB"] {
            assert_eq!(available(text), None);
        }
    }

    #[test]
    fn a_file_whose_contents_do_not_fit_into_memory_stays_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let heading = "Filename\tType\tSize\tUsed\tPriority\n";
        let swap = dir.path().join("none");
        std::fs::write(
            dir.path().join("swaps"),
            format!("{heading}{}\tfile\t100\t100\t-2\n", swap.display()),
        )
        .unwrap();
        std::fs::write(dir.path().join("meminfo"), "MemAvailable: 100 kB\n").unwrap();
        let proc = std::fs::File::open(dir.path()).unwrap();
        let refused = files(&read(&proc, "swaps").unwrap())
            .iter()
            .map(|file| ended(file, &read(&proc, "meminfo").unwrap()).unwrap_err().kind())
            .collect::<Vec<_>>();
        assert_eq!(refused, [io::ErrorKind::OutOfMemory]);
    }

    #[test]
    fn a_list_without_files_has_no_paths() {
        for list in [&b""[..], b"Filename\tType\n", b"Filename\tType\n\n"] {
            assert_eq!(files(list), []);
        }
    }
}
