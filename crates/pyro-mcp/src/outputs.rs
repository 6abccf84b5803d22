//! Output of removed VMs that was too long for a result: kept for a while, as resources.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum total size in bytes. The oldest output is dropped first.
const KEPT_BYTES: usize = 64 << 20;

/// Output by address. Belongs to one server.
#[derive(Debug, Default)]
pub(crate) struct Outputs(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    oldest_first: VecDeque<(String, String)>,
}

impl Outputs {
    /// Keeps a text under an address that nothing else has.
    pub(crate) fn keep(&self, uri: String, text: String) {
        let mut kept = self.lock();
        kept.bytes += text.len();
        kept.oldest_first.push_back((uri, text));
        while kept.bytes > KEPT_BYTES
            && let Some((_, oldest)) = kept.oldest_first.pop_front()
        {
            kept.bytes -= oldest.len();
        }
    }

    /// The output that is kept under an address.
    pub(crate) fn read(&self, uri: &str) -> Option<String> {
        let kept = self.lock();
        kept.oldest_first.iter().find(|(known, _)| known == uri).map(|(_, text)| text.clone())
    }

    /// The addresses, oldest first.
    pub(crate) fn uris(&self) -> Vec<String> {
        self.lock().oldest_first.iter().map(|(uri, _)| uri.clone()).collect()
    }

    /// A panic cannot leave the data inconsistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let outputs = Outputs::default();
        let large = "x".repeat(KEPT_BYTES / 2);
        for name in ["a", "b", "c"] {
            outputs.keep(name.to_owned(), large.clone());
        }
        assert_eq!(outputs.uris(), ["b", "c"]);
        assert_eq!(outputs.read("a"), None);
        assert_eq!(outputs.read("c").unwrap().len(), large.len());
    }
}
