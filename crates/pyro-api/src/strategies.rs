//! Strategies of proptest that are smaller than the usual ones, which make the round-trip tests slow.

use std::path::PathBuf;

use proptest::prelude::*;

/// A short absolute path.
pub(crate) fn path() -> impl Strategy<Value = PathBuf> {
    "/[a-zä /]{0,12}".prop_map(PathBuf::from)
}

/// A vector of at most three values.
pub(crate) fn few<T: Arbitrary + 'static>() -> impl Strategy<Value = Vec<T>> {
    proptest::collection::vec(any::<T>(), 0..4)
}
