//! Measures what confinement adds to the start of a program: `cost PROGRAM [ARGUMENT]...`. The program must end by itself.
//! Prints medians as JSON.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a tool for the command line")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pyro_confine::{Access, Identity, Policy, Program, Syscalls, Visible};

/// Starts of each kind, which take turns.
const ROUNDS: usize = 60;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let program = PathBuf::from(arguments.next().ok_or("expected a program")?);
    let arguments: Vec<_> = arguments.collect();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let plain =
            Command::new(&program).args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        times[0].push(began.elapsed());
        let began = Instant::now();
        let mut confined = pyro_confine::start(command(&program, &arguments)?, &policy(&program))?;
        let status = confined.process.wait()?;
        times[1].push(began.elapsed());
        if status != plain {
            return Err(format!("{plain} without confinement, and {status} with it").into());
        }
    }
    let [plain, confined] = times.map(|times| median(times).as_secs_f64() * 1000.0);
    println!(
        r#"{{"plain_ms":{plain:.2},"confined_ms":{confined:.2},"difference_ms":{:.2}}}"#,
        confined - plain
    );
    Ok(())
}

fn command(program: &Path, arguments: &[std::ffi::OsString]) -> io::Result<Program> {
    let null = || File::options().read(true).write(true).open("/dev/null");
    Ok(Program {
        program: program.to_owned(),
        arguments: arguments.to_vec(),
        descriptors: vec![(null()?.into(), 0), (null()?.into(), 1), (null()?.into(), 2)],
        blocked_signals: Vec::new(),
        huge_pages: true,
    })
}

fn policy(program: &Path) -> Policy {
    let dirs = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
    let mut files: Vec<_> = dirs.map(|dir| Visible::optional(dir, Access::Execute)).into();
    files.push(Visible::new(program, Access::Execute));
    files.push(Visible::optional("/etc/ld.so.cache", Access::Read));
    files.push(Visible::optional("/usr/share/qemu", Access::Read));
    Policy {
        files,
        staging: "/usr".into(),
        identity: Identity::for_program(),
        // More than a VMM has: the cost is that of the filter, not of what it refuses.
        syscalls: Syscalls::new().allow(&(0..335).collect::<Vec<_>>()),
        limits: Vec::new(),
        oom_score_adj: 0,
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
