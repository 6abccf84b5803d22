//! What a network process could do that a guest has taken over.
//!
//! The program of these tests runs itself in place of that process, through the code that starts it, confines itself as it
//! does, and tries to do harm. It is also run without confinement, where everything must succeed: an attempt that cannot
//! succeed proves nothing.

#![expect(clippy::print_stdout, reason = "the report of what was tried")]
#![expect(clippy::disallowed_methods, reason = "the arguments say which of its parts this program plays")]

mod stand_in;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use pyro_machine::network::{Denials, NetworkHelper, NetworkSettings, Policy, Provider};
use pyro_machine::{Platform, Qemu};

use crate::stand_in::{ATTACKS, DUTIES, Targets, try_all};

/// Plays the network process. The file with the targets follows, and then what every network process gets.
const CONFINED: &str = "--confined";
/// Tries everything without confinement.
const UNCONFINED: &str = "--unconfined";
/// Runs the first test as an ordinary user. The directory for its files follows.
const AS_USER: &str = "--as-user";
/// A user without rights.
const UNPRIVILEGED: u32 = 65534;
/// Attempts that a setting of the host may forbid to users other than root.
const FOR_ROOT: [&str; 2] = ["trace_supervisor", "read_supervisor_memory"];
/// Time limit for the stand-in.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let path = |index: usize| arguments.get(index).map_or(Path::new("/nonexistent"), Path::new);
    let done = match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some(CONFINED) => play(path(2)).map_err(Failed::from),
        Some(UNCONFINED) => targets(path(2)).map_err(Failed::from).map(|targets| {
            let outcomes: Vec<_> = try_all(&targets).into_iter().map(u8::from).collect();
            println!("{outcomes:?}");
        }),
        Some(AS_USER) => everything_is_stopped(path(2)),
        _ => {
            let trials = vec![
                Trial::test(
                    "a_compromised_network_process_is_stopped_where_an_unconfined_one_is_not",
                    || everything_is_stopped(tempfile::tempdir()?.path()),
                ),
                Trial::test(
                    "a_compromised_network_process_of_an_ordinary_user_is_stopped_too",
                    as_ordinary_user,
                ),
            ];
            return libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            let _ = writeln!(io::stderr(), "{}", failed.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the first test again as a user without rights, if this one is root. Otherwise the first test has done that.
fn as_ordinary_user() -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("pyro-network-").tempdir_in("/tmp")?;
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe()?, &program)?;
    std::os::unix::fs::chown(dir.path(), Some(UNPRIVILEGED), Some(UNPRIVILEGED))?;
    let mut command = Command::new(program);
    let output = command.arg(AS_USER).arg(dir.path()).uid(UNPRIVILEGED).gid(UNPRIVILEGED).output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

/// What is there to be harmed.
struct Host {
    targets: PathBuf,
    dir: PathBuf,
    bystander: Child,
    _open: (TcpListener, UnixListener, UnixListener),
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.bystander.kill();
        let _ = self.bystander.wait();
    }
}

impl Host {
    /// Everything is open to every user of the host, so that only the confinement can stop an attempt.
    fn new(dir: &Path) -> io::Result<Self> {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
        let secret = dir.join("id_ed25519");
        fs::write(&secret, "content")?;
        let socket = dir.join("control.sock");
        let _ = fs::remove_file(&socket);
        let control = UnixListener::bind(&socket)?;
        for path in [&secret, &socket] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        }
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let name = format!("pyro-test-network-{}", std::process::id());
        let abstract_socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        let bystander = Command::new("/bin/sleep").arg("600").spawn()?;
        let targets = Targets::from([
            ("dir".to_owned(), dir.display().to_string()),
            ("secret".to_owned(), secret.display().to_string()),
            ("socket".to_owned(), socket.display().to_string()),
            ("tcp".to_owned(), tcp.local_addr()?.to_string()),
            ("abstract".to_owned(), name),
            ("bystander".to_owned(), bystander.id().to_string()),
            ("supervisor".to_owned(), std::process::id().to_string()),
        ]);
        let lines: String = targets.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        let path = dir.join("targets");
        fs::write(&path, lines)?;
        Ok(Self { targets: path, dir: dir.to_owned(), bystander, _open: (tcp, control, abstract_socket) })
    }

    /// Runs the stand-in as a network process, and returns what it has managed to do.
    fn confined(&self) -> Result<Vec<bool>, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let helper = NetworkHelper {
            program: std::env::current_exe()?,
            args: vec![CONFINED.into(), self.targets.clone().into()],
        };
        let denials = self.dir.join("denials");
        let settings = NetworkSettings {
            mac_address: "06:00:00:00:00:01".parse()?,
            policy: Policy::default(),
            denials: denials.clone(),
        };
        runtime.block_on(async {
            let platform = Qemu::new().with_network_helper(helper);
            let network = platform.start_network(Provider::Policed(settings))?;
            let began = Instant::now();
            loop {
                let reported = Denials::read(File::open(&denials)?)?;
                if reported.iter().count() == ATTACKS.len() + DUTIES.len() {
                    let confinement = network.confinement().ok_or("no report")?;
                    println!("confinement: {}", confinement.self_applied());
                    if !confinement.seccomp.is_active() {
                        return Err("the list of system calls does not hold".into());
                    }
                    return Ok(reported.iter().map(|denial| denial.count == 1).collect());
                }
                if began.elapsed() > LIMIT {
                    return Err("the stand-in has not reported".into());
                }
                tokio::task::yield_now().await;
            }
        })
    }

    /// Runs the stand-in as any program is run.
    fn unconfined(&self) -> Result<Vec<bool>, Failed> {
        let output = Command::new(std::env::current_exe()?).arg(UNCONFINED).arg(&self.targets).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let outcomes: Vec<u8> = serde_json::from_slice(&output.stdout)?;
        Ok(outcomes.into_iter().map(|outcome| outcome == 1).collect())
    }
}

fn targets(path: &Path) -> io::Result<Targets> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().filter_map(|line| line.split_once('='));
    Ok(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// Plays the network process.
fn play(path: &Path) -> Result<(), String> {
    let targets = targets(path).map_err(|error| error.to_string())?;
    stand_in::run(&targets).map_err(|error| error.to_string())
}

fn everything_is_stopped(dir: &Path) -> Result<(), Failed> {
    let host = Host::new(dir)?;
    let confined = host.confined()?;
    drop(host);
    let host = Host::new(dir)?;
    let unconfined = host.unconfined()?;
    let is_root = rustix::process::geteuid().is_root();
    let mut wrong = Vec::new();
    for (index, (name, _)) in ATTACKS.iter().chain(&DUTIES).enumerate() {
        let is_duty = index >= ATTACKS.len();
        println!("{name}: confined {}, unconfined {}", confined[index], unconfined[index]);
        let may_fail = !is_root && FOR_ROOT.contains(name);
        if confined[index] != is_duty || !unconfined[index] && !may_fail {
            wrong.push(*name);
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!("not as expected: {}", wrong.join(", ")).into()),
    }
}
