//! Console output: written by the guest and shown to people. The last byte decides how it is split.
#![no_main]

use pyro_machine::Console;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let step = data.last().map_or(1, |byte| usize::from(*byte) + 1);
    let console = Console::in_memory();
    for chunk in data.chunks(step) {
        console.print(chunk);
    }
    for line in console.tail() {
        assert!(line.len() <= 2000, "{} bytes", line.len());
        assert!(!line.chars().any(|c| pyro_wire::steers(c) && c != '\t'), "{line:?}");
    }
});
