//! Settings of AI clients, which `pyro mcp install` changes: an entry is added, and the result is readable.
#![no_main]

mod entry {
    pub(crate) type Entry = Vec<(String, serde_json::Value)>;
}

mod error {
    pub(crate) type Problem = Box<dyn std::error::Error + Send + Sync>;
}

// The modules of the command line that read and change such files. It is an executable, so they are included as source.
#[path = "../../crates/pyro-cli/src/client_config/json.rs"]
mod json;
#[path = "../../crates/pyro-cli/src/client_config/toml.rs"]
mod toml;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let entry: entry::Entry = vec![("command".to_owned(), "pyro".into())];
    if let Ok(edited) = json::edited(text, "mcpServers", "pyro", &entry) {
        let value = json::read(&edited).expect("what is written can be read");
        assert_eq!(value["mcpServers"]["pyro"]["command"], "pyro");
    }
    if let Ok(edited) = toml::edited(text, "mcp_servers", "pyro", &entry) {
        let value = toml::read(&edited).expect("what is written can be read");
        assert_eq!(value["mcp_servers"]["pyro"]["command"], "pyro");
    }
});
