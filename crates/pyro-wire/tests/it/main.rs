//! Tests of the wire format as its two users see it.
#![expect(clippy::unwrap_used, reason = "clippy knows only functions marked as tests, not their helpers")]

mod bounds;
mod codec;
mod schema;
