//! The outcome of packing or unpacking.

use crate::name::{Name, printable};

/// What a stream held and what was left out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files, directories and symlinks that were stored or made, the item itself included.
    pub entries: u64,
    /// Total size of all files, in bytes.
    pub bytes: u64,
    /// Number of entries that were left out: what a stream cannot hold, or a symlink that leads out of the item.
    pub left_out: u64,
    /// The names of the first few that were left out, printable and cut, each with the reason.
    pub examples: Vec<String>,
}

impl Report {
    const MAX_EXAMPLES: usize = 5;

    pub(crate) fn leave_out(&mut self, name: &Name, reason: &str) {
        self.left_out += 1;
        if self.examples.len() < Self::MAX_EXAMPLES {
            self.examples.push(format!("{name}: {reason}"));
        }
    }

    /// Names the examples after the path that the user knows instead of the entries of the stream.
    #[must_use]
    pub fn named(mut self, item: &str) -> Self {
        self.examples.iter_mut().for_each(|example| rename(example, item));
        self
    }
}

/// Puts the path that the user knows in the place of the item's name in the stream, at the beginning of `name`.
pub(crate) fn rename(name: &mut String, item: &str) {
    let Some(rest) = name.strip_prefix("item") else { return };
    if rest.is_empty() || rest.starts_with(['/', ':']) {
        let item = match item.trim_end_matches('/') {
            "" => "/".to_owned(),
            item => printable(item.as_bytes()),
        };
        // Below the root, there is one slash and not two.
        *name = format!("{}{rest}", if rest.starts_with('/') { item.trim_end_matches('/') } else { &item });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_the_name_that_the_user_knows() {
        let examples = ["item/a: a fifo", "item: a fifo", "items/a", "other"].map(str::to_owned).to_vec();
        let named =
            |item: &str| Report { examples: examples.clone(), ..Report::default() }.named(item).examples;
        assert_eq!(named("/srv/x/"), ["/srv/x/a: a fifo", "/srv/x: a fifo", "items/a", "other"]);
        assert_eq!(named("/")[..2], ["/a: a fifo", "/: a fifo"]);
        assert_eq!(named("a\n")[0], "a\\n/a: a fifo");
    }
}
