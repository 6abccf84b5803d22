//! `pyro bench`: how fast VMs are on this machine.

use clap::Args;

const BENCH_EXAMPLES: &str = "\
Examples:
  pyro bench
  pyro bench --runs 20
  pyro bench --json | jq .results.run.median_ms";

/// Measure how fast VMs start and run a command on this machine
///
/// Starts VMs of debian:12, up to four at once, which takes a minute under emulation. Installs the
/// environment first if it is missing. All VMs are removed again.
#[derive(Debug, Args)]
#[command(after_help = BENCH_EXAMPLES)]
pub(crate) struct BenchArgs {
    /// How often each thing is measured, 1 to 1000
    #[arg(long, value_name = "COUNT", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}
