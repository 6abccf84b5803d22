//! Swap files, which the kernel keeps open for writing until they are taken out of use.
#![expect(unsafe_code, reason = "the standard bindings lack swapoff")]

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};

/// Takes every swap file out of use, as far as its contents fit into memory. Afterwards, the disk that it is on can be made
/// read-only.
pub(crate) fn end_all(proc: impl AsFd) {
    let list = match list(proc) {
        Ok(list) => list,
        // The kernel has no swap.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return eprintln!("pyro-guest: listing swap files: {error}"),
    };
    for path in paths(&list) {
        if let Err(error) = swap_off(&path) {
            eprintln!("pyro-guest: ending the use of swap file {}: {error}", path.to_string_lossy());
        }
    }
}

fn list(proc: impl AsFd) -> io::Result<Vec<u8>> {
    let file = openat(proc, "swaps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut list = Vec::new();
    std::fs::File::from(file).read_to_end(&mut list)?;
    Ok(list)
}

/// The first column of the table, which has a heading.
fn paths(list: &[u8]) -> Vec<CString> {
    let lines = list.split(|&byte| byte == b'\n').skip(1);
    lines
        .filter_map(|line| line.split(|byte| matches!(byte, b' ' | b'\t')).next())
        .filter(|column| !column.is_empty())
        .filter_map(|column| CString::new(unescaped(column)).ok())
        .collect()
}

/// The kernel writes blanks and backslashes as three octal digits after a backslash.
fn unescaped(column: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    let mut rest = column;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match (byte, after) {
            (b'\\', [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', after @ ..]) => {
                Some(((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'), after))
            }
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((byte, after));
        path.push(byte);
        rest = after;
    }
    path
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
                     /workspace/swap                         file\t\t16380\t\t0\t\t-2\n\
                     /a\\040b\\134                               file\t\t16380\t\t0\t\t-3\n\
                     /dev/vdc                                partition\t1\t\t0\t\t-4\n";
        let paths = paths(list);
        let paths: Vec<_> = paths.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/workspace/swap", "/a b\\", "/dev/vdc"]);
    }

    #[test]
    fn a_list_without_files_has_no_paths() {
        for list in [&b""[..], b"Filename\tType\n", b"Filename\tType\n\n"] {
            assert_eq!(paths(list), Vec::<CString>::new());
        }
    }

    #[test]
    fn text_that_only_looks_escaped_stays() {
        assert_eq!(unescaped(br"/a\9\04\400\"), br"/a\9\04\400\");
    }
}
