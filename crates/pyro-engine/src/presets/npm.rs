//! The registries in the settings of npm.

use std::path::PathBuf;

use super::UnusablePreset;
use super::clients::{Configured, PackageClients, Source, assignments, read};
use super::default_hosts::Question;

/// Prints npm's registry.
const DEFAULT: Question = Question { program: "npm", args: &["config", "get", "registry"] };

pub(super) fn configured(clients: &PackageClients) -> Result<Configured, UnusablePreset> {
    let mut sources = clients.in_variables(&["NPM_CONFIG_REGISTRY", "npm_config_registry"]);
    let mut has_registry = !sources.is_empty();
    let of_user = clients.variable("NPM_CONFIG_USERCONFIG").map(PathBuf::from);
    let of_user = of_user.or_else(|| clients.in_home(".npmrc"));
    let of_system = ["/etc/npmrc", "/usr/etc/npmrc", "/usr/local/etc/npmrc"].map(|path| clients.system(path));
    for path in of_user.into_iter().chain(of_system) {
        let text = read(&path)?.unwrap_or_default();
        for (name, value) in assignments(&text, &['=']) {
            // That of one scope adds to that of all others.
            if name == "registry" || (name.starts_with('@') && name.ends_with(":registry")) {
                has_registry |= name == "registry";
                sources.push(Source::new(value.trim_matches('"'), &path.display().to_string()));
            }
        }
    }
    Ok(Configured { sources, default: (!has_registry).then_some(DEFAULT) })
}
