//! `pyro env`: the environments VMs start from.

use clap::{Args, Subcommand};

const ENV_EXAMPLES: &str = "\
Examples:
  pyro env list
  pyro env pull debian:12
  pyro env inspect debian:12 --json
  pyro env prune";

/// List, install, inspect and remove environments
///
/// An environment is the system a VM starts from, named like `debian:12`. Installed ones are kept in a
/// cache and shared by all VMs.
#[derive(Debug, Subcommand)]
#[command(after_help = ENV_EXAMPLES, arg_required_else_help = true)]
pub(crate) enum EnvCommand {
    List(EnvListArgs),
    Pull(EnvPullArgs),
    Inspect(EnvInspectArgs),
    Prune(EnvPruneArgs),
}

impl EnvCommand {
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::List(args) => args.json,
            Self::Pull(args) => args.name.json,
            Self::Inspect(args) => args.name.json,
            Self::Prune(args) => args.json,
        }
    }
}

const LIST_EXAMPLES: &str = "\
Examples:
  pyro env list
  pyro env list --json | jq -r '.environments[].name'";

/// List the environments of the catalog and whether each is installed
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct EnvListArgs {
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

/// The environment a command is about.
#[derive(Debug, Args)]
pub(crate) struct EnvNameArgs {
    /// Name from the catalog, such as debian:12; `pyro env list` shows them all
    #[arg(value_name = "ENVIRONMENT")]
    pub(crate) environment: String,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

const PULL_EXAMPLES: &str = "\
Examples:
  pyro env pull debian:12
  PYRO_DEBIAN_MIRROR=https://mirror.example/debian pyro env pull debian:12-build";

/// Install an environment into the cache
///
/// Does nothing if it is installed already. `pyro run` does the same on first use; pulling beforehand
/// keeps the download out of the first run.
#[derive(Debug, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(crate) struct EnvPullArgs {
    #[command(flatten)]
    pub(crate) name: EnvNameArgs,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  pyro env inspect debian:12
  pyro env inspect debian:12 --json | jq .default_packages";

/// Show one environment of the catalog in full
#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(crate) struct EnvInspectArgs {
    #[command(flatten)]
    pub(crate) name: EnvNameArgs,
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  pyro env prune
  pyro env prune --json";

/// Remove cached environments that are stale, damaged or unfinished
///
/// Installed environments of the current catalog, and downloads that another pyro is working on, stay.
#[derive(Debug, Args)]
#[command(after_help = PRUNE_EXAMPLES)]
pub(crate) struct EnvPruneArgs {
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}
