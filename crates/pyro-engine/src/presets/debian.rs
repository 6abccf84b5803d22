//! The archives in the settings of apt. The environments of the catalog are built from them.

use std::fs;
use std::path::{Path, PathBuf};

use super::UnusablePreset;
use super::clients::{Configured, PackageClients, Source, read};

pub(super) fn configured(
    clients: &PackageClients,
    mirror: Option<&str>,
) -> Result<Configured, UnusablePreset> {
    let mut sources = Vec::new();
    sources.extend(mirror.map(|url| Source::new(url, "PYRO_DEBIAN_MIRROR")));
    for path in files(clients) {
        let Some(text) = read(&path)? else { continue };
        let uris = match path.extension().is_some_and(|extension| extension == "sources") {
            true => of_stanzas(&text),
            false => of_lines(&text),
        };
        for uri in uris {
            sources.extend(of_uri(clients, uri, &path)?);
        }
    }
    Ok(Configured { sources, default: None })
}

fn files(clients: &PackageClients) -> Vec<PathBuf> {
    let parts = fs::read_dir(clients.system("/etc/apt/sources.list.d")).into_iter().flatten();
    let mut parts: Vec<_> = parts.filter_map(|entry| Some(entry.ok()?.path())).collect();
    parts.retain(|path| {
        path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
    });
    parts.sort();
    parts.insert(0, clients.system("/etc/apt/sources.list"));
    parts
}

/// `deb [OPTIONS] URI SUITE COMPONENT…`
fn of_lines(text: &str) -> Vec<&str> {
    let uri = |line: &'_ str| -> Option<(usize, usize)> {
        let rest =
            line.trim_start().strip_prefix("deb").filter(|rest| rest.starts_with(char::is_whitespace))?;
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1.trim_start(),
            None => rest,
        };
        let start = line.len() - rest.len();
        Some((start, start + rest.find(char::is_whitespace)?))
    };
    text.lines().filter_map(|line| uri(line).map(|(start, end)| &line[start..end])).collect()
}

/// Paragraphs of `NAME: VALUE`, in which a line that begins with white space continues the value.
fn of_stanzas(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let mut found = Vec::new();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let (mut uris, mut is_enabled, mut has_packages, mut in_uris) = (Vec::new(), true, true, false);
        for line in stanza {
            let value = match line.split_once(':').filter(|_| !line.starts_with(char::is_whitespace)) {
                Some((name, value)) => {
                    let name = name.trim();
                    in_uris = name.eq_ignore_ascii_case("URIs");
                    is_enabled &= !(name.eq_ignore_ascii_case("Enabled") && value.trim() == "no");
                    has_packages &= !name.eq_ignore_ascii_case("Types")
                        || value.split_whitespace().any(|kind| kind == "deb");
                    value
                }
                None => line,
            };
            if in_uris {
                uris.extend(value.split_whitespace());
            }
        }
        if is_enabled && has_packages {
            found.append(&mut uris);
        }
    }
    found
}

/// Media and directories have no host; a list of mirrors has several.
fn of_uri(clients: &PackageClients, uri: &str, path: &Path) -> Result<Vec<Source>, UnusablePreset> {
    let list = ["mirror+file:", "mirror:file:"].iter().find_map(|scheme| uri.strip_prefix(scheme));
    if let Some(list) = list {
        let list = clients.system(list);
        let text = read(&list)?.unwrap_or_default();
        let mirrors = text.lines().filter_map(|line| line.split_whitespace().next());
        let from = list.display().to_string();
        return Ok(mirrors.filter(|uri| has_host(uri)).map(|uri| Source::new(uri, &from)).collect());
    }
    Ok(has_host(uri).then(|| Source::new(uri, &path.display().to_string())).into_iter().collect())
}

fn has_host(uri: &str) -> bool {
    uri.starts_with("http://") || uri.starts_with("https://")
}
