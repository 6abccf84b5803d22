//! Arguments of tools, and addresses of resources: written by a model.
#![no_main]

use serde_json::Value;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        pyro_mcp::fuzzing::address(text);
    }
    if let Ok(Value::Object(arguments)) = serde_json::from_slice(data) {
        pyro_mcp::fuzzing::arguments(&arguments);
    }
});
