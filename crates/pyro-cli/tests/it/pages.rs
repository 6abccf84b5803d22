//! The commands that the documentation shows are run by tests, or the page says why not. Its links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use pyro_testkit::Sandbox;
use pyro_testkit::pages::{self, Block, Order, Shell};

use crate::harness::PYRO;

/// Pages whose commands need VMs; `tests/vm/pages.rs` runs them.
const WITH_VMS: [&str; 2] = ["README.md", "docs/commands.md"];

/// Pages whose commands run here.
const WITHOUT_VMS: &str = "docs/clients/";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Paths of all pages, relative to the root.
fn all() -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![String::new(), "docs/".to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.clone() + entry.file_name().to_str().unwrap();
            if path.ends_with(".md") {
                found.push(path);
            } else if !directory.is_empty() && entry.path().is_dir() {
                directories.push(path + "/");
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_block_of_the_documentation_is_run_or_says_why_not() {
    let pages = all();
    assert!(WITH_VMS.iter().all(|page| pages.iter().any(|found| found == page)), "{pages:?}");
    for block in pages.iter().flat_map(|page| pages::blocks(root(), page)) {
        let Block { place, language, order, .. } = &block;
        match &**language {
            "sh" | "console" => {
                let (page, _) = place.split_once(':').unwrap();
                let is_run = page.starts_with(WITHOUT_VMS) && *order == Order::InShell;
                let is_run = is_run || WITH_VMS.contains(&page);
                let says_why_not = matches!(order, Order::NotRun(_));
                assert!(is_run || says_why_not, "{place}: no test runs this, and it does not say why not");
                assert!(!block.steps().is_empty(), "{place}: there are no commands");
            }
            // Those are run by `tests/python/test_docs.py`.
            "python" => assert_eq!(*order, Order::InShell, "{place}"),
            "text" | "json" | "toml" => {}
            _ => panic!("{place}: expected the language of the block, such as sh, console, or text"),
        }
    }
}

#[test]
fn every_link_of_the_documentation_leads_to_a_file_and_a_heading() {
    let broken: Vec<String> = all().iter().flat_map(|page| pages::broken_links(root(), page)).collect();
    assert_eq!(broken, [""; 0]);
}

/// In a home and a state directory of its own.
#[test]
fn the_commands_of_the_guides_for_clients_work() {
    let mut count = 0;
    for page in all().iter().filter(|page| page.starts_with(WITHOUT_VMS)) {
        let mut sandbox = Sandbox::new("pyro-pages-");
        let programs = Path::new(PYRO).parent().unwrap();
        sandbox.set("PATH", &format!("{}:/usr/bin:/bin", programs.display()));
        sandbox.set("HOME", sandbox.path("").to_str().unwrap());
        let mut shell = Shell::start(&sandbox, sandbox.root());
        for block in pages::blocks(root(), page) {
            if block.has_commands() && block.order == Order::InShell {
                for step in block.steps() {
                    shell.run(&step);
                    count += 1;
                }
            }
        }
        shell.end();
    }
    assert!(count >= 8, "the commands are no longer found where they were: {count}");
}
