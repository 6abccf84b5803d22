//! pyro's only program inside a microVM.
//!
//! It is in the initrd and has three roles. As PID 1, it starts a second copy of itself and then only reaps orphans, so that
//! it never reaps the agent's own children. That copy is the agent: it loads the kernel modules, greets the host, sets this
//! machine up (clock, randomness, name, disks, network) and then serves requests until the machine ends. A third, short-lived
//! copy takes the place of a login shell and writes the environment that it finds.
//!
//! Code that needs a machine of its own (mounts, clock, network, the end of all processes) is behind the trait
//! [`Machine`]. Everything else runs, and is tested, on any Linux: [`set_up`] over any channel, [`Agent`] over any
//! stream.
//!
//! The agent reports errors to the serial console, which the host keeps.
#![expect(clippy::print_stderr, reason = "stderr is the serial console, the only place to report to")]

mod agent;
mod blocking;
mod boot;
mod connect;
mod copy;
mod exec;
mod failure;
mod files;
mod halt;
mod handshake;
mod host_settings;
mod identity;
mod init;
mod machine;
mod memory;
mod mount;
mod network;
mod packets;
mod port;
mod probe;
mod proc;
mod root;
mod stream;
mod swap;
mod vsock;
mod warm_up;
mod watched;
mod workspace;

pub use agent::{Agent, AgentError};
pub use exec::CommandSettings;
pub use handshake::{HandshakeError, set_up};
pub use machine::Machine;

use std::process::ExitCode;

/// Runs as PID 1 or as the agent, until the machine ends, or writes the environment of a login shell.
pub fn run() -> ExitCode {
    #[expect(clippy::disallowed_methods, reason = "the agent's role is given as its argument")]
    let mut arguments = std::env::args_os().skip(1);
    if std::process::id() == 1 {
        init::run()
    } else if arguments.next().is_some_and(|role| role == exec::WRITE_ENVIRONMENT) {
        exec::write_environment()
    } else {
        agent::run()
    }
}
