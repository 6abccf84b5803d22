//! The guest agent's executable, built by `build.rs`.

/// The static executable that becomes `/init` in the guest.
pub(crate) static EXECUTABLE: &[u8] = include_bytes!(env!("PYRO_GUEST_AGENT"));

/// SHA-256 of it, in hexadecimal.
pub(crate) const SHA256: &str = env!("PYRO_GUEST_AGENT_SHA256");
