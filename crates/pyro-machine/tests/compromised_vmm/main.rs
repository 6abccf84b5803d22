//! What a VMM could do that a guest has taken over.
//!
//! The program of these tests runs itself in place of the VMM, through the code that starts QEMU, and tries to do harm. It
//! is also run without confinement, where everything must succeed: an attempt that cannot succeed proves nothing.

#![expect(clippy::print_stdout, reason = "the report of what was tried")]
#![expect(clippy::disallowed_methods, reason = "the arguments say which of its parts this program plays")]

mod stand_in;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};

use libtest_mimic::{Arguments, Failed, Trial};
use pyro_machine::disk::LayerLifetime;
use pyro_machine::{
    Accelerator, Confinement, Console, Disks, Hardware, Launch, Machine, MachineConfig, Platform, Qemu, Start,
};
use tokio::task::LocalSet;

/// Who reruns this program as an ordinary user passes this argument, and the directory for its files.
const AS_USER: &str = "--as-user";
/// A user without rights.
const UNPRIVILEGED: u32 = 65534;

/// Attempts that only root of the host can make, or that a setting of the host may forbid to others.
const FOR_ROOT: [&str; 6] = [
    "change_user",
    "mount",
    "write_supervisor_memory",
    "read_supervisor_memory",
    "trace_process",
    "create_namespace",
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.iter().any(|argument| argument == "-sandbox") {
        return stand_in::run(&arguments);
    }
    if arguments.get(1).is_some_and(|argument| argument == stand_in::CONTINUE) {
        return stand_in::go_on();
    }
    if arguments.get(1).is_some_and(|argument| argument == AS_USER) {
        let dir = arguments.get(2).map(Path::new).unwrap_or(Path::new("/nonexistent"));
        return match everything_is_stopped(dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failed) => {
                let _ = writeln!(io::stderr(), "{}", failed.message().unwrap_or("failed"));
                ExitCode::FAILURE
            }
        };
    }
    let trials = vec![
        Trial::test("a_compromised_vmm_is_stopped_where_an_unconfined_one_is_not", || {
            everything_is_stopped(tempfile::tempdir()?.path())
        }),
        Trial::test("a_compromised_vmm_of_an_ordinary_user_is_stopped_too", as_ordinary_user),
        Trial::test("without_user_namespaces_the_other_layers_stop_it", || {
            in_poorer_host("exec \"$0\" \"$@\"", &["mount_namespace=active", "user_namespace=unavailable"])
        }),
        Trial::test("without_any_namespace_landlock_and_seccomp_stop_it", || {
            in_poorer_host(
                "exec setpriv --bounding-set -all --inh-caps -all \"$0\" \"$@\"",
                &["mount_namespace=unavailable", "landlock=active", "seccomp=active"],
            )
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs the first test again as a user without rights, if this one is root. Otherwise the first test has done that.
fn as_ordinary_user() -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (dir, program) = copy_of_itself()?;
    std::os::unix::fs::chown(dir.path(), Some(UNPRIVILEGED), Some(UNPRIVILEGED))?;
    rerun(Command::new(program).arg(AS_USER).arg(dir.path()).uid(UNPRIVILEGED).gid(UNPRIVILEGED)).map(drop)
}

/// Runs the first test again where no user namespace can be created, as a root that only rules a user namespace: like many
/// containers. `script` continues with its arguments. The report must have these words.
fn in_poorer_host(script: &str, words: &[&str]) -> Result<(), Failed> {
    let (dir, program) = copy_of_itself()?;
    let script = format!("echo 0 > /proc/sys/user/max_user_namespaces && {script}");
    let text = rerun(
        Command::new("unshare")
            .args(["--user", "--mount", "--map-root-user", "/bin/sh", "-c", &script])
            .arg(program)
            .arg(AS_USER)
            .arg(dir.path()),
    )?;
    match words.iter().find(|word| !text.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("expected {word} in {text}").into()),
    }
}

fn copy_of_itself() -> io::Result<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::Builder::new().prefix("pyro-vmm-").tempdir_in("/tmp")?;
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe()?, &program)?;
    Ok((dir, program))
}

/// Returns what the command has printed.
fn rerun(command: &mut Command) -> Result<String, Failed> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    if output.status.success() {
        return Ok(text);
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
}

/// A value of this process, which plays the supervisor.
static CANARY: AtomicU64 = AtomicU64::new(UNTOUCHED);
const UNTOUCHED: u64 = 0x11;

/// What is there to be harmed.
struct Host {
    dir: PathBuf,
    disks: Disks,
    bystander: Child,
    _open: (TcpListener, UnixListener, UnixListener, File),
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.bystander.kill();
        let _ = self.bystander.wait();
    }
}

impl Host {
    fn new(dir: &Path) -> io::Result<Self> {
        let vm = dir.join("vm");
        fs::create_dir_all(&vm)?;
        let file = |path: PathBuf| {
            fs::write(&path, "content")?;
            Ok::<_, io::Error>(path)
        };
        let secret = file(dir.join("id_ed25519"))?;
        let registry = file(dir.join("state.sqlite3"))?;
        let disks = Disks {
            kernel: file(vm.join("kernel"))?.into(),
            initrd: file(vm.join("initrd"))?,
            base_image: file(dir.join("rootfs"))?.into(),
            layer: vm.join("layer"),
        };
        let socket = dir.join("control.sock");
        let _ = fs::remove_file(&socket);
        let control = UnixListener::bind(&socket)?;
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let name = format!("pyro-test-{}", std::process::id());
        let abstract_socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        // Unlike an opened file, a copied descriptor is not closed by exec.
        let leaked = File::from(rustix::io::dup(File::open(&secret)?)?);
        let bystander = Command::new("/bin/sleep").arg("600").spawn()?;
        let targets = BTreeMap::from([
            ("dir", dir.display().to_string()),
            ("secret", secret.display().to_string()),
            ("registry", registry.display().to_string()),
            ("socket", socket.display().to_string()),
            ("image", disks.base_image.path().display().to_string()),
            ("port", tcp.local_addr()?.port().to_string()),
            ("abstract", name),
            ("bystander", bystander.id().to_string()),
            ("supervisor", std::process::id().to_string()),
            ("canary", (CANARY.as_ptr() as usize).to_string()),
            ("leaked", leaked.as_raw_fd().to_string()),
        ]);
        let lines: String = targets.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        // One from an earlier start belongs to the user of its VMM.
        let _ = fs::remove_file(&disks.layer);
        fs::write(&disks.layer, lines)?;
        CANARY.store(UNTOUCHED, Ordering::Relaxed);
        Ok(Self { dir: dir.to_owned(), disks, bystander, _open: (tcp, control, abstract_socket, leaked) })
    }

    /// Runs the stand-in as the VMM of a machine, and returns what it has managed to do.
    fn confined(&self) -> Result<(BTreeMap<String, String>, Confinement), Failed> {
        let log = self.dir.join("vm/serial.log");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = MachineConfig {
            vmm_program: std::env::current_exe()?,
            accelerator: Accelerator::Tcg,
            vcpu_count: 1,
            mem_mib: 256,
        };
        let launch = Launch {
            hardware: Hardware { config, layer_lifetime: LayerLifetime::OneStart, interface: None },
            disks: self.disks.clone(),
            network: None,
            start: Start::Kernel { save_in: None },
            console: Console::create(&log).map_err(|error| error.to_string())?,
            requires_full_confinement: false,
        };
        let work = async {
            let mut machine = Qemu::new().launch(launch).await.map_err(|error| format!("{error:?}"))?;
            let exit = machine.exited().await;
            let words = machine.console().last_words().await;
            let confinement = machine.confinement().clone();
            match exit.status().as_str() {
                "exit status: 0" => Ok(confinement),
                status => Err(Failed::from(format!("the stand-in has failed ({status}): {words:?}"))),
            }
        };
        let confinement = LocalSet::new().block_on(&runtime, work)?;
        Ok((outcomes(&fs::read_to_string(log)?), confinement))
    }

    /// Runs the stand-in as any program is run.
    fn unconfined(&self) -> Result<BTreeMap<String, String>, Failed> {
        let layer =
            format!(r#"{{"node-name":"layer","file":{{"filename":"{}"}}}}"#, self.disks.layer.display());
        let output = Command::new(std::env::current_exe()?)
            .args(["-sandbox", "on", "-blockdev", &layer])
            .env("PYRO_TEST_CANARY", "1")
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(outcomes(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// Whether this process is root, and not only of a user namespace.
fn is_root_of_host() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::geteuid().is_root() && map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Lines of the form `attempt: yes` or `attempt: no`.
fn outcomes(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    lines.map(|(attempt, outcome)| (attempt.to_owned(), outcome.to_owned())).collect()
}

fn everything_is_stopped(dir: &Path) -> Result<(), Failed> {
    let is_root = is_root_of_host();
    let host = Host::new(dir)?;
    let (confined, confinement) = host.confined()?;
    println!("confinement: {confinement}");
    if CANARY.load(Ordering::Relaxed) != UNTOUCHED {
        return Err("the memory of the supervisor was written to".into());
    }
    drop(host);
    let host = Host::new(dir)?;
    let unconfined = host.unconfined()?;
    let mut wrong = Vec::new();
    for attempt in stand_in::ATTEMPTS {
        let outcome = |outcomes: &BTreeMap<String, String>| {
            outcomes.get(attempt).cloned().unwrap_or_else(|| "not tried".to_owned())
        };
        let (with, without) = (outcome(&confined), outcome(&unconfined));
        println!("{attempt:<30} confined: {with:<50} unconfined: {without}");
        let is_possible = without == "yes" || !is_root && FOR_ROOT.contains(&attempt);
        if !with.starts_with("no (") || !is_possible {
            wrong.push(format!("{attempt} (confined: {with}; unconfined: {without})"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!("not stopped, or not possible without confinement: {}", wrong.join(", ")).into())
}
