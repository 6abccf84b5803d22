//! `pyro` with real VMs: every test boots at least one, or checks that an error is reported before that.
//!
//! Each test has a state directory of its own, and checks at its end that nothing is left of it: no process, file, mount or
//! record. All share one environment cache, which the first test that needs it fills. On a host where VMs cannot start,
//! these tests fail; none is ever skipped.

#![expect(clippy::disallowed_methods, reason = "tests are configured by their environment")]
#![expect(clippy::unwrap_used, reason = "clippy knows only functions marked as tests, not their helpers")]

mod bench;
mod ceiling;
mod command_environment;
mod commands;
mod confinement;
mod demo;
mod disk;
mod doctor;
mod environment;
mod expiry;
mod guest_faults;
mod guest_kernel;
mod harness;
mod identity;
mod input;
mod kills;
mod lifecycle;
mod mcp;
mod mcp_http;
mod mcp_owners;
mod mounts;
mod network;
mod output;
mod pages;
mod parallel;
mod persistence;
mod ports;
mod registry;
mod rpc;
mod run;
mod screens;
mod services;
mod shells;
mod signals;
mod spares;
mod task_commands;
mod task_files;
mod task_kills;
mod tasks;
mod templates;
mod terminals;
mod timeouts;
mod vmm_faults;
mod workspace;

/// Boots nothing, so it also runs where the others cannot.
#[test]
fn every_file_here_is_a_module() {
    pyro_testkit::assert_none_is_forgotten(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm"));
}
