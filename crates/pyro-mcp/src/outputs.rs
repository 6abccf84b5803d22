//! Output of removed VMs that was too long for a result: kept for a while, as resources of the client that ran the command.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyro_api::Caller;

/// Maximum total size in bytes. The owner with the largest size loses its oldest output first.
const KEPT_BYTES: usize = 64 << 20;

/// Output by address. Belongs to one server.
#[derive(Debug, Default)]
pub(crate) struct Outputs(Mutex<VecDeque<Kept>>);

/// One text.
#[derive(Debug)]
struct Kept {
    owner: Option<String>,
    uri: String,
    text: String,
}

impl Outputs {
    /// Keeps a text for a caller, under an address that nothing else has.
    pub(crate) fn keep(&self, caller: &Caller, uri: String, text: String) {
        let owner = caller.owner().map(|owner| owner.as_str().to_owned());
        let mut oldest_first = self.lock();
        oldest_first.push_back(Kept { owner, uri, text });
        while oldest_first.iter().map(|kept| kept.text.len()).sum::<usize>() > KEPT_BYTES {
            let most = largest_owner(&oldest_first);
            match oldest_first.iter().position(|kept| kept.owner == most) {
                Some(oldest) => oldest_first.remove(oldest),
                None => break,
            };
        }
    }

    /// The output that is kept under an address, if the caller may find it.
    pub(crate) fn read(&self, caller: &Caller, uri: &str) -> Option<String> {
        let kept = self.lock();
        let found = kept.iter().find(|kept| kept.uri == uri && caller.finds(kept.owner.as_deref()));
        found.map(|kept| kept.text.clone())
    }

    /// The addresses that the caller may find, oldest first.
    pub(crate) fn uris(&self, caller: &Caller) -> Vec<String> {
        let kept = self.lock();
        let found = kept.iter().filter(|kept| caller.finds(kept.owner.as_deref()));
        found.map(|kept| kept.uri.clone()).collect()
    }

    /// A panic cannot leave the data inconsistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The owner whose texts have the largest total size.
fn largest_owner(kept: &VecDeque<Kept>) -> Option<String> {
    let mut sizes = HashMap::<_, usize>::new();
    for kept in kept {
        *sizes.entry(&kept.owner).or_default() += kept.text.len();
    }
    sizes.into_iter().max_by_key(|(_, size)| *size).and_then(|(owner, _)| owner.clone())
}

#[cfg(test)]
mod tests {
    use pyro_api::Visibility;

    use super::*;

    fn client(name: &str) -> Caller {
        Caller::Client { name: name.parse().unwrap(), visibility: Visibility::Own }
    }

    #[test]
    fn the_oldest_makes_room() {
        let outputs = Outputs::default();
        let large = "x".repeat(KEPT_BYTES / 2);
        for name in ["a", "b", "c"] {
            outputs.keep(&Caller::Operator, name.to_owned(), large.clone());
        }
        assert_eq!(outputs.uris(&Caller::Operator), ["b", "c"]);
        assert_eq!(outputs.read(&Caller::Operator, "a"), None);
        assert_eq!(outputs.read(&Caller::Operator, "c").unwrap().len(), large.len());
    }

    #[test]
    fn output_belongs_to_the_client_that_ran_the_command() {
        let outputs = Outputs::default();
        outputs.keep(&client("a"), "one".to_owned(), "1".to_owned());
        outputs.keep(&client("b"), "two".to_owned(), "2".to_owned());
        assert_eq!(outputs.uris(&client("a")), ["one"]);
        assert_eq!(outputs.read(&client("a"), "two"), None);
        assert_eq!(outputs.read(&client("b"), "two").as_deref(), Some("2"));
        let all = Caller::Client { name: "c".parse().unwrap(), visibility: Visibility::All };
        assert_eq!(outputs.uris(&all), ["one", "two"]);
    }

    #[test]
    fn one_client_does_not_push_out_the_output_of_another() {
        let outputs = Outputs::default();
        outputs.keep(&client("a"), "small".to_owned(), "x".to_owned());
        for index in 0..5 {
            outputs.keep(&client("b"), index.to_string(), "x".repeat(KEPT_BYTES / 2));
        }
        assert_eq!(outputs.uris(&client("a")), ["small"]);
        assert_eq!(outputs.uris(&client("b")).len(), 1);
    }
}
