//! The engine as a library, for VMs that outlive a call, which the command line does not offer.

use std::error::Error as _;
use std::path::PathBuf;

use pyro_engine::operations::ExecVm;
use pyro_engine::{Command, Config, Engine, Error, Events, Overcommit, Reader, Vm, VmSpec, Vmm};
use pyro_supervisor::{Client, CommandEnd, CommandOutcome, Exec, OutputStream, Run, RunError};
use tokio_util::sync::CancellationToken;

use super::{ENVIRONMENT, PYRO, Sandbox, cache, firecracker};

/// No events.
pub(crate) fn quiet() -> Events {
    Events::none()
}

/// A cancellation that never comes.
pub(crate) fn never() -> CancellationToken {
    CancellationToken::new()
}

impl Sandbox {
    /// An engine on this sandbox's state directory, like that of another process of the user.
    pub(crate) fn engine(&self) -> Engine {
        self.engine_with(|_| {})
    }

    /// The same with other settings.
    pub(crate) fn engine_with(&self, change: impl FnOnce(&mut Config)) -> Engine {
        let mut config = Config {
            disk_overcommit: Overcommit::Off,
            guest_kernel: super::guest_kernel().map(PathBuf::from),
            search_path: std::env::var_os("PATH").unwrap(),
            vmm: if firecracker().is_some() { Vmm::Firecracker } else { Vmm::Qemu },
            firecracker_program: firecracker().map(|_| self.path("firecracker")),
            ..Config::new(self.state(), cache::with_environment().to_owned(), PYRO.into())
        };
        change(&mut config);
        Engine::new(config)
    }

    /// A VM that has been created and started.
    pub(crate) async fn started_vm(&self, engine: &Engine) -> Vm {
        let vm = engine.create_vm(VmSpec::new(ENVIRONMENT), &quiet(), &never()).await.unwrap();
        engine.start_vm(vm.vm_id.as_str(), &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap()
    }

    /// A way to run many commands in one VM.
    pub(crate) fn guest(&self, vm: &Vm) -> Client {
        Client::new(self.vm_dir(vm.vm_id.as_str()))
    }
}

/// A command for a VM.
pub(crate) fn exec(vm_id: &str, command: Command) -> ExecVm {
    ExecVm { vm: vm_id.into(), command, output: Default::default() }
}

/// An error, its causes and its hints in one text.
pub(crate) fn chain(error: &Error) -> String {
    let mut causes = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push_str(&format!(": {error}"));
        cause = error.source();
    }
    format!("{:?} {error}{causes} {:?}", error.kind, error.hints_for(Reader::Person))
}

/// What a command in a guest wrote, and how it ended.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) outcome: CommandEnd,
}

impl Capture {
    /// Runs one command with a time limit in milliseconds.
    pub(crate) async fn of(guest: &Client, line: &str, timeout_ms: u64) -> Result<Self, RunError> {
        Self::run(guest, Exec::new(line, std::time::Duration::from_millis(timeout_ms))).await
    }

    /// Runs one command of any kind.
    pub(crate) async fn run(guest: &Client, exec: Exec) -> Result<Self, RunError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let take = async |chunk: pyro_supervisor::OutputChunk| match chunk.stream {
            OutputStream::Stdout => stdout.extend_from_slice(&chunk.bytes),
            OutputStream::Stderr => stderr.extend_from_slice(&chunk.bytes),
        };
        let ran = guest.run(Run { exec, journal: false }, &never(), take).await?;
        let CommandOutcome::Ended(outcome) = ran.outcome else { panic!("no end: {ran:?}") };
        Ok(Self { stdout, stderr, outcome })
    }
}

/// Standard output of a command that is expected to succeed.
pub(crate) async fn exec_text(guest: &Client, line: &str) -> String {
    let capture = Capture::of(guest, line, 60_000).await.unwrap();
    let stdout = String::from_utf8_lossy(&capture.stdout).into_owned();
    assert_eq!(capture.outcome.status, Some(pyro_supervisor::ExitStatus::Code(0)), "{capture:?}");
    stdout
}

/// A command whose output is kept.
pub(crate) fn command(line: &str) -> Command {
    Command { timeout_seconds: Some(60), ..Command::new(line) }
}
