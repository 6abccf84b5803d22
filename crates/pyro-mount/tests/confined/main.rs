//! What a server of a live directory could do that a guest has taken over.
//!
//! The program of this test confines itself as the server does, and then tries to do harm. It is also run without confinement,
//! where everything must succeed: an attempt that cannot succeed proves nothing.

#![expect(clippy::print_stdout, reason = "the report of what was tried")]
#![expect(unsafe_code, reason = "system calls that have no safe interface")]
#![expect(clippy::disallowed_methods, reason = "the arguments say which of its parts this program plays")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Resource, getppid, getrlimit, prlimit};

const PLAY: &str = "--play";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == PLAY) {
        let word = |index: usize| arguments.get(index).map_or("", String::as_str);
        return play(Path::new(word(2)), word(3), word(4));
    }
    let trials = vec![Trial::test("a_confined_server_reaches_its_directory_and_nothing_else", compare)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Attempts by name, and whether they succeeded.
type Outcomes = BTreeMap<String, bool>;

/// Tries everything. `how` is `none` without confinement, else the access.
fn play(base: &Path, how: &str, port: &str) -> ExitCode {
    let served = base.join("served");
    let directory = File::open(&served).expect("the directory");
    let parent = getppid().expect("a parent process");
    let mut landlock = true;
    if how != "none" {
        let report = pyro_mount::confine(directory.as_fd(), how == "rw").expect("confined");
        landlock = report.landlock.is_active();
        assert!(report.seccomp.is_active(), "{report:?}");
    }
    let port = port.parse().unwrap_or(0);
    let outcomes: Outcomes = [
        ("landlock", landlock),
        ("read own", fs::read(served.join("file")).is_ok()),
        ("list own", fs::read_dir(&served).is_ok()),
        ("write own", File::options().write(true).open(served.join("file")).is_ok()),
        ("create own", File::create(served.join("new")).is_ok()),
        ("make directory", rustix::fs::mkdirat(&directory, "dir", rustix::fs::Mode::RWXU).is_ok()),
        ("rename own", rustix::fs::renameat(&directory, "new", &directory, "moved").is_ok()),
        ("remove own", rustix::fs::unlinkat(&directory, "moved", rustix::fs::AtFlags::empty()).is_ok()),
        ("read other", fs::read(base.join("secret")).is_ok()),
        ("read other by a link", fs::read(served.join("link")).is_ok()),
        ("read system", fs::read("/etc/passwd").is_ok()),
        ("create other", File::create(base.join("created")).is_ok()),
        ("connect to a port", TcpStream::connect(("127.0.0.1", port)).is_ok()),
        ("connect to a socket", UnixStream::connect(base.join("socket")).is_ok()),
        ("execute", Command::new("/bin/true").status().is_ok()),
        ("signal another process", may_signal(parent)),
        ("limit another process", may_limit(parent)),
        ("have another process signalled", may_have_signalled(parent, &directory)),
        (
            "change the user",
            rustix::thread::set_thread_res_uid(
                rustix::process::Uid::from_raw(65534),
                rustix::process::Uid::from_raw(65534),
                rustix::process::Uid::from_raw(65534),
            )
            .is_ok(),
        ),
    ]
    .map(|(name, succeeded)| (name.to_owned(), succeeded))
    .into();
    println!("{}", serde_json::to_string(&outcomes).unwrap_or_default());
    ExitCode::SUCCESS
}

fn may_signal(process: Pid) -> bool {
    let number = process.as_raw_nonzero().get();
    // SAFETY: the call has no pointers, and signal 0 only checks whether a signal could be sent.
    unsafe { libc::syscall(libc::SYS_tgkill, number, number, 0) == 0 }
}

fn may_limit(process: Pid) -> bool {
    let limit = getrlimit(Resource::Core);
    prlimit(Some(process), Resource::Core, limit).is_ok()
}

fn may_have_signalled(process: Pid, file: &File) -> bool {
    // SAFETY: the call has no pointers.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETOWN, process.as_raw_nonzero().get()) == 0 }
}

fn outcomes(how: &str) -> Result<Outcomes, Failed> {
    let base = tempfile::tempdir()?;
    fs::create_dir(base.path().join("served"))?;
    fs::write(base.path().join("served/file"), "content")?;
    fs::write(base.path().join("secret"), "secret")?;
    std::os::unix::fs::symlink("../secret", base.path().join("served/link"))?;
    let _socket = std::os::unix::net::UnixListener::bind(base.path().join("socket"))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let output =
        Command::new(std::env::current_exe()?).arg(PLAY).arg(base.path()).args([how, &port]).output()?;
    let error = || Failed::from(String::from_utf8_lossy(&output.stderr).into_owned());
    serde_json::from_slice(&output.stdout).map_err(|_| error())
}

fn compare() -> Result<(), Failed> {
    let reading = ["read own", "list own"];
    let changing = ["write own", "create own", "make directory", "rename own", "remove own"];
    let free = outcomes("none")?;
    for (how, allowed) in [("ro", vec![]), ("rw", changing.to_vec())] {
        let confined = outcomes(how)?;
        if !confined["landlock"] {
            return Err("this host has no Landlock, so this cannot be tested".into());
        }
        for (name, succeeded) in confined.iter().filter(|(name, _)| *name != "landlock") {
            let expected = reading.contains(&&**name) || allowed.contains(&&**name);
            if *succeeded != expected {
                return Err(format!("{how}: {name} {}", if expected { "fails" } else { "succeeds" }).into());
            }
            // Only root may become another user.
            if !free[name] && (name != "change the user" || rustix::process::geteuid().is_root()) {
                return Err(format!("{name} fails without confinement").into());
            }
        }
    }
    Ok(())
}
