//! Files with the tokens of HTTP clients.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = pyro_mcp::Tokens::parse(text);
    }
});
