//! The first and only program of ours inside a microVM.
//!
//! It lives in the initrd and plays two parts. As PID 1 it starts a second copy of itself and then does
//! nothing but reap, so that there is one reaper for orphans and none for the agent's own children. That
//! copy is the agent: it loads the kernel modules, greets the host, makes this machine itself
//! (clock, randomness, name, disks, network) and then serves requests until the machine dies.
//!
//! Everything it reports to a person goes to the serial console, which the host keeps.
#![expect(clippy::print_stderr, reason = "stderr is the serial console, the only place to report to")]

mod agent;
mod boot;
mod copy;
mod exec;
mod fault;
mod halt;
mod handshake;
mod identity;
mod init;
mod memory;
mod network;
mod port;
mod root;
mod warm_up;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 { init::run() } else { agent::run() }
}
