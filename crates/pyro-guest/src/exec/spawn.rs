//! Starts a process in its control group, on its terminal and as its user.
//!
//! The child shares the agent's memory until it executes its program, as with `posix_spawn`, which cannot do most of what is
//! needed here. Copying the agent's pages instead is slow in an emulated machine. Until then, the child makes system calls
//! only: it allocates nothing and takes no lock. Their wrappers must not act on the other threads of the agent, as those of
//! the C library do that change the user.
#![expect(unsafe_code, reason = "clone, execve, and the signal dispositions of the child")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, ioctl_tiocsctty, setpgid, setsid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use rustix::{fs::Gid, process::Uid};

use super::oom;

/// Stack of the child until it executes its program, in 16 bytes.
const STACK_WORDS: usize = 4096;
/// Highest signal number.
const SIGNALS: c_int = 64;

/// A process to start.
pub(super) struct Launch<'a> {
    /// Paths of the program, tried in order.
    pub(super) candidates: Vec<CString>,
    /// Its arguments, the name of the program first.
    pub(super) arguments: Vec<CString>,
    /// Its variables.
    pub(super) variables: Vec<CString>,
    pub(super) directory: CString,
    /// Standard input, output and error.
    pub(super) standard: [BorrowedFd<'a>; 3],
    /// Further descriptors, and the numbers that they get.
    pub(super) extra: Vec<(BorrowedFd<'a>, RawFd)>,
    /// Lead a session whose controlling terminal is the standard input. Otherwise, lead a process group.
    pub(super) has_terminal: bool,
    /// Absent: stay root.
    pub(super) credentials: Option<Credentials>,
    /// The process file system, where the process gives up its exemption from the OOM killer. `None`: it has none.
    pub(super) proc: Option<BorrowedFd<'a>>,
    /// Set when nothing waits for the process any more. It then executes nothing.
    pub(super) abandoned: &'a AtomicBool,
}

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: Vec<Gid>,
}

/// What a child does before it is its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Fork,
    ControlGroup,
    Exemption,
    Session,
    Descriptors,
    User,
    Directory,
    Abandoned,
    Program,
}

/// A step that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpawnError {
    pub(super) step: Step,
    pub(super) errno: Errno,
}

/// A started process that was not waited for.
pub(super) struct Spawned {
    pub(super) pid: Pid,
    /// Readable when it has ended.
    pub(super) pidfd: OwnedFd,
}

/// What parent and child share.
struct Shared<'a> {
    launch: &'a Launch<'a>,
    control_group: Option<BorrowedFd<'a>>,
    /// The numbers of its descriptors, in their order.
    descriptors: Vec<RawFd>,
    arguments: Vec<*const c_char>,
    variables: Vec<*const c_char>,
    failure: Option<SpawnError>,
}

/// Starts the process in the group whose `cgroup.procs` is open for writing. Returns when it executes its program.
pub(super) fn spawn(
    launch: &Launch<'_>,
    control_group: Option<BorrowedFd<'_>>,
) -> Result<Spawned, SpawnError> {
    let mut descriptors: Vec<RawFd> = (0..3).chain(launch.extra.iter().map(|(_, number)| *number)).collect();
    descriptors.sort_unstable();
    let mut shared = Shared {
        launch,
        control_group,
        descriptors,
        arguments: pointers(&launch.arguments),
        variables: pointers(&launch.variables),
        failure: None,
    };
    let mut stack = Vec::<u128>::with_capacity(STACK_WORDS);
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: The stack is valid, aligned, and outlives the child's use of it, because the parent stands still until the
    // child ends or executes. The child uses `shared`, which the parent does not touch meanwhile. No signal handler runs in
    // the child: all signals are blocked until it has reset their handlers.
    let pid = unsafe {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let top = stack.as_mut_ptr().add(STACK_WORDS).cast();
        let pid = libc::clone(run_child, top, flags, ptr::from_mut(&mut shared).cast(), &raw mut pidfd);
        let error = (pid < 0).then(last_errno);
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        match (Pid::from_raw(pid.max(0)), error) {
            (Some(pid), None) => pid,
            (_, error) => {
                return Err(SpawnError { step: Step::Fork, errno: error.unwrap_or(Errno::AGAIN) });
            }
        }
    };
    // SAFETY: The kernel has made this descriptor for this process alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: The child is its program or has ended; the compiler does not know that it wrote this.
    match unsafe { ptr::read_volatile(&raw const shared.failure) } {
        None => Ok(Spawned { pid, pidfd }),
        Some(error) => {
            let options = rustix::process::WaitIdOptions::EXITED;
            let _ = rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), options);
            Err(error)
        }
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// The child: becomes the program, or says why not.
extern "C" fn run_child(shared: *mut c_void) -> c_int {
    let shared: *mut Shared<'_> = shared.cast();
    // SAFETY: This is the parent's `shared`, and the parent stands still.
    unsafe {
        let error = become_program(&*shared);
        ptr::write_volatile(&raw mut (*shared).failure, Some(error));
    }
    127
}

fn become_program(shared: &Shared<'_>) -> SpawnError {
    let launch = shared.launch;
    let prepared = join_group(shared.control_group)
        .map_err(|errno| (Step::ControlGroup, errno))
        .and_then(|()| {
            launch.proc.map_or(Ok(()), oom::give_up_exemption).map_err(|errno| (Step::Exemption, errno))
        })
        .and_then(|()| take_descriptors(launch).map_err(|errno| (Step::Descriptors, errno)))
        .and_then(|()| lead(launch).map_err(|errno| (Step::Session, errno)))
        .and_then(|()| become_user(launch).map_err(|errno| (Step::User, errno)))
        .and_then(|()| {
            close_others(&shared.descriptors);
            rustix::process::chdir(launch.directory.as_c_str()).map_err(|errno| (Step::Directory, errno))
        })
        .and_then(|()| match launch.abandoned.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err((Step::Abandoned, Errno::CANCELED)),
        });
    let (step, errno) = match prepared {
        Ok(()) => {
            reset_signals();
            (Step::Program, execute(shared))
        }
        Err(failed) => failed,
    };
    SpawnError { step, errno }
}

fn join_group(control_group: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    match control_group {
        Some(procs) => rustix::io::write(procs, b"0").map(drop),
        None => Ok(()),
    }
}

fn take_descriptors(launch: &Launch<'_>) -> Result<(), Errno> {
    for (fd, number) in launch.standard.iter().zip(0..).chain(launch.extra.iter().map(|(fd, n)| (fd, *n))) {
        // SAFETY: These numbers of the child's own table of descriptors belong to no object of this program.
        let copied = unsafe {
            if fd.as_raw_fd() == number {
                libc::fcntl(number, libc::F_SETFD, 0)
            } else {
                libc::dup2(fd.as_raw_fd(), number)
            }
        };
        if copied < 0 {
            return Err(last_errno());
        }
    }
    Ok(())
}

/// Closes all descriptors but these. A child that waits for a file system must not keep the agent's device of that file system
/// open, because closing it is what ends the wait. An old kernel keeps them until the program is executed.
fn close_others(descriptors: &[RawFd]) {
    let mut first: u32 = 0;
    for number in descriptors.iter().map(|number| number.cast_unsigned()) {
        if first < number {
            close_range(first, number - 1);
        }
        first = number + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: The table of descriptors is the child's own, and it uses none of these any more.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

fn lead(launch: &Launch<'_>) -> Result<(), Errno> {
    if launch.has_terminal {
        setsid()?;
        ioctl_tiocsctty(rustix::stdio::stdin())
    } else {
        setpgid(None, None)
    }
}

fn become_user(launch: &Launch<'_>) -> Result<(), Errno> {
    let Some(credentials) = &launch.credentials else { return Ok(()) };
    set_thread_groups(&credentials.groups)?;
    set_thread_gid(credentials.gid)?;
    set_thread_uid(credentials.uid)
}

/// Gives every signal that this program handles, and SIGPIPE, which it ignores, its default action, and unblocks all.
fn reset_signals() {
    for signal in 1..=SIGNALS {
        // SAFETY: The structures are valid. The dispositions are the child's own.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            if libc::sigaction(signal, ptr::null(), &raw mut action) != 0 {
                continue;
            }
            let is_handled = ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction);
            if is_handled || signal == libc::SIGPIPE {
                action = MaybeUninit::zeroed().assume_init();
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
    }
    // SAFETY: The set is initialised before it is used.
    unsafe {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

/// Executes the first candidate that exists and is a program. Returns why there was none.
fn execute(shared: &Shared<'_>) -> Errno {
    let mut errno = Errno::NOENT;
    for path in &shared.launch.candidates {
        // SAFETY: Both arrays end with a null pointer, and their texts outlive the call.
        unsafe { libc::execve(path.as_ptr(), shared.arguments.as_ptr(), shared.variables.as_ptr()) };
        match last_errno() {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => errno = Errno::ACCESS,
            other => return other,
        }
    }
    errno
}

fn last_errno() -> Errno {
    // SAFETY: The location is this thread's, or its child's while this thread stands still.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
