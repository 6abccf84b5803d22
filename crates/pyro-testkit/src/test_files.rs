//! A file of tests that no module names is never compiled, so its tests silently never run.

use std::fs;
use std::path::{Path, PathBuf};

/// Checks that `main.rs` in `suite`, the directory of a test binary, names every other file there as a module, and that
/// each module with a directory of its own names every file in that.
///
/// # Panics
/// A file is not named, or there is no `main.rs`.
pub fn assert_none_is_forgotten(suite: impl AsRef<Path>) {
    let forgotten = forgotten(&suite.as_ref().join("main.rs"), suite.as_ref());
    assert!(forgotten.is_empty(), "not a module, so its tests never run: {forgotten:?}");
}

/// Files below `directory` that are not compiled, where `module` is the file that has to name those in it.
fn forgotten(module: &Path, directory: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(module).unwrap_or_else(|error| panic!("{}: {error}", module.display()));
    let is_named = |name: &str| {
        text.lines().any(|line| line.trim_start().trim_start_matches("pub(crate) ") == format!("mod {name};"))
    };
    let mut forgotten = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_source = path.extension().is_some_and(|extension| extension == "rs");
        if path == module || (path.is_file() && !is_source) {
            continue;
        }
        if is_source && !is_named(name) {
            forgotten.push(path);
        } else if path.is_dir() && holds_sources(&path) {
            let (sibling, inside) = (path.with_extension("rs"), path.join("mod.rs"));
            match [sibling, inside].into_iter().find(|file| file.is_file()) {
                Some(module) => forgotten.extend(self::forgotten(&module, &path)),
                None => forgotten.push(path),
            }
        }
    }
    forgotten
}

/// Snapshots and data have directories too.
fn holds_sources(directory: &Path) -> bool {
    fs::read_dir(directory)
        .unwrap()
        .any(|entry| entry.unwrap().path().extension().is_some_and(|extension| extension == "rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_nobody_names_are_found() {
        let suite = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(suite.path().join(name), text).unwrap();
        fs::create_dir_all(suite.path().join("named/snapshots")).unwrap();
        write("main.rs", "mod named;\n// mod lost;\n");
        write("named.rs", "pub(crate) mod inner;\n");
        write("named/inner.rs", "");
        write("named/snapshots/a.snap", "");
        assert_none_is_forgotten(suite.path());
        write("lost.rs", "");
        write("named/lost_too.rs", "");
        let mut found = forgotten(&suite.path().join("main.rs"), suite.path());
        found.sort();
        assert_eq!(found, ["lost.rs", "named/lost_too.rs"].map(|name| suite.path().join(name)));
    }
}
