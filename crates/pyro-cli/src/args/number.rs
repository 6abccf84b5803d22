//! Numbers whose limits only the engine knows.

/// Reads an integer of any size. One that does not fit becomes the nearest that does: still outside every limit, and
/// refused with the text of that limit.
pub(super) fn integer(text: &str) -> Result<i64, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    text.parse().or_else(|error: std::num::ParseIntError| match error.kind() {
        PosOverflow => Ok(i64::MAX),
        NegOverflow => Ok(i64::MIN),
        _ => Err("not an integer".to_owned()),
    })
}
