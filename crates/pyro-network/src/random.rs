//! Random numbers from the kernel. The usual crate opens a file for them in a static executable, which this process cannot do.
#![expect(unsafe_code, reason = "the system call has no safe wrapper here")]

use std::io;

/// Fills the buffer, which has at most 256 bytes: then the kernel fills it whole or not at all.
///
/// # Errors
/// The kernel has no random numbers.
pub(crate) fn fill(buffer: &mut [u8]) -> io::Result<()> {
    loop {
        // SAFETY: the kernel writes at most the buffer's length.
        let filled = unsafe { libc::syscall(libc::SYS_getrandom, buffer.as_mut_ptr(), buffer.len(), 0) };
        match usize::try_from(filled) {
            Ok(length) if length == buffer.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ() {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        fill(&mut a).unwrap();
        fill(&mut b).unwrap();
        assert_ne!(a, b);
    }
}
