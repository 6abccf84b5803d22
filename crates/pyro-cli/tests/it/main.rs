//! The executable as its users see it: run in an empty home, its whole output compared.
#![expect(clippy::unwrap_used, reason = "clippy knows only functions marked as tests, not their helpers")]

mod completions;
mod demo;
mod doctor;
mod env;
mod harness;
mod help;
mod man;
mod mcp;
mod mcp_http;
mod mcp_install;
mod mcp_owners;
mod mcp_texts;
mod pages;
mod policy;
mod rpc;
mod run;
mod run_on_host;
mod settings;
mod task_on_host;
mod terminal;
mod usage;

#[test]
fn every_file_here_is_a_module() {
    pyro_testkit::assert_none_is_forgotten(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"));
}
