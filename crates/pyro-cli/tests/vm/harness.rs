//! A state directory of its own for every test, ways to run `pyro` in it, and the check that nothing is left in it at the
//! end.

mod cache;
mod engine;
mod task;
mod terminal;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) use pyro_testkit::{Ended, LONG, Process, Running, kill, scaled, wait_until};
use pyro_testkit::{McpClient, reached_within};

pub(crate) use engine::{Capture, chain, command, exec, exec_text, never, quiet};
pub(crate) use task::Task;
pub(crate) use terminal::{Terminal, Tmux, assert_put_back};

/// The executable under test.
pub(crate) const PYRO: &str = env!("CARGO_BIN_EXE_pyro");
/// The environment that the guests are made from.
pub(crate) const ENVIRONMENT: &str = "debian:12";

/// The kernel that the guests boot, if it is not the environment's own.
pub(crate) fn guest_kernel() -> Option<String> {
    std::env::var("PYRO_TEST_GUEST_KERNEL").ok()
}

/// Firecracker's program, if VMs run on it.
pub(crate) fn firecracker() -> Option<PathBuf> {
    let is_wanted = std::env::var("PYRO_TEST_VMM").is_ok_and(|vmm| vmm == "firecracker");
    is_wanted.then(|| std::env::var("PYRO_TEST_FIRECRACKER").unwrap().into())
}

/// Name of the script that a test puts in the VMM's place.
const VMM_SCRIPT: &str = "vmm-of-this-test";

/// Time in which everything of an ended run must be gone; two seconds on a machine with nothing else to do.
pub(crate) const GONE_WITHIN: Duration = Duration::from_secs(10);

/// The sandbox of one test.
pub(crate) struct Sandbox(pyro_testkit::Sandbox);

impl Sandbox {
    /// An empty state directory, an empty home, and a cache that holds [`ENVIRONMENT`]. How many VMs run at once does not
    /// change the sizes of their disks, whatever is free on this host.
    pub(crate) fn new() -> Self {
        Self::with_cache(cache::with_environment())
    }

    /// The same with the test's own cache directory.
    pub(crate) fn with_cache(cache: &Path) -> Self {
        let sandbox = Self(pyro_testkit::Sandbox::new("pyro-vm-"));
        let home = sandbox.path("home");
        fs::create_dir(&home).unwrap();
        let state = sandbox.state();
        let sandbox = match firecracker() {
            Some(program) => sandbox.on_firecracker(&program),
            None => sandbox,
        };
        sandbox
            .set("HOME", home.to_str().unwrap())
            .set("PATH", &std::env::var("PATH").unwrap())
            .set("PYRO_ENVIRONMENT_CACHE_DIR", cache.to_str().unwrap())
            .set("PYRO_BASE_DIR", state.to_str().unwrap())
            .set("PYRO_DISK_OVERCOMMIT", "off")
            .set("PYRO_GUEST_KERNEL", guest_kernel().as_deref().unwrap_or_default())
    }

    /// Makes VMs run on Firecracker. The sandbox has its own copy, because nothing but the program's path tells to which
    /// sandbox a Firecracker belongs.
    fn on_firecracker(self, program: &Path) -> Self {
        let copy = self.path("firecracker");
        fs::copy(program, &copy).unwrap();
        self.set("PYRO_VMM", "firecracker").set("PYRO_FIRECRACKER", copy.to_str().unwrap())
    }

    /// Sets an environment variable of the processes that are started here.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.0.set(name, value);
        self
    }

    /// Makes the VMM look too old for templates, so that every start boots the kernel.
    pub(crate) fn without_templates(self) -> Self {
        let path = std::env::var("PATH").unwrap();
        self.with_vmm_script(&format!("PATH={path} exec qemu-system-x86_64 \"$@\""))
    }

    /// Puts a shell script into the sandbox and makes it the VMM, in QEMU's place. It looks too old for templates.
    pub(crate) fn with_vmm_script(self, text: &str) -> Self {
        let script = self.path(VMM_SCRIPT);
        let version = "if [ \"$1\" = --version ]; then echo 'QEMU emulator version 7.2.0'; exit; fi";
        fs::write(&script, format!("#!/bin/sh\n{version}\n{text}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let script = script.to_str().unwrap().to_owned();
        self.set("PYRO_VMM", "qemu").set("PYRO_QEMU", &script)
    }

    /// The state directory. `pyro` makes it.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Directory of one VM.
    pub(crate) fn vm_dir(&self, vm_id: &str) -> PathBuf {
        self.state().join("vms").join(vm_id)
    }

    /// A path for files of the test itself.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// The sandbox without what only tests with VMs need.
    pub(crate) fn plain(&self) -> &pyro_testkit::Sandbox {
        &self.0
    }

    /// `program` with the variables of this sandbox and no others, and no input.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        self.0.program(program)
    }

    /// `pyro` with these words, started.
    pub(crate) fn start<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Running {
        Running::start(self.program(PYRO).args(words))
    }

    /// `pyro` with these words, run to its end.
    pub(crate) fn pyro<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Ended {
        self.start(words).finish()
    }

    /// `pyro run` of one shell line, with these flags, started.
    pub(crate) fn start_run<'a>(&self, flags: impl IntoIterator<Item = &'a str>, line: &'a str) -> Running {
        self.start(["run", ENVIRONMENT].into_iter().chain(flags).chain(["--", line]))
    }

    /// `pyro run` of one shell line, with these flags, run to its end.
    pub(crate) fn run<'a>(&self, flags: impl IntoIterator<Item = &'a str>, line: &'a str) -> Ended {
        self.start_run(flags, line).finish()
    }

    /// Processes that belong to this sandbox.
    pub(crate) fn processes(&self) -> Vec<Process> {
        pyro_testkit::mentioning(self.0.root())
    }

    /// Waits for the one supervisor of this sandbox.
    pub(crate) fn supervisor(&self) -> Process {
        let state = self.state();
        self.wait_for_process("supervisor", |process| process.is_supervisor_of(&state))
    }

    /// Waits for the one VMM of this sandbox.
    pub(crate) fn vmm(&self) -> Process {
        self.wait_for_process("VMM", is_vmm)
    }

    /// Waits for a process of this sandbox.
    pub(crate) fn wait_for_process(&self, what: &str, wanted: impl Fn(&Process) -> bool) -> Process {
        let mut found = None;
        wait_until(LONG, what, || {
            found = self.processes().into_iter().find(&wanted);
            found.is_some()
        });
        found.unwrap()
    }

    /// Describes everything that exists of VMs now.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        pyro_testkit::leftovers::find(self.0.root(), &self.state())
    }

    /// A client of `pyro mcp serve` with these flags.
    pub(crate) fn mcp<const N: usize>(&self, flags: [&str; N]) -> McpClient {
        let mut command = self.program(PYRO);
        command.args(["mcp", "serve"]).args(flags);
        McpClient::new(command)
    }

    /// Waits until nothing is left of any VM and prints how long that took.
    ///
    /// # Panics
    /// Something is left after [`GONE_WITHIN`].
    #[expect(clippy::print_stdout, reason = "the test runner shows it on demand")]
    pub(crate) fn wait_until_clean(&self) {
        let start = Instant::now();
        let mut left = Vec::new();
        let clean = reached_within(GONE_WITHIN, || {
            left = self.leftovers();
            left.is_empty()
        });
        assert!(clean, "left behind after {:?}:\n{}", start.elapsed(), left.join("\n"));
        println!("nothing left after {:?}", start.elapsed());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.wait_until_clean();
            return;
        }
        // The test has failed already; its processes must not disturb the others.
        for process in self.processes() {
            kill(process.pid, rustix::process::Signal::KILL);
        }
    }
}

/// A VMM, or the script in its place. One that is only asked for its version runs no machine.
pub(crate) fn is_vmm(process: &Process) -> bool {
    let is_program = ["qemu-system-x86_64", "firecracker"].iter().any(|name| process.is_program(name));
    (is_program || process.is_script(VMM_SCRIPT)) && !process.has_argument("--version")
}
