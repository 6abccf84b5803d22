//! The crate as its callers see it.

mod engine;

#[test]
fn every_file_here_is_a_module() {
    pyro_testkit::assert_none_is_forgotten(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"));
}
