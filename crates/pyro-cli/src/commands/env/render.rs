//! Environments as text for people.

use std::path::Path;

use pyro_engine::{Environment, EnvironmentList, Pruned, PulledEnvironment};

use crate::commands::yes_no;

pub(super) fn list(list: &EnvironmentList) -> String {
    let mut lines = vec![format!("Catalog version: {}", list.catalog_version)];
    if list.environments.is_empty() {
        lines.push("No environments found.".to_owned());
    }
    lines.extend(list.environments.iter().map(|environment| {
        let state = if environment.installed { "installed" } else { "not installed" };
        format!("{} [{state}] {}", environment.name, environment.description).trim_end().to_owned()
    }));
    joined(&lines)
}

pub(super) fn inspected(environment: &Environment) -> String {
    let mut lines = vec![format!("Environment: {}", environment.name)];
    lines.extend(details(environment));
    lines.extend(source(environment));
    joined(&lines)
}

pub(super) fn pulled(pulled: &PulledEnvironment) -> String {
    let environment = &pulled.environment;
    let mut lines = vec![format!("Pulled: {}", environment.name)];
    lines.extend(details(environment));
    lines.push(format!("Kernel image: {}", shown(&pulled.kernel_image)));
    lines.push(format!("Rootfs image: {}", shown(&pulled.rootfs_image)));
    lines.extend(source(environment));
    joined(&lines)
}

pub(super) fn pruned(pruned: &Pruned) -> String {
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

/// The lines that `pull` and `inspect` share, after the first.
fn details(environment: &Environment) -> Vec<String> {
    let mut lines = vec![
        format!("Version: {}", environment.version),
        format!("Distribution: {} {}", environment.distribution, environment.distribution_version),
        format!("Installed: {}", yes_no(environment.installed)),
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
