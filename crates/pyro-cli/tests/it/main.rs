//! The executable as its users see it: run in an empty home, its whole output compared.
#![expect(clippy::unwrap_used, reason = "clippy knows only functions marked as tests, not their helpers")]

mod completions;
mod doctor;
mod env;
mod harness;
mod help;
mod man;
mod policy;
mod run;
mod run_on_host;
mod settings;
mod usage;

use std::fs;
use std::path::Path;

/// A file that is no module is a test that never runs.
#[test]
fn every_file_here_is_a_module() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let root = fs::read_to_string(directory.join("main.rs")).unwrap();
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.extension().is_some_and(|extension| extension == "rs") && name != "main" {
            assert!(root.contains(&format!("\nmod {name};\n")), "{name}.rs is not a module of main.rs");
        }
    }
}
