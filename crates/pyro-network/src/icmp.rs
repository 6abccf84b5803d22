//! Echo requests: those to our own addresses are answered, and others are dropped.

use std::net::IpAddr;

use crate::link::Output;
use crate::packet::answer_echo;
use crate::relay::Shared;

/// Answers an echo request to an address of ours. Others are dropped.
pub(crate) fn echo(
    ends: (IpAddr, IpAddr),
    ident: (u16, u16),
    data: &[u8],
    shared: &Shared,
    output: &mut Output,
) {
    let (guest, destination) = ends;
    if shared.is_on_link(destination) && guest != destination {
        answer_echo(ends, ident, data, output);
    }
}
