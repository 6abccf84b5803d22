//! The program in the VMM's place. It finds what to attack in the machine's layer, which it may read.
#![expect(unsafe_code, reason = "attacks are system calls")]

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::ExitCode;

/// The argument with which the stand-in runs itself from a file that it has written.
pub(crate) const CONTINUE: &str = "--go-on";

/// The names of all attempts.
pub(crate) const ATTEMPTS: [&str; 24] = [
    "read_secret",
    "write_secret",
    "write_registry",
    "create_file",
    "list_root",
    "use_control_socket",
    "change_image",
    "write_supervisor_memory",
    "read_supervisor_memory",
    "trace_process",
    "signal_process",
    "connect_to_loopback",
    "create_socket",
    "connect_to_abstract_socket",
    "use_leaked_descriptor",
    "read_environment",
    "change_user",
    "mount",
    "create_process",
    "create_executable_memory_file",
    "raise_oom_protection",
    "create_namespace",
    "execute_written_file",
    "execute_other_program",
];

type Attempt = fn(&BTreeMap<String, String>) -> io::Result<()>;

pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let mut out = io::stdout();
    let Some((layer, targets)) = targets(arguments) else {
        let _ = writeln!(out, "no targets");
        return ExitCode::FAILURE;
    };
    // The last two follow: they replace this program if they succeed.
    let attempts: [Attempt; 22] = [
        read_secret,
        write_secret,
        write_registry,
        create_file,
        list_root,
        use_control_socket,
        change_image,
        write_supervisor_memory,
        read_supervisor_memory,
        trace_process,
        signal_process,
        connect_to_loopback,
        create_socket,
        connect_to_abstract_socket,
        use_leaked_descriptor,
        read_environment,
        change_user,
        mount,
        create_process,
        create_executable_memory_file,
        raise_oom_protection,
        create_namespace,
    ];
    for (name, attempt) in ATTEMPTS.iter().zip(attempts) {
        match attempt(&targets) {
            Ok(()) => _ = writeln!(out, "{name}: yes"),
            Err(error) => _ = writeln!(out, "{name}: no ({error})"),
        }
    }
    let error = execute_written_file(arguments, &layer);
    let _ = writeln!(out, "execute_written_file: no ({error})");
    execute_other_program()
}

/// Runs after this program was executed from a file that it has written.
pub(crate) fn go_on() -> ExitCode {
    let _ = writeln!(io::stdout(), "execute_written_file: yes");
    execute_other_program()
}

fn targets(arguments: &[OsString]) -> Option<(String, BTreeMap<String, String>)> {
    let disk =
        arguments.iter().find_map(|argument| argument.to_str().filter(|text| text.contains(r#""layer""#)))?;
    let (_, rest) = disk.split_once(r#""filename":""#)?;
    let layer = rest.split('"').next()?;
    let text = fs::read_to_string(layer).ok()?;
    let lines = text.lines().filter_map(|line| line.split_once('='));
    Some((layer.to_owned(), lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()))
}

fn number<T: std::str::FromStr>(targets: &BTreeMap<String, String>, key: &str) -> io::Result<T> {
    targets[key].parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn read_secret(targets: &BTreeMap<String, String>) -> io::Result<()> {
    fs::read(&targets["secret"]).map(drop)
}

fn write_secret(targets: &BTreeMap<String, String>) -> io::Result<()> {
    OpenOptions::new().append(true).open(&targets["secret"])?.write_all(b"key")
}

fn write_registry(targets: &BTreeMap<String, String>) -> io::Result<()> {
    OpenOptions::new().write(true).open(&targets["registry"])?.write_all(b"record")
}

fn create_file(targets: &BTreeMap<String, String>) -> io::Result<()> {
    fs::write(format!("{}/planted", targets["dir"]), "x")
}

/// The host's root has a directory that the confined one lacks.
fn list_root(_: &BTreeMap<String, String>) -> io::Result<()> {
    fs::read_dir("/proc").map(drop)
}

fn use_control_socket(targets: &BTreeMap<String, String>) -> io::Result<()> {
    UnixStream::connect(&targets["socket"]).map(drop)
}

fn change_image(targets: &BTreeMap<String, String>) -> io::Result<()> {
    let image = &targets["image"];
    let _ = fs::set_permissions(image, fs::Permissions::from_mode(0o600));
    OpenOptions::new().write(true).open(image)?.write_all(b"changed")
}

fn memory(targets: &BTreeMap<String, String>) -> io::Result<(File, u64)> {
    let path = format!("/proc/{}/mem", targets["supervisor"]);
    Ok((OpenOptions::new().read(true).write(true).open(path)?, number(targets, "canary")?))
}

fn write_supervisor_memory(targets: &BTreeMap<String, String>) -> io::Result<()> {
    let (memory, address) = memory(targets)?;
    memory.write_all_at(&0xbad_u64.to_ne_bytes(), address)
}

fn read_supervisor_memory(targets: &BTreeMap<String, String>) -> io::Result<()> {
    let mut bytes = [0_u8; 8];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(number(targets, "canary")?),
        iov_len: bytes.len(),
    };
    // SAFETY: the local buffer lives until the call returns.
    check(unsafe {
        libc::process_vm_readv(number(targets, "supervisor")?, &raw const local, 1, &raw const remote, 1, 0)
    } as libc::c_long)
}

fn trace_process(targets: &BTreeMap<String, String>) -> io::Result<()> {
    let pid: libc::pid_t = number(targets, "bystander")?;
    // SAFETY: these requests take no pointers.
    unsafe {
        check(libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0))?;
        libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0);
    }
    Ok(())
}

fn signal_process(targets: &BTreeMap<String, String>) -> io::Result<()> {
    // SAFETY: the call takes numbers.
    check(unsafe { libc::kill(number(targets, "bystander")?, libc::SIGCONT) }.into())
}

fn connect_to_loopback(targets: &BTreeMap<String, String>) -> io::Result<()> {
    TcpStream::connect(("127.0.0.1", number(targets, "port")?)).map(drop)
}

fn create_socket(_: &BTreeMap<String, String>) -> io::Result<()> {
    UdpSocket::bind("0.0.0.0:0").map(drop)
}

fn connect_to_abstract_socket(targets: &BTreeMap<String, String>) -> io::Result<()> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(&targets["abstract"])?).map(drop)
}

fn use_leaked_descriptor(targets: &BTreeMap<String, String>) -> io::Result<()> {
    let leaked: RawFd = number(targets, "leaked")?;
    let open = (6..1024).find(|number| {
        // SAFETY: the call takes numbers.
        unsafe { libc::fcntl(*number, libc::F_GETFD) >= 0 }
    });
    match open {
        Some(open) if open != leaked => Ok(()),
        // SAFETY: the descriptor is open, and nothing else in this program uses it.
        Some(open) => unsafe { File::from_raw_fd(open) }.read(&mut [0]).map(drop),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the environment must be empty")]
fn read_environment(_: &BTreeMap<String, String>) -> io::Result<()> {
    std::env::vars_os().next().map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn change_user(_: &BTreeMap<String, String>) -> io::Result<()> {
    // SAFETY: the calls take numbers.
    unsafe {
        check(libc::setegid(0).into())?;
        check(libc::seteuid(12345).into())?;
        check(libc::seteuid(0).into())
    }
}

fn mount(targets: &BTreeMap<String, String>) -> io::Result<()> {
    let dir = CString::new(targets["dir"].as_str())?;
    let root = c"/";
    // SAFETY: all strings end with a null byte.
    unsafe {
        let mount = |at: *const libc::c_char| {
            libc::mount(c"tmpfs".as_ptr(), at, c"tmpfs".as_ptr(), 0, std::ptr::null())
        };
        if mount(dir.as_ptr()) == 0 {
            return check(libc::umount2(dir.as_ptr(), libc::MNT_DETACH).into());
        }
        check(mount(root.as_ptr()).into())
    }
}

fn create_process(_: &BTreeMap<String, String>) -> io::Result<()> {
    // SAFETY: the child does nothing but end.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            pid if pid > 0 => check(libc::waitpid(pid, std::ptr::null_mut(), 0).into()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn create_executable_memory_file(_: &BTreeMap<String, String>) -> io::Result<()> {
    // SAFETY: the name ends with a null byte.
    check(unsafe { libc::memfd_create(c"code".as_ptr(), 0) }.into())
}

fn raise_oom_protection(_: &BTreeMap<String, String>) -> io::Result<()> {
    OpenOptions::new().write(true).open("/proc/self/oom_score_adj")?.write_all(b"0")
}

fn create_namespace(_: &BTreeMap<String, String>) -> io::Result<()> {
    // SAFETY: the call takes a number.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())
}

/// Returns only if that fails.
fn execute_written_file(arguments: &[OsString], layer: &str) -> io::Error {
    let write = || {
        let program = fs::read(&arguments[0])?;
        let mut file = OpenOptions::new().write(true).truncate(true).mode(0o755).open(layer)?;
        file.write_all(&program)?;
        // Not permitted under confinement; the file may be executable already.
        let _ = file.set_permissions(fs::Permissions::from_mode(0o755));
        CString::new(layer).map_err(io::Error::from)
    };
    match write() {
        Ok(path) => execute(&[&path, &CString::new(CONTINUE).unwrap_or_default()]),
        Err(error) => error,
    }
}

fn execute_other_program() -> ExitCode {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for program in [c"/bin/echo", c"/usr/bin/echo"] {
        last = execute(&[program, c"execute_other_program: yes"]);
    }
    let _ = writeln!(io::stdout(), "execute_other_program: no ({last})");
    ExitCode::SUCCESS
}

/// Returns only if that fails.
fn execute(arguments: &[&std::ffi::CStr]) -> io::Error {
    let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [std::ptr::null()];
    // SAFETY: all strings end with a null byte and both lists with a null pointer.
    unsafe { libc::execve(arguments[0].as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}
