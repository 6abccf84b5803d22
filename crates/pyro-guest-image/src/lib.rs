//! The guest agent's executable, built by `build.rs` and embedded. A crate of its own, so that only what embeds the agent
//! waits for its build.

/// The static executable that becomes `/init` in the guest.
pub static EXECUTABLE: &[u8] = include_bytes!(env!("PYRO_GUEST_AGENT"));

/// SHA-256 of [`EXECUTABLE`], in hexadecimal.
pub const SHA256: &str = env!("PYRO_GUEST_AGENT_SHA256");
