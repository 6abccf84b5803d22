//! Tests of the public interface. `fake` replaces the build's tools with scripts; `real` builds from Debian's archive
//! and is ignored by default: `cargo test -p pyro-env -- --ignored real`.

#![expect(clippy::disallowed_methods, reason = "tests are configured by their environment")]

mod cache;
mod damage;
mod faults;
mod helper;
mod prune;
mod real;
mod remove;
mod support;

#[test]
fn every_file_here_is_a_module() {
    pyro_testkit::assert_none_is_forgotten(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"));
}
