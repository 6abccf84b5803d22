//! Tests of the wire format as its two users see it.
#![expect(clippy::unwrap_used, reason = "clippy knows only functions marked as tests, not their helpers")]

mod bounds;
mod codec;
mod schema;

#[test]
fn every_file_here_is_a_module() {
    pyro_testkit::assert_none_is_forgotten(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"));
}
