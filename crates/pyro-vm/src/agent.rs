//! The guest agent's executable, built by `build.rs`.

/// The static executable that becomes `/init` in the guest.
pub(crate) static EXECUTABLE: &[u8] = include_bytes!(env!("PYRO_GUEST_AGENT"));
