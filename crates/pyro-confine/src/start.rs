//! Creates the child, and reports which layers were reached.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::cgroup::Group;
use crate::child::{self, Connections, Created, RECORD_BYTES, ROOT_STEPS, Subject};
use crate::identity::Identity;
use crate::landlock;
use crate::layers::{Confinement, Layer};
use crate::plan::{Plan, PlanError, temporary};
use crate::policy::Policy;
use crate::process::Process;

/// A program to start. Its environment is empty, and its working directory is the root.
#[derive(Debug)]
pub struct Program {
    /// Absolute path of the executable, which must be visible and executable.
    pub program: PathBuf,
    /// The arguments, without the program's name.
    pub arguments: Vec<OsString>,
    /// Its open descriptors, each with its number, below 64. It has no others, so these include its standard streams.
    pub descriptors: Vec<(OwnedFd, RawFd)>,
    /// Signals that are blocked in it.
    pub blocked_signals: Vec<i32>,
    /// Its memory may be in huge pages.
    pub huge_pages: bool,
}

/// A program that was started.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: Process,
    /// Which layers were reached.
    pub confinement: Confinement,
}

/// Why a program was not started. Nothing is left running then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file that it needs cannot be handed to it.
    #[error("cannot hand over {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its arguments or descriptors are invalid, or this process has no descriptors left.
    #[error("cannot prepare the start of the program")]
    Descriptor(#[source] io::Error),
    /// A file was replaced or removed during the start.
    #[error("a file that the program needs was replaced while it was started")]
    Replaced(#[source] io::Error),
    /// No process could be created, or this host ran out of something before it was confined.
    #[error("cannot create a process")]
    Process(#[source] io::Error),
    /// The program needs a root of its own.
    #[error("this host gives the program no root of its own: {0}")]
    NoRoot(String),
    /// The program cannot be executed.
    #[error("cannot execute the program")]
    Execute(#[source] io::Error),
    /// The child ended before it executed the program.
    #[error("the process ended before it executed the program ({0})")]
    Ended(ExitStatus),
}

/// The flag does not fit into the type that `libc` gives it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// Starts `program`, confined as `policy` says, as far as the host can. Blocks until it is executed, a few milliseconds.
/// The kernel kills it when the *thread* that calls this ends.
///
/// # Errors
/// [`StartError`].
pub fn start(program: Program, policy: &Policy) -> Result<Started, StartError> {
    start_in(Err(Layer::unavailable("it was not requested")), program, policy)
}

/// Does the same, in a control group; or without one, for a reason that the report gives.
///
/// # Errors
/// As [`start`].
pub fn start_in(
    group: Result<Arc<Group>, Layer>,
    program: Program,
    policy: &Policy,
) -> Result<Started, StartError> {
    // With a user namespace, without one where root may create the others, and with nothing.
    let mut attempts = VecDeque::from([
        (libc::CLONE_NEWUSER | NAMESPACES, policy.identity),
        (NAMESPACES, policy.identity),
        // Another user could not find its files.
        (0, Identity::Caller),
    ]);
    if policy.needs_own_root() {
        attempts.pop_back();
    }
    let mut refusals = Refusals::default();
    while let Some((namespaces, identity)) = attempts.pop_front() {
        let plan = match Plan::new(&program, policy, identity) {
            Ok(mut plan) => {
                plan.group = group.clone();
                plan
            }
            Err(PlanError::Identity { path, source }) => {
                let path = path.display();
                refusals.identity = Some(format!("{path} cannot be given to another user: {source}"));
                attempts.push_front((namespaces, identity));
                for (_, identity) in &mut attempts {
                    *identity = Identity::Caller;
                }
                continue;
            }
            Err(PlanError::Start(error)) => return Err(error),
        };
        match attempt(&plan, identity, namespaces) {
            Ok((mut process, records)) => {
                let confinement = report(&plan, identity, namespaces, &refusals, &records);
                if let (true, Layer::Unavailable { reason }) =
                    (policy.needs_own_root(), &confinement.mount_namespace)
                {
                    process.kill();
                    let _ = process.wait();
                    return Err(StartError::NoRoot(reason.clone()));
                }
                if confinement.mount_namespace.is_active() || identity == Identity::Caller {
                    return Ok(Started { process, confinement });
                }
                process.kill();
                let _ = process.wait();
                attempts.push_front((namespaces, Identity::Caller));
            }
            Err(Attempt::Namespaces(error)) => refusals.namespaces.push(error),
            Err(Attempt::Failed(error)) => return Err(error),
        }
    }
    let refused = refusals.namespaces.pop().unwrap_or_else(|| Errno::AGAIN.into());
    if policy.needs_own_root() {
        return Err(StartError::NoRoot(refused.to_string()));
    }
    Err(StartError::Process(refused))
}

/// What the host has refused so far.
#[derive(Default)]
struct Refusals {
    /// Why there is no program with these namespaces, one for each failed attempt.
    namespaces: Vec<io::Error>,
    /// Why the program cannot have a user of its own.
    identity: Option<String>,
}

/// Why one attempt failed.
enum Attempt {
    /// The host refuses these namespaces.
    Namespaces(io::Error),
    Failed(StartError),
}

impl Attempt {
    /// Classifies an error of the creation of a child with namespaces.
    fn of_namespaces(error: io::Error) -> Self {
        /// How a kernel without namespaces, a policy, and a limit on their number refuse them.
        const REFUSED: [Errno; 6] =
            [Errno::PERM, Errno::ACCESS, Errno::INVAL, Errno::NOSYS, Errno::NOSPC, Errno::USERS];
        match Errno::from_io_error(&error) {
            Some(errno) if REFUSED.contains(&errno) => Self::Namespaces(error),
            _ => Self::Failed(StartError::Process(error)),
        }
    }
}

impl From<StartError> for Attempt {
    fn from(error: StartError) -> Self {
        Self::Failed(error)
    }
}

/// One message of the child.
struct Record {
    subject: Subject,
    step: u8,
    errno: i32,
}

impl Record {
    /// Why the child did not go on after this record, which is about a layer.
    fn end_of_start(&self) -> Option<StartError> {
        /// No layers, and the control group, without which the child goes on whatever the reason is.
        const OTHERS: [Subject; 5] =
            [Subject::Ready, Subject::Parent, Subject::Descriptors, Subject::Execution, Subject::Group];
        if self.errno == 0 || OTHERS.contains(&self.subject) {
            return None;
        }
        let errno = Errno::from_raw_os_error(self.errno);
        if !child::ends_start(self.subject, self.step, errno) {
            return None;
        }
        let is_replaced = self.subject == Subject::Root && child::is_replaced(self.step, errno);
        Some(if is_replaced { StartError::Replaced } else { StartError::Process }(errno.into()))
    }
}

fn attempt(
    plan: &Plan,
    identity: Identity,
    namespaces: libc::c_int,
) -> Result<(Process, Vec<Record>), Attempt> {
    let pipe = || io::pipe().map_err(StartError::Descriptor);
    let ((go_reader, go), (report, report_writer)) = (pipe()?, pipe()?);
    let connections = Connections {
        go: temporary(go_reader).map_err(StartError::Descriptor)?,
        report: temporary(report_writer).map_err(StartError::Descriptor)?,
        of_parent: [go.as_raw_fd(), report.as_raw_fd()],
    };
    let created = Created {
        user_namespace: namespaces & libc::CLONE_NEWUSER != 0,
        mount_namespace: namespaces & libc::CLONE_NEWNS != 0,
    };
    let group = plan.group.as_ref().ok();
    let in_group = group.and_then(|group| {
        let dir = group.open().ok()?;
        create(plan, created, &connections, namespaces, Some(dir.as_fd())).ok()
    });
    let is_member = in_group.is_some();
    let mut process = match in_group {
        Some(process) => process,
        // Linux before 5.7, and containers that refuse the system call.
        None => create(plan, created, &connections, namespaces, None).map_err(Attempt::of_namespaces)?,
    };
    drop(connections);
    let mut report = report;
    // Otherwise it has ended, which the records say.
    let is_ready = record(&mut report).map_err(StartError::Descriptor)?.is_some();
    if is_ready
        && created.user_namespace
        && let Err(error) = map(process.id(), identity)
    {
        process.kill();
        let _ = process.wait();
        return Err(Attempt::of_namespaces(error));
    }
    // Before it executes anything, so that all memory of the program counts.
    let moved = group.map(|group| if is_member { Ok(()) } else { group.add(process.id()) });
    // Fails only if the child has ended, which its report says.
    let _ = rustix::io::write(&go, &[1]);
    let mut records = records(report).map_err(StartError::Descriptor)?;
    if let Some(moved) = moved {
        let errno = moved.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        records.insert(0, Record { subject: Subject::Group, step: 0, errno });
    }
    let error = match (records.iter().find_map(Record::end_of_start), records.last()) {
        (Some(error), _) => error,
        (None, Some(Record { subject: Subject::Execution, errno, .. })) => {
            StartError::Execute(io::Error::from_raw_os_error(*errno))
        }
        (None, Some(Record { subject: Subject::Parent | Subject::Descriptors, errno, .. })) => {
            StartError::Descriptor(io::Error::from_raw_os_error(*errno))
        }
        // The last layer before the execution reports in any case, so without it the child was killed.
        (None, Some(_)) if records.iter().any(|record| record.subject == Subject::Limits) => {
            return Ok((process, records));
        }
        (None, _) => {
            process.kill();
            let status = process.wait().map_err(StartError::Process)?;
            return Err(StartError::Ended(status).into());
        }
    };
    // It ends by itself. The wait must not depend on that.
    process.kill();
    let _ = process.wait();
    Err(error.into())
}

/// Creates the child, in a control group if there is one: moving it later can take some milliseconds, in which the kernel
/// waits for all processors. All signals are blocked in it until it executes the program: a handler of this process would
/// act on descriptors that both share.
fn create(
    plan: &Plan,
    created: Created,
    connections: &Connections,
    namespaces: libc::c_int,
    group: Option<BorrowedFd<'_>>,
) -> io::Result<Process> {
    #![expect(unsafe_code, reason = "a child with namespaces and a descriptor of its own")]
    let mut descriptor: RawFd = -1;
    let flags = (namespaces | libc::CLONE_PIDFD).cast_unsigned();
    // SAFETY: the sets are initialised before anything reads them. The child gets a copy of this process's memory and goes
    // on with this function on its copy of the stack, like after fork; it only calls `child::run`, which does what is
    // permitted there and does not return. The kernel writes the descriptor, which this process owns.
    let pid = unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let pid = match group {
            None => libc::syscall(
                libc::SYS_clone,
                libc::c_ulong::from(flags | libc::SIGCHLD.cast_unsigned()),
                std::ptr::null::<libc::c_void>(),
                &raw mut descriptor,
                std::ptr::null::<libc::c_void>(),
                std::ptr::null::<libc::c_void>(),
            ),
            Some(group) => {
                let mut arguments: libc::clone_args = std::mem::zeroed();
                arguments.flags = u64::from(flags) | CLONE_INTO_CGROUP;
                arguments.pidfd = (&raw mut descriptor).addr() as u64;
                arguments.exit_signal = libc::SIGCHLD as u64;
                arguments.cgroup = group.as_raw_fd() as u64;
                libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
            }
        };
        if pid == 0 {
            child::run(plan, created, connections);
        }
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        if pid < 0 {
            return Err(error);
        }
        pid
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just created this descriptor.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    Ok(Process::new(pid, descriptor))
}

/// Lets one user and one group of the host exist in the child's user namespace, under the same numbers.
fn map(pid: u32, identity: Identity) -> io::Result<()> {
    let file = |name: &str| format!("/proc/{pid}/{name}");
    if identity == Identity::Caller {
        // Required of users without privileges. The groups of the caller stay as they are.
        fs::write(file("setgroups"), "deny")?;
    }
    let (uid, gid) = (identity.uid(), identity.gid());
    fs::write(file("uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(file("gid_map"), format!("{gid} {gid} 1"))
}

/// Reads what the child reports until it executes the program or ends.
fn records(mut report: io::PipeReader) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    while let Some(record) = record(&mut report)? {
        records.push(record);
    }
    Ok(records)
}

/// Reads one record; `None` at the end.
fn record(report: &mut io::PipeReader) -> io::Result<Option<Record>> {
    let mut bytes = [0; RECORD_BYTES];
    match report.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [subject, step, _, _, errno @ ..] = bytes;
    let subject = Subject::of(subject).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(Record { subject, step, errno: i32::from_ne_bytes(errno) }))
}

fn report(
    plan: &Plan,
    identity: Identity,
    namespaces: libc::c_int,
    refusals: &Refusals,
    records: &[Record],
) -> Confinement {
    let created = |flag: libc::c_int| match (namespaces & flag != 0, refusals.namespaces.first()) {
        (true, _) => Layer::Active,
        (false, Some(error)) => Layer::unavailable(error),
        (false, None) => Layer::unavailable("it was not requested"),
    };
    let reached = |subject: Subject| {
        let record = records.iter().find(|record| record.subject == subject)?;
        Some(match (record.errno, subject) {
            (0, _) => Layer::Active,
            (errno, Subject::Root) => {
                let step = ROOT_STEPS.get(usize::from(record.step)).unwrap_or(&"make a root");
                Layer::unavailable(format!("cannot {step}: {}", io::Error::from_raw_os_error(errno)))
            }
            (errno, _) => Layer::unavailable(io::Error::from_raw_os_error(errno)),
        })
    };
    let reported = |subject| reached(subject).unwrap_or_else(|| Layer::unavailable("it was not tried"));
    let prepared = |prepared: Option<&Layer>, subject| prepared.cloned().unwrap_or_else(|| reported(subject));
    let landlock = prepared(plan.landlock.as_ref().err(), Subject::Landlock);
    let user_changed = reported(Subject::User);
    let uid = if user_changed.is_active() { identity.uid() } else { Identity::Caller.uid() };
    Confinement {
        user_namespace: created(libc::CLONE_NEWUSER),
        mount_namespace: reached(Subject::Root).unwrap_or_else(|| created(libc::CLONE_NEWNS)),
        pid_namespace: created(libc::CLONE_NEWPID),
        ipc_namespace: created(libc::CLONE_NEWIPC),
        uts_namespace: created(libc::CLONE_NEWUTS),
        network_namespace: created(libc::CLONE_NEWNET),
        unprivileged_user: match &refusals.identity {
            _ if uid != 0 => user_changed,
            Some(reason) => Layer::unavailable(format!("it runs as root: {reason}")),
            None => Layer::unavailable("it runs as root"),
        },
        no_capabilities: reported(Subject::Capabilities),
        no_new_privileges: reported(Subject::NoNewPrivileges),
        landlock_abi: landlock.is_active().then(landlock::abi).flatten(),
        landlock,
        seccomp: prepared(plan.filters.as_ref().err(), Subject::Seccomp),
        limits: reported(Subject::Limits),
        cgroup: prepared(plan.group.as_ref().err(), Subject::Group),
        uid,
    }
}

#[cfg(test)]
mod tests;
