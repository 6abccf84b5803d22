//! Answers of a VMM that a guest may have taken over.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(pyro_machine::fuzzing::vmm_answers(data.to_vec()));
});
