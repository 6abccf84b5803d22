//! The terminal of a command.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::{Bytes, BytesMut};
use pyro_wire::{OutputStream, TerminalSize};
use rustix::fs::{Gid, Mode, OFlags, fchmod, fchown, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Uid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::Frames;
use super::pump::{CHUNK_BYTES, Quota};
use crate::watched::watch;

/// The group `tty`.
const TTY_GROUP: u32 = 5;
/// Maximum number of bytes that are read after the command has ended. The kernel's buffers hold less.
const MAX_REST_BYTES: usize = 256 * 1024;

/// Both ends of a pseudoterminal. That of the command is kept open, so that the other never reports an end.
pub(super) struct Terminal {
    ours: AsyncFd<OwnedFd>,
    theirs: OwnedFd,
}

impl Terminal {
    /// Makes a terminal that belongs to a user.
    pub(super) fn open(size: TerminalSize, owner: Uid) -> io::Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        unlockpt(&ours)?;
        let theirs =
            ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        if !owner.is_root() {
            fchown(&theirs, Some(owner), Some(Gid::from_raw(TTY_GROUP)))?;
            fchmod(&theirs, Mode::from(0o620))?;
        }
        let mut modes = tcgetattr(&theirs)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&theirs, OptionalActions::Now, &modes)?;
        fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
        let terminal = Self { ours: watch(ours, Interest::READABLE | Interest::WRITABLE)?, theirs };
        terminal.resize(size)?;
        Ok(terminal)
    }

    /// The end of the command.
    pub(super) fn theirs(&self) -> &OwnedFd {
        &self.theirs
    }

    /// Changes the size, which the foreground process group learns by SIGWINCH.
    pub(super) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.ours, size)?)
    }

    /// Returns the process group in the foreground.
    pub(super) fn foreground(&self) -> io::Result<Pid> {
        Ok(tcgetpgrp(&self.ours)?)
    }

    /// Types bytes.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.ours.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(written) => bytes = &bytes[written?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    async fn read(&self) -> io::Result<Bytes> {
        loop {
            let mut ready = self.ours.readable().await?;
            if let Ok(read) = ready.try_io(read) {
                return read;
            }
        }
    }
}

fn read(fd: impl AsFd) -> io::Result<Bytes> {
    let mut chunk = BytesMut::zeroed(CHUNK_BYTES);
    let count = rustix::io::read(fd, &mut chunk[..])?;
    chunk.truncate(count);
    Ok(chunk.freeze())
}

/// Sends what is written to the terminal, until the command has ended and the rest is read. Jobs in the background may keep
/// the terminal open; what they write later is lost. Returns the number of bytes that were not sent.
pub(super) async fn pump(
    terminal: &Terminal,
    limit: Option<u64>,
    frames: Frames,
    command_ended: CancellationToken,
) -> u64 {
    let mut quota = Quota::new(OutputStream::Stdout, limit, frames);
    loop {
        tokio::select! {
            biased;
            () = command_ended.cancelled() => break,
            read = terminal.read() => match read {
                Ok(bytes) => quota.send(bytes).await,
                Err(_) => return quota.dropped(),
            },
        }
    }
    let mut rest = 0;
    while rest < MAX_REST_BYTES {
        match read(&terminal.ours) {
            Ok(bytes) if !bytes.is_empty() => {
                rest += bytes.len();
                quota.send(bytes).await;
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INTR) => {}
            Ok(_) | Err(_) => break,
        }
    }
    quota.dropped()
}
