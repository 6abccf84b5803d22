//! Tests of the wire format as its two users see it.
mod codec;
mod schema;
