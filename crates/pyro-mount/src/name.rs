//! Names in a directory, as a guest sends them.

use std::ffi::CStr;
use std::io;

use rustix::io::Errno;

/// Longest name of a file, as the kernel has it.
const MAX_NAME_BYTES: usize = 255;

/// Returns `name` if it is the name of something in a directory, and leads nowhere else.
///
/// # Errors
/// `EINVAL`, `ENAMETOOLONG`.
pub(crate) fn check(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL.into()),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL.into()),
        bytes if bytes.len() > MAX_NAME_BYTES => Err(Errno::NAMETOOLONG.into()),
        _ => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_one_directory_are_accepted() {
        for name in [c"a", c"...", c".git", c"a b", c"\xff"] {
            assert_eq!(check(name).unwrap(), name);
        }
        for name in [c"", c".", c"..", c"a/b", c"/", c"../a"] {
            assert_eq!(Errno::from_io_error(&check(name).unwrap_err()), Some(Errno::INVAL), "{name:?}");
        }
        let long = std::ffi::CString::new(vec![b'a'; 256]).unwrap();
        assert_eq!(Errno::from_io_error(&check(&long).unwrap_err()), Some(Errno::NAMETOOLONG));
    }
}
