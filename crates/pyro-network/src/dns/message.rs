//! DNS messages, as far as they are looked at: the question always, and the addresses of an answer where a name is bound
//! to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::{DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsRcode, DnsRecord, DnsRecordData};

use crate::policy::DnsName;

const HEADER_BYTES: usize = 12;
/// Type and class of a question.
const QUESTION_TAIL_BYTES: usize = 4;
/// Maximum number of records of an answer that are looked at.
const MAX_RECORDS: u16 = 128;
/// Maximum number of aliases that lead from the question to an address.
const MAX_ALIASES: usize = 16;

/// Types of records by which a client learns of more than addresses: other names, and keys that hide the server's name.
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const ANY: u16 = 255;

/// A question of the guest: a message that asks exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    message: Vec<u8>,
    /// End of the question in the message.
    end: usize,
    kind: u16,
    name: Option<DnsName>,
}

/// Why a message is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It is not answered.
    NotAQuestion,
    /// It is answered with an error.
    Malformed,
    /// Likewise.
    Unsupported,
}

impl Question {
    /// Decodes a message of the guest.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Invalid> {
        let packet = DnsPacket::new_checked(message).map_err(|_| Invalid::NotAQuestion)?;
        if packet.flags().contains(DnsFlags::RESPONSE) {
            return Err(Invalid::NotAQuestion);
        }
        if packet.opcode() != DnsOpcode::Query {
            return Err(Invalid::Unsupported);
        }
        if packet.question_count() != 1 {
            return Err(Invalid::Malformed);
        }
        let mut rest = &message[HEADER_BYTES..];
        let mut labels = Vec::new();
        loop {
            match rest.split_first() {
                Some((0, after)) => {
                    rest = after;
                    break;
                }
                // The first name of a message has no pointers.
                Some((&length @ 1..64, after)) if after.len() >= usize::from(length) => {
                    let (label, after) = after.split_at(length.into());
                    labels.push(label);
                    rest = after;
                }
                _ => return Err(Invalid::Malformed),
            }
        }
        let Some(&[a, b, _, _]) = rest.first_chunk::<QUESTION_TAIL_BYTES>() else {
            return Err(Invalid::Malformed);
        };
        Ok(Self {
            end: message.len() - rest.len() + QUESTION_TAIL_BYTES,
            kind: u16::from_be_bytes([a, b]),
            name: DnsName::of_labels(labels),
            message: message.to_owned(),
        })
    }

    /// Returns the name, if it has the form of one.
    pub(crate) fn name(&self) -> Option<&DnsName> {
        self.name.as_ref()
    }

    /// Whether the answer consists of addresses.
    pub(crate) fn asks_for_addresses(&self) -> bool {
        matches!(DnsQueryType::from(self.kind), DnsQueryType::A | DnsQueryType::Aaaa)
    }

    /// Whether the answer would be a way around the names that are compared.
    pub(crate) fn asks_for_services(&self) -> bool {
        matches!(self.kind, SVCB | HTTPS | ANY)
    }

    /// Returns the message with another identifier.
    pub(crate) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut message = self.message.clone();
        message[..2].copy_from_slice(&id.to_be_bytes());
        message
    }

    /// Whether both ask for the same of the same name, whatever else their messages have.
    pub(crate) fn asks_the_same(&self, other: &Self) -> bool {
        self.name.is_some() && (&self.name, self.kind) == (&other.name, other.kind)
    }

    /// Whether the other message is the same but for its identifier.
    pub(crate) fn is_repeated_by(&self, other: &Self) -> bool {
        self.message.get(2..) == other.message.get(2..)
    }

    /// Returns an answer to an equal question as the answer to this one.
    pub(crate) fn taken_as(&self, answer: &[u8]) -> Vec<u8> {
        let mut answer = answer.to_vec();
        if let Some(id) = answer.first_chunk_mut() {
            *id = self.id().to_be_bytes();
        }
        answer
    }

    fn id(&self) -> u16 {
        DnsPacket::new_unchecked(&self.message).transaction_id()
    }

    /// Returns the answer to this question, with its identifier, if `message` answers it as asked with `id`.
    pub(crate) fn answer(&self, mut message: Vec<u8>, id: u16) -> Option<Vec<u8>> {
        let packet = DnsPacket::new_checked(&message).ok()?;
        let answers = packet.flags().contains(DnsFlags::RESPONSE)
            && packet.transaction_id() == id
            && (packet.question_count() == 0
                || message.get(HEADER_BYTES..self.end).is_some_and(|question| self.is_asked_by(question)));
        if !answers {
            return None;
        }
        message[..2].copy_from_slice(&self.id().to_be_bytes());
        Some(message)
    }

    fn is_asked_by(&self, question: &[u8]) -> bool {
        question.eq_ignore_ascii_case(&self.message[HEADER_BYTES..self.end])
    }

    /// Returns an answer without records.
    pub(crate) fn empty(&self, rcode: DnsRcode) -> Vec<u8> {
        self.reply(rcode, false, &[])
    }

    /// Returns an answer that has the guest ask again by TCP.
    pub(crate) fn truncated(&self) -> Vec<u8> {
        self.reply(DnsRcode::NoError, true, &[])
    }

    /// Returns an answer with these addresses.
    pub(crate) fn addresses(&self, addresses: &[(IpAddr, Duration)]) -> Vec<u8> {
        self.reply(DnsRcode::NoError, false, addresses)
    }

    fn reply(&self, rcode: DnsRcode, truncated: bool, addresses: &[(IpAddr, Duration)]) -> Vec<u8> {
        let mut reply = self.message[..self.end].to_vec();
        let asked = DnsPacket::new_unchecked(&self.message).flags() & DnsFlags::RECURSION_DESIRED;
        let mut packet = DnsPacket::new_unchecked(&mut reply);
        // The code is not among the flags that smoltcp can set.
        packet.set_flags(DnsFlags::empty());
        packet.set_answer_record_count(u16::try_from(addresses.len()).unwrap_or(u16::MAX));
        packet.set_authority_record_count(0);
        packet.set_additional_record_count(0);
        let mut flags = DnsFlags::RESPONSE | DnsFlags::RECURSION_AVAILABLE | asked;
        flags.set(DnsFlags::TRUNCATED, truncated);
        let flags = flags.bits() | u16::from(u8::from(rcode));
        reply[2..4].copy_from_slice(&flags.to_be_bytes());
        for (address, ttl) in addresses {
            // The name is the question's.
            reply.extend_from_slice(&[0xc0, HEADER_BYTES as u8]);
            let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
            let mut record = |kind: DnsQueryType, octets: &[u8]| {
                reply.extend_from_slice(&u16::from(kind).to_be_bytes());
                reply.extend_from_slice(&1_u16.to_be_bytes());
                reply.extend_from_slice(&ttl.to_be_bytes());
                reply.extend_from_slice(&(octets.len() as u16).to_be_bytes());
                reply.extend_from_slice(octets);
            };
            match address {
                IpAddr::V4(address) => record(DnsQueryType::A, &address.octets()),
                IpAddr::V6(address) => record(DnsQueryType::Aaaa, &address.octets()),
            }
        }
        reply
    }
}

/// An error for a message that could not be understood.
pub(crate) fn error(message: &[u8], invalid: Invalid) -> Option<Vec<u8>> {
    let rcode = match invalid {
        Invalid::NotAQuestion => return None,
        Invalid::Malformed => DnsRcode::FormErr,
        Invalid::Unsupported => DnsRcode::NotImp,
    };
    let mut reply = message.get(..HEADER_BYTES)?.to_vec();
    // The operation, and whether recursion is desired, are repeated.
    reply[2] = (reply[2] & 0x79) | 0x80;
    reply[3] = u8::from(rcode);
    reply[4..].fill(0);
    Some(reply)
}

/// Returns the code of an answer.
pub(crate) fn code(answer: &[u8]) -> Option<DnsRcode> {
    DnsPacket::new_checked(answer).ok().map(|packet| packet.rcode())
}

/// Whether an answer was cut off.
pub(crate) fn is_truncated(answer: &[u8]) -> bool {
    DnsPacket::new_checked(answer).is_ok_and(|packet| packet.flags().contains(DnsFlags::TRUNCATED))
}

/// Returns the addresses that an answer gives for a name, directly or by aliases, each with the time that it is valid.
pub(crate) fn addresses(answer: &[u8], name: &DnsName) -> Option<Vec<(IpAddr, Duration)>> {
    let packet = DnsPacket::new_checked(answer).ok()?;
    let mut rest = packet.payload();
    for _ in 0..packet.question_count() {
        rest = smoltcp::wire::DnsQuestion::parse(rest).ok()?.0;
    }
    let owner = |bytes| {
        let labels: Vec<&[u8]> = packet.parse_name(bytes).collect::<Result<_, _>>().ok()?;
        DnsName::of_labels(labels)
    };
    let mut addresses: Vec<(DnsName, IpAddr, u32)> = Vec::new();
    let mut aliases: Vec<(DnsName, DnsName, u32)> = Vec::new();
    for _ in 0..packet.answer_record_count().min(MAX_RECORDS) {
        let (after, record) = DnsRecord::parse(rest).ok()?;
        rest = after;
        let Some(owner_name) = owner(record.name) else { continue };
        match record.data {
            DnsRecordData::A(address) => addresses.push((owner_name, Ipv4Addr::into(address), record.ttl)),
            DnsRecordData::Aaaa(address) => addresses.push((owner_name, Ipv6Addr::into(address), record.ttl)),
            DnsRecordData::Cname(target) => {
                if let Some(target) = owner(target) {
                    aliases.push((owner_name, target, record.ttl));
                }
            }
            DnsRecordData::Other(..) => {}
        }
    }
    // The answer is valid as long as each of its parts.
    let mut found = Vec::new();
    let (mut current, mut ttl) = (name.clone(), u32::MAX);
    for _ in 0..MAX_ALIASES {
        let here = addresses.iter().filter(|(owner, ..)| *owner == current);
        found.extend(here.map(|&(_, address, own)| (address, Duration::from_secs(ttl.min(own).into()))));
        match aliases.iter().find(|(owner, ..)| *owner == current) {
            Some((_, target, own)) => {
                ttl = ttl.min(*own);
                current = target.clone();
            }
            None => break,
        }
    }
    Some(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A message that asks for a name.
    pub(crate) fn ask(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend(labels(name));
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    pub(crate) fn labels(name: &str) -> Vec<u8> {
        let labels = name.split('.').flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat());
        labels.chain([0]).collect()
    }

    /// An answer to `question` with these records: owner, type, time, data.
    pub(crate) fn answer(question: &[u8], records: &[(&[u8], u16, u32, &[u8])]) -> Vec<u8> {
        let mut message = question.to_vec();
        message[2] |= 0x80;
        message[7] = records.len() as u8;
        for (owner, kind, ttl, data) in records {
            message.extend(*owner);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1]);
            message.extend(ttl.to_be_bytes());
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(*data);
        }
        message
    }

    #[test]
    fn a_question_is_decoded_strictly() {
        let question = Question::parse(&ask(7, "WWW.example.test", 1)).unwrap();
        assert_eq!(question.name().unwrap().as_str(), "www.example.test");
        assert!(question.asks_for_addresses() && !question.asks_for_services());
        assert!(Question::parse(&ask(7, "a.test", 65)).unwrap().asks_for_services());
        let whole = ask(7, "a.test", 1);
        for length in 0..whole.len() {
            assert!(Question::parse(&whole[..length]).is_err(), "{length}");
        }
        let changed = |at: usize, byte: u8| {
            let mut message = whole.clone();
            message[at] = byte;
            Question::parse(&message).map(drop)
        };
        assert_eq!(changed(2, 0x81), Err(Invalid::NotAQuestion), "an answer");
        assert_eq!(changed(2, 0x29), Err(Invalid::Unsupported), "an update");
        assert_eq!(changed(5, 2), Err(Invalid::Malformed), "two questions");
        assert_eq!(changed(12, 0xc0), Err(Invalid::Malformed), "a pointer");
        assert_eq!(error(&whole, Invalid::Malformed).unwrap()[..4], [0, 7, 0x81, 1]);
        assert_eq!(error(&whole, Invalid::NotAQuestion), None);
    }

    #[test]
    fn only_an_answer_to_the_question_is_taken() {
        let question = Question::parse(&ask(7, "a.test", 1)).unwrap();
        let good = answer(&question.with_id(99), &[]);
        assert_eq!(question.answer(good.clone(), 99).unwrap(), answer(&ask(7, "a.test", 1), &[]));
        assert_eq!(question.answer(good, 98), None, "another identifier");
        assert_eq!(question.answer(question.with_id(99), 99), None, "a question");
        let other = answer(&ask(99, "b.test", 1), &[]);
        assert_eq!(question.answer(other, 99), None, "another name");
    }

    #[test]
    fn the_addresses_of_a_name_are_found_behind_its_aliases() {
        let name = DnsName::new("a.test").unwrap();
        let question = ask(7, "a.test", 1);
        let pointer: &[u8] = &[0xc0, 12];
        let message = answer(
            &question,
            &[
                (pointer, 5, 100, &labels("b.test")),
                (&labels("b.test"), 1, 300, &[1, 1, 1, 1]),
                (&labels("b.test"), 28, 50, &[0x20; 16]),
                (&labels("unrelated.test"), 1, 300, &[9, 9, 9, 9]),
            ],
        );
        let found = addresses(&message, &name).unwrap();
        assert_eq!(found[0], ([1, 1, 1, 1].into(), Duration::from_secs(100)));
        assert_eq!(found[1], ([0x20; 16].into(), Duration::from_secs(50)));
        assert_eq!(found.len(), 2);
        for length in 0..message.len() - 60 {
            assert_eq!(addresses(&message[..length], &name), None, "{length}");
        }
        let circle = answer(
            &question,
            &[(pointer, 5, 1, &labels("b.test")), (&labels("b.test"), 5, 1, &labels("a.test"))],
        );
        assert_eq!(addresses(&circle, &name).unwrap(), []);
    }

    #[test]
    fn our_own_answers_are_answers() {
        let question = Question::parse(&ask(7, "a.test", 1)).unwrap();
        let given =
            [([1, 2, 3, 4].into(), Duration::from_secs(60)), ([0x20; 16].into(), Duration::from_secs(5))];
        let reply = question.addresses(&given);
        assert_eq!(addresses(&reply, question.name().unwrap()).unwrap(), given);
        assert_eq!(code(&question.empty(DnsRcode::NXDomain)), Some(DnsRcode::NXDomain));
        assert!(is_truncated(&question.truncated()) && !is_truncated(&reply));
        assert!(DnsPacket::new_checked(&reply).unwrap().flags().contains(DnsFlags::RECURSION_DESIRED));
    }
}
