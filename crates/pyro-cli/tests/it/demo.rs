use crate::harness::Home;

#[test]
fn the_document_is_all_there_is_even_of_a_failure() {
    let home = Home::new().set_path("PYRO_QEMU", "no-such-qemu");
    assert_eq!(home.pyro(["demo"]).json_error()["kind"], "vm_unavailable");
}
