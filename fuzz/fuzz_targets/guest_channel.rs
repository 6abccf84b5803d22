//! The guest's end of yamux, as the supervisor drives it: opened streams, windows, and frames without order.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(pyro_supervisor::fuzzing::guest(data.to_vec()));
});
