//! The indexes in the settings of pip and uv.

use std::path::PathBuf;

use toml_edit::{DocumentMut, Item};

use super::UnusablePreset;
use super::clients::{Configured, PackageClients, Source, assignments, read};
use super::default_hosts::Question;

/// Prints pip's default index, and where its files are.
const DEFAULT: Question = Question {
    program: "python3",
    args: &[
        "-I",
        "-c",
        "from pip._internal.models.index import PyPI; print(PyPI.simple_url); print('https://' + PyPI.file_storage_domain)",
    ],
};

pub(super) fn configured(clients: &PackageClients) -> Result<Configured, UnusablePreset> {
    let mut sources = clients.in_variables(&["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"]);
    let mut has_index = !sources.is_empty();
    sources.extend(clients.in_variables(&["PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL"]));
    for index in clients.variable("UV_INDEX").into_iter().flat_map(str::split_whitespace) {
        // It may have a name.
        let url = index.split_once('=').filter(|(name, _)| !name.contains(':')).map_or(index, |(_, url)| url);
        sources.push(Source::new(url, "UV_INDEX"));
    }
    for path in pip_files(clients) {
        let text = read(&path)?.unwrap_or_default();
        for (name, value) in assignments(&text, &['=', ':']) {
            let name = name.replace('_', "-");
            if name == "index-url" || name == "extra-index-url" {
                has_index |= name == "index-url";
                let from = path.display().to_string();
                sources.extend(value.split_whitespace().map(|url| Source::new(url, &from)));
            }
        }
    }
    for path in uv_files(clients) {
        let Some(text) = read(&path)? else { continue };
        let settings: DocumentMut = text.parse().map_err(|_| UnusablePreset::Toml(path.clone()))?;
        let from = path.display().to_string();
        for table in [Some(settings.as_item()), settings.get("pip")].into_iter().flatten() {
            has_index |= table.get("index-url").is_some();
            let urls = ["index-url", "extra-index-url"].into_iter().filter_map(|name| table.get(name));
            sources.extend(urls.flat_map(texts).map(|url| Source::new(url, &from)));
        }
        let indexes = settings.get("index").and_then(Item::as_array_of_tables);
        for index in indexes.into_iter().flatten() {
            has_index |= index.get("default").and_then(Item::as_bool) == Some(true);
            sources.extend(index.get("url").and_then(Item::as_str).map(|url| Source::new(url, &from)));
        }
    }
    Ok(Configured { sources, default: (!has_index).then_some(DEFAULT) })
}

fn pip_files(clients: &PackageClients) -> Vec<PathBuf> {
    let named = clients.variable("PIP_CONFIG_FILE").map(PathBuf::from);
    let of_user =
        clients.variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| clients.in_home(".config"));
    let of_environment = clients.variable("VIRTUAL_ENV").map(|dir| PathBuf::from(dir).join("pip.conf"));
    let mut files = vec![clients.system("/etc/pip.conf"), clients.system("/etc/xdg/pip/pip.conf")];
    files.extend(clients.in_home(".pip/pip.conf"));
    files.extend(of_user.map(|dir| dir.join("pip/pip.conf")));
    files.extend(of_environment);
    files.extend(named);
    files
}

fn uv_files(clients: &PackageClients) -> Vec<PathBuf> {
    let of_user =
        clients.variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| clients.in_home(".config"));
    let mut files = vec![clients.system("/etc/uv/uv.toml")];
    files.extend(of_user.map(|dir| dir.join("uv/uv.toml")));
    files
}

/// A text, or the texts of an array.
fn texts(item: &Item) -> Vec<&str> {
    match item.as_array() {
        Some(array) => array.iter().filter_map(|value| value.as_str()).collect(),
        None => item.as_str().into_iter().collect(),
    }
}
