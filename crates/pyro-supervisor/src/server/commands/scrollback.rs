//! The latest bytes that a terminal wrote.

use std::collections::VecDeque;

use bytes::Bytes;

/// The latest bytes of a stream, up to a limit. Offsets count from the start of the stream.
#[derive(Debug)]
pub(super) struct Scrollback {
    bytes: VecDeque<u8>,
    limit: usize,
    written: u64,
}

impl Scrollback {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: VecDeque::new(), limit, written: 0 }
    }

    /// Adds bytes and drops the oldest if there are too many.
    pub(super) fn append(&mut self, new: &[u8]) {
        self.written += new.len() as u64;
        let new = &new[new.len().saturating_sub(self.limit)..];
        let excess = (self.bytes.len() + new.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        self.bytes.extend(new);
    }

    /// Lowers the limit, and gives the memory back.
    pub(super) fn shrink(&mut self, limit: usize) {
        self.limit = limit;
        self.append(&[]);
        self.bytes.shrink_to_fit();
    }

    /// Returns the offset of the oldest byte that is kept.
    pub(super) fn oldest(&self) -> u64 {
        self.written - self.bytes.len() as u64
    }

    /// Returns at most `count` bytes from an offset on, or from the oldest one that is kept, and the offset of the first.
    pub(super) fn read(&self, offset: u64, count: usize) -> (u64, Bytes) {
        let start = offset.clamp(self.oldest(), self.written);
        // At most the number of bytes that are kept.
        let first = (start - self.oldest()) as usize;
        let last = first.saturating_add(count).min(self.bytes.len());
        let (front, back) = self.bytes.as_slices();
        let of_front = &front[first.min(front.len())..last.min(front.len())];
        let of_back = &back[first.saturating_sub(front.len())..last.saturating_sub(front.len())];
        (start, [of_front, of_back].concat().into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a model that keeps everything.
        #[test]
        fn it_has_the_latest_bytes_at_their_offsets(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..20),
            limit in 1..30_usize,
            (offset, count) in (0..500_u64, 0..50_usize),
            shrunk in 1..30_usize,
        ) {
            let mut kept = Scrollback::new(limit);
            pieces.iter().for_each(|piece| kept.append(piece));
            let all = pieces.concat();
            let mut limits = vec![limit];
            for _ in 0..2 {
                let oldest = all.len().saturating_sub(*limits.iter().min().unwrap());
                prop_assert_eq!((kept.written, kept.oldest()), (all.len() as u64, oldest as u64));
                let start = (offset as usize).clamp(oldest, all.len());
                let end = (start + count).min(all.len());
                prop_assert_eq!(kept.read(offset, count), (start as u64, all[start..end].to_vec().into()));
                kept.shrink(shrunk);
                limits.push(shrunk);
            }
        }
    }
}
