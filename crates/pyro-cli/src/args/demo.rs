//! `pyro demo`: what pyro is for, shown once.

use clap::Args;

const DEMO_EXAMPLES: &str = "\
The exit status is 0 whatever that of the command is: read `exit_code` in the document.

Examples:
  pyro demo
  pyro demo --network | jq .stdout";

/// Run one command in a new VM and print the result
///
/// Runs `git --version` in debian:12, or with --network a command that fetches https://example.com and
/// prints the HTTP status. The result is one JSON document on stdout. Installs the environment first if it
/// is missing.
#[derive(Debug, Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub(crate) struct DemoArgs {
    /// Give the guest outbound network access and show that it works [default: off]
    #[arg(long)]
    pub(crate) network: bool,
}
