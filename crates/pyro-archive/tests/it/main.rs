//! Whole streams, honest and hostile, and what they leave on disk.
#![expect(clippy::unwrap_used, reason = "clippy knows only functions marked as tests, not their helpers")]

mod arbitrary;
mod hostile;
mod merge;
mod pack;
mod pieces;
mod round_trip;
mod streams;
mod swap;
mod trees;
mod truncated;

#[test]
fn every_file_here_is_a_module() {
    pyro_testkit::assert_none_is_forgotten(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"));
}
