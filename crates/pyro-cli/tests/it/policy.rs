//! Checks what ARCHITECTURE.md states about the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The workspace's crates that `name` depends on, outside its tests.
fn our_dependencies(name: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| name.starts_with("pyro-")).map(str::to_owned).collect()
}

#[test]
fn crates_depend_on_each_other_as_drawn() {
    let arrows = [
        ("pyro-api", &[][..]),
        ("pyro-wire", &[]),
        ("pyro-archive", &[]),
        ("pyro-guest", &["pyro-archive", "pyro-wire"]),
        ("pyro-guest-image", &[]),
        ("pyro-confine", &[]),
        ("pyro-mount", &["pyro-confine"]),
        ("pyro-network", &["pyro-confine"]),
        ("pyro-machine", &["pyro-confine", "pyro-guest-image", "pyro-network", "pyro-wire"]),
        ("pyro-supervisor", &["pyro-archive", "pyro-confine", "pyro-machine", "pyro-wire"]),
        ("pyro-env", &[]),
        ("pyro-engine", &["pyro-api", "pyro-env", "pyro-machine", "pyro-mount", "pyro-supervisor"]),
        ("pyro-mcp", &["pyro-api"]),
        ("pyro-rpc", &["pyro-api"]),
        ("pyro-demo", &["pyro-api", "pyro-mcp"]),
        ("pyro-testkit", &[]),
        ("pyro-cli", &["pyro-demo", "pyro-engine", "pyro-mcp", "pyro-rpc"]),
    ];
    for (name, expected) in arrows {
        assert_eq!(our_dependencies(name), expected, "{name}");
    }
    let crates = fs::read_dir(root().join("crates")).unwrap().count();
    assert_eq!(crates, arrows.len(), "every crate is listed here and in ARCHITECTURE.md");
}

#[test]
fn the_map_names_what_exists() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(map.contains(&format!("| `{name}` |")), "ARCHITECTURE.md does not describe {name}");
    }
}

#[test]
fn every_setting_is_documented() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let config = fs::read_to_string(root().join("crates/pyro-cli/src/config.rs")).unwrap();
    let logging = fs::read_to_string(root().join("crates/pyro-cli/src/logging.rs")).unwrap();
    let source = config + &logging;
    let variables = source
        .split('"')
        .filter(|word| word.starts_with("PYRO_") && word.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
    let mut count = 0;
    for variable in variables {
        assert!(readme.contains(&format!("`{variable}`")), "README.md does not describe {variable}");
        count += 1;
    }
    assert!(count >= 7, "the variables are no longer found where they were");
}

/// SECURITY.md promises nothing that no test tries: each test that it names exists.
#[test]
fn every_test_that_the_threat_model_names_exists() {
    fn functions_below(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                functions_below(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(path).unwrap();
                let mut lines = text.lines().map(str::trim).peekable();
                while let Some(line) = lines.next() {
                    let is_test = line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                    let Some(next) = lines.peek().filter(|_| is_test) else { continue };
                    let name = next.trim_start_matches("async ").strip_prefix("fn ");
                    found.extend(name.and_then(|name| name.split('(').next()).map(str::to_owned));
                }
            }
        }
    }
    let mut tests = BTreeSet::new();
    functions_below(&root().join("crates"), &mut tests);
    assert!(tests.len() > 500, "the tests are no longer found where they were: {}", tests.len());
    let text = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let is_name = |word: &&str| {
        word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    // Tools have such names too.
    let named: Vec<&str> =
        text.split('`').filter(is_name).filter(|word| !word.starts_with("task_")).collect();
    assert!(named.len() > 40, "{named:?}");
    let missing: Vec<_> = named.into_iter().filter(|name| !tests.contains(*name)).collect();
    assert_eq!(missing, Vec::<&str>::new());
    let boundaries = text.split("\n## ").skip(3);
    for boundary in boundaries {
        assert!(boundary.contains("Tests: `"), "no test is named: {}", boundary.lines().next().unwrap());
    }
}

/// A file that is not a module of its `main.rs` is a test that never runs.
#[test]
fn every_file_of_tests_is_a_module() {
    let subdirectories =
        |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    let crates = subdirectories(root().join("crates"));
    let suites: Vec<PathBuf> = crates.flat_map(|dir| subdirectories(dir.join("tests"))).collect();
    assert!(suites.len() >= 5, "the tests are no longer found where they were: {suites:?}");
    suites.iter().for_each(pyro_testkit::assert_none_is_forgotten);
}
