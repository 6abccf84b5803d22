//! An engine that executes commands from standard input and reports how long they took: the benchmarks use it for VMs
//! that outlive a call. The words of a line are separated by spaces; each line is answered by one line of JSON.
//!
//! ```text
//! measure PYRO BASE_DIR CACHE_DIR SPARES
//!                                      starts the program with this number of spares for the next run
//! start COUNT MEM_MIB                  starts this many VMs at once, waits until `true` returns; they stay
//! boot COUNT MEM_MIB                   like start, without the command
//! exec VM COMMAND                      runs a command in a running VM
//! run COMMAND                          runs a command in its own VM
//! task                                 creates a task
//! task-exec TASK COMMAND               runs a command in a task
//! task-status TASK                     reports the state of a task
//! shell TASK                           opens a login shell in a task, waits for its prompt
//! press TASK SHELL KEY                 types a key into a shell, waits for its echo
//! delete                               deletes all VMs and tasks
//! ```
//!
//! At end of input, it deletes all VMs and tasks and exits.

#![expect(clippy::disallowed_methods, reason = "an example is a front end of its own")]
#![expect(clippy::print_stdout, reason = "a program, not a library")]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyro_engine::operations::{ExecTask, OpenTaskShell, ReadTaskShell, RunInVm, WriteTaskShell};
use pyro_engine::{
    Command, Config, Engine, Events, Overcommit, ShellName, ShellRead, ShellText, TaskSpec, VmSpec,
};
use pyro_supervisor::{Client, CommandOutcome, Exec, ExitStatus, Run};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A VM or a task that this program has created, by id.
enum Guest {
    Vm(String),
    Task(String),
}

#[derive(Clone)]
struct Session {
    engine: Engine,
    vms: PathBuf,
}

fn main() -> Outcome<()> {
    let [program, base_dir, cache_dir, spares] =
        <[_; 4]>::try_from(std::env::args_os().skip(1).map(PathBuf::from).collect::<Vec<_>>())
            .map_err(|_| "usage: measure PYRO BASE_DIR CACHE_DIR SPARES")?;
    let vms = base_dir.join("vms");
    let engine = Engine::new(Config {
        max_active_vms: 1000,
        warm_spares: spares.to_string_lossy().parse()?,
        // As the benchmarks run the program: all disks have the same size, whatever is free on this host.
        disk_overcommit: Overcommit::Off,
        search_path: std::env::var_os("PATH").unwrap_or_default(),
        ..Config::new(base_dir, cache_dir, program)
    });
    let session = Session { engine, vms };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    let mut guests = Vec::new();
    for line in std::io::stdin().lines() {
        let answer = tasks.block_on(&runtime, session.obey(&line?, &mut guests));
        println!("{}", answer.unwrap_or_else(|error| json!({ "error": in_full(&*error) })));
    }
    runtime.block_on(session.delete(&mut guests))
}

impl Session {
    async fn obey(&self, line: &str, guests: &mut Vec<Guest>) -> Outcome<Value> {
        match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["start", count, mem_mib] => self.start(count.parse()?, mem_mib.parse()?, true, guests).await,
            ["boot", count, mem_mib] => self.start(count.parse()?, mem_mib.parse()?, false, guests).await,
            ["exec", id, command] => {
                let (time, bytes) = self.exec(id, command).await?;
                Ok(json!({ "ms": ms(time), "bytes": bytes }))
            }
            ["run", ..] => {
                let command = line.strip_prefix("run ").unwrap_or_default();
                Ok(json!({ "ms": ms(self.run(command).await?) }))
            }
            ["task"] => {
                let mut spec = TaskSpec::new("debian:12");
                spec.vm.ttl_seconds = 3600;
                let never = CancellationToken::new();
                let id = self.engine.create_task(spec, &Events::none(), &never).await?.task_id.to_string();
                guests.push(Guest::Task(id.clone()));
                Ok(json!({ "task": id }))
            }
            ["task-exec", id, command] => Ok(json!({ "ms": ms(self.exec_task(id, command).await?) })),
            ["task-status", id] => {
                let started = Instant::now();
                self.engine.status_task(id).await?;
                Ok(json!({ "ms": ms(started.elapsed()) }))
            }
            ["shell", id] => Ok(json!({ "shell": self.open_shell(id).await? })),
            ["press", id, shell_and_key] => {
                let (shell, key) = shell_and_key.split_once(' ').ok_or("a key is missing")?;
                Ok(json!({ "ms": ms(self.press(id, shell.parse()?, key).await?) }))
            }
            ["delete"] => {
                let started = Instant::now();
                self.delete(guests).await?;
                Ok(json!({ "ms": ms(started.elapsed()) }))
            }
            _ => Err(format!("what is `{line}`?").into()),
        }
    }

    async fn start(
        &self,
        count: usize,
        mem_mib: i64,
        with_command: bool,
        guests: &mut Vec<Guest>,
    ) -> Outcome<Value> {
        let started = Instant::now();
        let tasks = (0..count).map(|_| {
            let session = self.clone();
            tokio::task::spawn_local(async move { session.start_one(mem_mib, with_command).await })
        });
        let mut new = Vec::new();
        let mut each = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            let (id, time) = task.await??;
            guests.push(Guest::Vm(id.clone()));
            new.push(id);
            each.push(ms(time));
        }
        Ok(json!({ "ms": ms(started.elapsed()), "each_ms": each, "vms": new }))
    }

    async fn start_one(&self, mem_mib: i64, with_command: bool) -> Outcome<(String, Duration)> {
        let started = Instant::now();
        let spec = VmSpec { mem_mib, ttl_seconds: 3600, ..VmSpec::new("debian:12") };
        let never = CancellationToken::new();
        let id = self.engine.create_vm(spec, &Events::none(), &never).await?.vm_id.to_string();
        match self.up(&id, with_command).await {
            Ok(()) => Ok((id, started.elapsed())),
            Err(error) => {
                self.engine.delete_vm(&id).await?;
                Err(error)
            }
        }
    }

    async fn up(&self, id: &str, with_command: bool) -> Outcome<()> {
        let vm = self.engine.start_vm(id, &Events::none(), &CancellationToken::new()).await?;
        if let Some(warning) = vm.metadata.get("template_warning") {
            return Err(format!("no template was used: {warning}").into());
        }
        if with_command {
            self.exec(id, "true").await?;
        }
        Ok(())
    }

    /// Returns the time from before the request to after the answer, and the number of bytes that the command wrote.
    async fn exec(&self, id: &str, command: &str) -> Outcome<(Duration, usize)> {
        let run = Run { exec: Exec::new(command, Duration::from_secs(120)), journal: false };
        let client = Client::new(self.vms.join(id));
        let mut bytes = 0;
        let started = Instant::now();
        let never = CancellationToken::new();
        let ran = client.run(run, &never, async |chunk| bytes += chunk.bytes.len()).await?;
        let time = started.elapsed();
        match ran.outcome {
            CommandOutcome::Ended(end) if end.status == Some(ExitStatus::Code(0)) => Ok((time, bytes)),
            outcome => Err(format!("`{command}` ended with {outcome:?}").into()),
        }
    }

    /// Returns the time of a whole call.
    async fn run(&self, command: &str) -> Outcome<Duration> {
        let command = Command { timeout_seconds: Some(120), ..Command::new(command) };
        let started = Instant::now();
        let spec = VmSpec::new("debian:12");
        let request = RunInVm { spec, command, output: Default::default() };
        let ran = self
            .engine
            .run(request, &pyro_engine::CallContext::new(Events::none(), CancellationToken::new()))
            .await?;
        successful(started.elapsed(), &ran.command, ran.exit_code)
    }

    /// Returns the time of a whole call.
    async fn exec_task(&self, id: &str, command: &str) -> Outcome<Duration> {
        let command = Command { timeout_seconds: Some(120), ..Command::new(command) };
        let started = Instant::now();
        let request =
            ExecTask { task: id.into(), command, lasting: Default::default(), output: Default::default() };
        let ran = self
            .engine
            .exec_task(request, &pyro_engine::CallContext::new(Events::none(), CancellationToken::new()))
            .await?;
        successful(started.elapsed(), &ran.command, ran.exit_code)
    }

    async fn open_shell(&self, id: &str) -> Outcome<u64> {
        let opened =
            self.engine.open_task_shell(OpenTaskShell { task: id.into(), shell: Default::default() });
        let shell_id = opened.await?.shell_id;
        let mut read = ShellRead { cursor: Some(0), ..awaited() };
        loop {
            let request = ReadTaskShell { task: id.into(), shell: ShellName { shell_id }, read };
            let output = self.engine.read_task_shell(request, &CancellationToken::new()).await?;
            if output.text.ends_with("# ") {
                return Ok(shell_id);
            }
            if output.text.is_empty() {
                return Err("the shell has no prompt".into());
            }
            read.cursor = Some(output.cursor);
        }
    }

    /// Returns the time of a whole call.
    async fn press(&self, id: &str, shell_id: u64, key: &str) -> Outcome<Duration> {
        let typed = ShellText { text: key.into(), ..ShellText::default() };
        let request =
            WriteTaskShell { task: id.into(), shell: ShellName { shell_id }, typed, read: awaited() };
        let started = Instant::now();
        let output = self.engine.write_task_shell(request, &CancellationToken::new()).await?;
        let time = started.elapsed();
        if output.text.is_empty() { Err("a key has no echo".into()) } else { Ok(time) }
    }

    async fn delete(&self, guests: &mut Vec<Guest>) -> Outcome<()> {
        for guest in guests.drain(..) {
            match guest {
                Guest::Vm(id) => drop(self.engine.delete_vm(&id).await?),
                Guest::Task(id) => drop(self.engine.delete_task(&id).await?),
            }
        }
        Ok(())
    }
}

/// The first output, for which a read waits.
fn awaited() -> ShellRead {
    ShellRead { wait_seconds: 60.0, ..ShellRead::default() }
}

/// Returns the time that a command took, if it succeeded.
fn successful(time: Duration, command: &str, exit_code: i64) -> Outcome<Duration> {
    match exit_code {
        0 => Ok(time),
        code => Err(format!("`{command}` ended with {code}").into()),
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns an error and its causes as one text.
fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
