//! Ends a lack of memory that the kernel does not end by itself.
//!
//! The kernel kills a process when an allocation finds nothing to reclaim. As long as it can drop the pages of running programs, and
//! reads them back from the disk when these continue, it finds something, and a greedy command in a small guest may hang forever
//! instead of being killed. The kernel reports how long processes have waited for memory. When none has done anything else for
//! nearly all of a few seconds, the agent has it kill one.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyro_wire::Failure;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::failure::During;
use crate::proc::Proc;
use crate::watched::watch;

/// What the kernel is to report: that every process that was not idle waited for memory, for the first of these times within the
/// second, in microseconds. The kernel takes the last byte for the end of the text.
const TRIGGER: &[u8] = b"full 4500000 5000000\n";
/// Has the kernel kill the process that it would kill if memory ran out: the largest one that is not exempt.
const KILL: &[u8] = b"f";

/// Reports of the kernel that memory is short.
#[derive(Debug)]
pub(crate) struct Pressure {
    reports: AsyncFd<OwnedFd>,
    orders: OwnedFd,
}

impl Pressure {
    /// Asks the kernel for reports. `None`: it cannot make them, and does what it can.
    pub(crate) fn of_machine(proc: &Proc) -> Result<Option<Self>, Failure> {
        let step = "watching the memory's pressure";
        let Some((reports, orders)) = open(proc).during(step)? else { return Ok(None) };
        let reports = watch(reports, Interest::PRIORITY).during(step)?;
        Ok(Some(Self { reports, orders }))
    }

    /// Has a process killed at each report, for as long as the kernel makes them. At most one comes in each period.
    pub(crate) async fn relieve(self) -> io::Result<Infallible> {
        loop {
            self.reports.ready(Interest::PRIORITY).await?.clear_ready();
            rustix::io::write(&self.orders, KILL)?;
        }
    }
}

/// Opens the file that reports and the one that takes orders.
fn open(proc: impl AsFd) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    let proc = proc.as_fd();
    let (Some(reports), Some(orders)) = (
        open_if_present(proc, "pressure/memory", OFlags::RDWR | OFlags::NONBLOCK)?,
        open_if_present(proc, "sysrq-trigger", OFlags::WRONLY)?,
    ) else {
        return Ok(None);
    };
    match rustix::io::write(&reports, TRIGGER) {
        // Reports are switched off.
        Err(Errno::OPNOTSUPP) => Ok(None),
        asked => asked.map(|_| Some((reports, orders))).map_err(io::Error::from),
    }
}

fn open_if_present(proc: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    match openat(proc, path, flags | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::net::{TcpListener, TcpStream};

    use rustix::net::{SendFlags, send};
    use tokio::io::AsyncReadExt;
    use tokio::net::unix::pipe;

    use super::*;

    /// A directory with these files of `/proc`.
    fn proc_with(files: &[&str]) -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pressure")).unwrap();
        for file in files {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let open = File::open(dir.path()).unwrap();
        (dir, open)
    }

    #[test]
    fn the_kernel_is_told_what_to_report() {
        let (dir, proc) = proc_with(&["pressure/memory", "sysrq-trigger"]);
        open(&proc).unwrap().unwrap();
        let trigger = fs::read_to_string(dir.path().join("pressure/memory")).unwrap();
        assert_eq!(trigger, "full 4500000 5000000\n");
        assert_eq!(
            fs::read_to_string(dir.path().join("sysrq-trigger")).unwrap(),
            "",
            "nothing is killed yet"
        );
    }

    #[test]
    fn a_kernel_without_reports_or_orders_is_accepted() {
        for files in [&[][..], &["pressure/memory"], &["sysrq-trigger"]] {
            let (_dir, proc) = proc_with(files);
            assert!(open(&proc).unwrap().is_none(), "{files:?}");
        }
    }

    #[test]
    fn a_kernel_that_does_not_take_the_request_is_an_error() {
        let (dir, proc) = proc_with(&["sysrq-trigger"]);
        fs::create_dir(dir.path().join("pressure/memory")).unwrap();
        assert!(open(&proc).is_err());
    }

    /// Urgent data is to a socket what a report is to the kernel's file.
    #[tokio::test]
    async fn each_report_is_answered_by_one_order() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let kernel = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (reports, _) = listener.accept().unwrap();
        reports.set_nonblocking(true).unwrap();
        let (orders, mut killed) = pipe::pipe().unwrap();
        let orders = orders.into_blocking_fd().unwrap();
        let reports = watch(reports.into(), Interest::PRIORITY).unwrap();
        let relief = tokio::spawn(Pressure { reports, orders }.relieve());
        for _ in 0..2 {
            send(&kernel, b"!", SendFlags::OOB).unwrap();
            let mut order = [0; 2];
            let length = killed.read(&mut order).await.unwrap();
            assert_eq!(&order[..length], b"f");
        }
        relief.abort();
        assert!(relief.await.unwrap_err().is_cancelled());
        assert_eq!(killed.read(&mut [0]).await.unwrap(), 0, "there is no other order");
    }
}
