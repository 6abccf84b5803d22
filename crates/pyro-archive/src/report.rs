//! The outcome of packing or unpacking.

use crate::name::Name;

/// What a stream held and what was left out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files, directories and symlinks that were stored or made, the item itself included.
    pub entries: u64,
    /// Total size of all files, in bytes.
    pub bytes: u64,
    /// Number of entries that were left out: what a stream cannot hold, or a symlink that leads out of the item.
    pub left_out: u64,
    /// The names of the first few that were left out, printable and cut.
    pub examples: Vec<String>,
}

impl Report {
    const MAX_EXAMPLES: usize = 5;

    pub(crate) fn leave_out(&mut self, name: &Name) {
        self.left_out += 1;
        if self.examples.len() < Self::MAX_EXAMPLES {
            self.examples.push(name.to_string());
        }
    }
}
