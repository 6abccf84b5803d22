//! Text for people.

/// Names and messages may come from a registry or a guest, and must not control the terminal.
pub(crate) use pyro_engine::text::printable;

/// `yes` or `no`.
pub(crate) fn yes_no(condition: bool) -> &'static str {
    if condition { "yes" } else { "no" }
}
