//! The registry that Cargo takes crates from.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml_edit::{DocumentMut, Item};

use super::UnusablePreset;
use super::clients::{Configured, PackageClients, Source, read};

/// Maximum length of a chain of replaced sources.
const MAX_REPLACEMENTS: usize = 16;

/// The settings of an index over HTTP, which Cargo keeps with it.
#[derive(Deserialize)]
struct IndexSettings {
    /// Where the files are.
    dl: String,
}

pub(super) fn configured(clients: &PackageClients) -> Result<Configured, UnusablePreset> {
    let home = clients.variable("CARGO_HOME").map(PathBuf::from).or_else(|| clients.in_home(".cargo"));
    let mut sources = Vec::new();
    if let Some(home) = home {
        let mut registries = Vec::new();
        let mut replaced = None;
        for path in ["config.toml", "config"].map(|name| home.join(name)) {
            let Some(text) = read(&path)? else { continue };
            let settings: DocumentMut = text.parse().map_err(|_| UnusablePreset::Toml(path.clone()))?;
            let from = path.display().to_string();
            let replacement = replacement(&settings);
            replaced = replacement.map(|url| Source::new(url, &from));
            let other = settings.get("registries").and_then(Item::as_table_like);
            let other = other.into_iter().flat_map(|table| table.iter());
            registries
                .extend(other.filter_map(|(_, registry)| registry.get("index")?.as_str().map(str::to_owned)));
            break;
        }
        match replaced {
            Some(source) => {
                let index = index_of(&home, &source);
                sources.push(source);
                sources.extend(index);
            }
            None => sources.extend(of_default(&home, &registries)?),
        }
    }
    Ok(Configured { sources, default: None })
}

/// Returns the URL of the registry that replaces the default one.
fn replacement(settings: &DocumentMut) -> Option<&str> {
    let sources = settings.get("source")?;
    let mut name = sources.get("crates-io")?.get("replace-with")?.as_str()?;
    for _ in 0..MAX_REPLACEMENTS {
        let registry = settings.get("registries").and_then(|registries| registries.get(name)?.get("index"));
        let Some(source) = sources.get(name) else { return registry?.as_str() };
        match source.get("replace-with").and_then(Item::as_str) {
            Some(next) => name = next,
            None => return source.get("registry").or(registry)?.as_str(),
        }
    }
    None
}

/// Returns where the files of an index are, if Cargo has used it.
fn index_of(home: &Path, source: &Source) -> Option<Source> {
    let host = source.domain().ok()?;
    indexes(home).into_iter().find(|(name, _)| *name == host.name()).map(|(_, files)| files)
}

/// Returns the hosts of the index that Cargo has used and that the settings do not name. Of several, any may be the default.
fn of_default(home: &Path, registries: &[String]) -> Result<Vec<Source>, UnusablePreset> {
    let others: Vec<_> = registries.iter().filter_map(|url| Source::new(url, "").domain().ok()).collect();
    let is_named = |name: &str| others.iter().any(|other| other.name() == name);
    let dir = home.join("registry/index");
    let mut found = indexes(home).into_iter().filter(|(name, _)| !is_named(name));
    let Some((name, files)) = found.next() else { return Ok(Vec::new()) };
    if found.any(|(other, _)| other != name) {
        return Err(UnusablePreset::ManyIndexes(dir));
    }
    Ok(vec![Source::new(&format!("https://{name}"), &dir.display().to_string()), files])
}

/// Returns the host of each index over HTTP that Cargo has used, and where its files are. Cargo names their directories by
/// the host and 16 hexadecimal digits.
fn indexes(home: &Path) -> Vec<(String, Source)> {
    let entries = fs::read_dir(home.join("registry/index")).into_iter().flatten();
    let index = |dir: PathBuf| {
        let name = dir.file_name()?.to_str()?;
        let (host, digits) = name.rsplit_once('-')?;
        let is_index = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let path = dir.join("config.json");
        let settings: IndexSettings = serde_json::from_str(&read(&path).ok()??).ok()?;
        // The path is a pattern; the host is not.
        is_index.then(|| (host.to_owned(), Source::new(&settings.dl, &path.display().to_string())))
    };
    let mut found: Vec<_> = entries.filter_map(|entry| index(entry.ok()?.path())).collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}
