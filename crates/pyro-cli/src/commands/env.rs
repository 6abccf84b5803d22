//! `pyro env list`, `pull`, `inspect` and `prune`: the environments that VMs start from.

use std::path::Path;

use clap::{Args, Subcommand};
use pyro_engine::{Engine, Environment, EnvironmentList, Pruned, PulledEnvironment, RemovedEnvironment};
use serde::Serialize;

use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::text::yes_no;
use crate::{config, session};

const ENV_EXAMPLES: &str = "\
Examples:
  pyro env list
  pyro env pull debian:12
  pyro env inspect debian:12 --json
  pyro env remove debian:12
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
    Verify(EnvVerifyArgs),
    #[command(visible_alias = "rm")]
    Remove(EnvRemoveArgs),
    Prune(EnvPruneArgs),
}

impl EnvCommand {
    pub(crate) fn run(self, printer: &Printer) -> Result<Reply, CliError> {
        let engine = config::engine()?;
        Ok(match self {
            Self::List(args) => {
                Reply::of(args.json, &session::block_on(engine.list_environments())?, listed)?
            }
            Self::Pull(args) => pull(&engine, &args.name, printer)?,
            Self::Inspect(args) => {
                let name = &args.name;
                let environment = session::block_on(engine.inspect_environment(&name.environment))?;
                Reply::of(name.json, &environment, inspected)?
            }
            Self::Verify(args) => {
                let name = &args.name;
                session::block_on(engine.verify_environment(&name.environment))?;
                let verified = Verified { name: name.environment.clone(), intact: true };
                Reply::of(name.json, &verified, |verified| format!("{}: intact\n", verified.name))?
            }
            Self::Remove(args) => {
                let name = &args.name;
                let removed = session::block_on(engine.remove_environment(&name.environment))?;
                Reply::of(name.json, &removed, removed_text)?
            }
            Self::Prune(args) => {
                Reply::of(args.json, &session::block_on(engine.prune_environments())?, pruned)?
            }
        })
    }

    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::List(args) => args.json,
            Self::Pull(args) => args.name.json,
            Self::Inspect(args) => args.name.json,
            Self::Verify(args) => args.name.json,
            Self::Remove(args) => args.name.json,
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

const VERIFY_EXAMPLES: &str = "\
Examples:
  pyro env verify debian:12";

/// Compare an installed environment with the digests recorded when it was installed
///
/// Reads all of its files, which takes a second or two. Every start compares sizes, times, and inodes only. Fails if a file
/// has changed.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(crate) struct EnvVerifyArgs {
    #[command(flatten)]
    pub(crate) name: EnvNameArgs,
}

/// An environment whose files are as they were installed.
#[derive(Debug, Serialize)]
struct Verified {
    name: String,
    intact: bool,
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

const REMOVE_EXAMPLES: &str = "\
Examples:
  pyro env remove debian:12";

/// Remove an installed environment from the cache, with its templates
///
/// Removes all its versions. Fails while there are VMs or tasks that were made from it, stopped ones too, because their disks
/// need it. `pyro env inspect` shows how much space an environment uses.
#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub(crate) struct EnvRemoveArgs {
    #[command(flatten)]
    pub(crate) name: EnvNameArgs,
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  pyro env prune
  pyro env prune --json";

/// Remove cached environments that are stale, damaged or unfinished
///
/// Keeps the installed environments of the current catalog, older versions that tasks of this state directory were made
/// from, and what another pyro is installing.
#[derive(Debug, Args)]
#[command(after_help = PRUNE_EXAMPLES)]
pub(crate) struct EnvPruneArgs {
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

fn pull(engine: &Engine, args: &EnvNameArgs, printer: &Printer) -> Result<Reply, CliError> {
    let name = &args.environment;
    let (environment, shown) = session::watch(printer, args.json, async |events, cancel| {
        engine.pull_environment(name, &events, &cancel).await
    })?;
    let reply = Reply::of(args.json, &environment, pulled)?;
    if args.json || shown.pull_started {
        return Ok(reply);
    }
    // Already installed. Every pull prints these two lines, so that a script can wait for them.
    let phases = ["install", "ready"];
    Ok(phases
        .iter()
        .fold(reply, |reply, phase| reply.note(format!("[pull] phase={phase} environment={name}"))))
}

fn listed(list: &EnvironmentList) -> String {
    let mut lines = vec![format!("Catalog version: {}", list.catalog_version)];
    if list.environments.is_empty() {
        lines.push("No environments found.".to_owned());
    }
    lines.extend(list.environments.iter().map(|environment| {
        let state = if environment.installed { "installed" } else { "not installed" };
        let size = environment.size_bytes.map(|bytes| format!("; {} MiB", mib(bytes))).unwrap_or_default();
        let more = format!("(shell: {}{size})", environment.shell);
        let words = [&environment.name, &format!("[{state}]"), &environment.description, &more];
        words.map(String::as_str).into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }));
    joined(&lines)
}

fn inspected(environment: &Environment) -> String {
    let mut lines = vec![format!("Environment: {}", environment.name)];
    lines.extend(details(environment));
    lines.extend(source(environment));
    joined(&lines)
}

fn pulled(pulled: &PulledEnvironment) -> String {
    let environment = &pulled.environment;
    let mut lines = vec![format!("Pulled: {}", environment.name)];
    lines.extend(details(environment));
    lines.push(format!("Kernel image: {}", shown(&pulled.kernel_image)));
    lines.push(format!("Rootfs image: {}", shown(&pulled.rootfs_image)));
    lines.extend(source(environment));
    joined(&lines)
}

fn pruned(pruned: &Pruned) -> String {
    let report = &pruned.environments;
    let entries = if report.count == 1 { "entry" } else { "entries" };
    let mut lines = vec![format!("Deleted {} cached environment {entries}.", report.count)];
    lines.extend(report.deleted_environment_dirs.iter().map(|name| format!("- {name}")));
    match pruned.deleted_templates {
        0 => {}
        1 => lines.push("Deleted 1 template.".to_owned()),
        count => lines.push(format!("Deleted {count} templates.")),
    }
    joined(&lines)
}

fn removed_text(removed: &RemovedEnvironment) -> String {
    let mut lines = vec![format!("Removed: {} ({} MiB)", removed.environment, mib(removed.freed_bytes))];
    match removed.deleted_templates {
        0 => {}
        1 => lines.push("Deleted 1 template.".to_owned()),
        count => lines.push(format!("Deleted {count} templates.")),
    }
    joined(&lines)
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// The lines that `pull` and `inspect` share, after the first.
fn details(environment: &Environment) -> Vec<String> {
    let mut lines = vec![
        format!("Version: {}", environment.version),
        format!("Distribution: {} {}", environment.distribution, environment.distribution_version),
        format!("Installed: {}", yes_no(environment.installed)),
        format!("Shell: {}", environment.shell),
        format!("Cache dir: {}", shown(&environment.cache_dir)),
    ];
    if !environment.default_packages.is_empty() {
        lines.push(format!("Default packages: {}", environment.default_packages.join(", ")));
    }
    if !environment.description.is_empty() {
        lines.push(format!("Description: {}", environment.description));
    }
    if environment.installed {
        let manifest = environment.install_manifest.as_ref().map_or("unknown".to_owned(), shown);
        lines.push(format!("Install dir: {}", shown(&environment.install_dir)));
        lines.push(format!("Install manifest: {manifest}"));
        lines.extend(environment.size_bytes.map(|bytes| format!("Size: {} MiB", mib(bytes))));
    }
    lines
}

fn source(environment: &Environment) -> Option<String> {
    let registry = environment.oci_registry.as_ref()?;
    let repository = environment.oci_repository.as_ref()?;
    let reference = environment.oci_reference.as_ref()?;
    Some(format!("OCI source: {registry}/{repository}:{reference}"))
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

fn joined(lines: &[String]) -> String {
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests;
