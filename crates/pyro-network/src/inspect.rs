//! Which server a client names in its first bytes: the server name of a TLS handshake, or the host of an HTTP/1 request.

use tls_parser::{
    TlsMessage, TlsMessageHandshake, TlsRecordType, parse_tls_message_handshake, parse_tls_raw_record,
};

use crate::limits::INSPECTION_BYTES;
use crate::policy::DnsName;

/// Maximum number of header fields of a request.
const MAX_FIELDS: usize = 100;

/// What the first bytes of a client say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// They are not complete yet.
    Partly,
    Server(DnsName),
    /// They name no server, or hide which.
    Nothing,
}

/// Reads the first bytes of a client.
pub(crate) fn server_name(bytes: &[u8]) -> Named {
    let named = match bytes.first() {
        None => Named::Partly,
        Some(0x16) => of_tls(bytes),
        Some(_) => of_http(bytes),
    };
    match named {
        Named::Partly if bytes.len() >= INSPECTION_BYTES => Named::Nothing,
        named => named,
    }
}

fn of_tls(bytes: &[u8]) -> Named {
    // A handshake message may be spread over records.
    let mut rest = bytes;
    let mut handshake = Vec::new();
    loop {
        if handshake.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Named::Nothing;
        }
        match parse_tls_message_handshake(&handshake) {
            Ok((_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) => {
                return hello.ext.map_or(Named::Nothing, of_extensions);
            }
            Ok(_) => return Named::Nothing,
            Err(error) if error.is_incomplete() || handshake.len() < HANDSHAKE_HEADER => {}
            Err(_) if is_whole(&handshake) => return Named::Nothing,
            Err(_) => {}
        }
        match parse_tls_raw_record(rest) {
            Ok((after, record))
                if record.hdr.record_type == TlsRecordType::Handshake && !record.data.is_empty() =>
            {
                handshake.extend_from_slice(record.data);
                rest = after;
            }
            Err(error) if error.is_incomplete() => return Named::Partly,
            _ => return Named::Nothing,
        }
    }
}

/// Type of a client's first handshake message.
const CLIENT_HELLO: u8 = 1;
/// Type and length of a handshake message.
const HANDSHAKE_HEADER: usize = 4;

fn is_whole(handshake: &[u8]) -> bool {
    let Some(&[_, a, b, c]) = handshake.first_chunk() else { return false };
    handshake.len() - HANDSHAKE_HEADER >= u32::from_be_bytes([0, a, b, c]) as usize
}

/// Types of extensions (IANA's registry): the server's name, and two that hide another one.
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;

/// Reads every extension to its exact end, whatever is in it: a parser of all kinds of content would stop at the first one that
/// it does not like, where a server reads on.
fn of_extensions(mut extensions: &[u8]) -> Named {
    let mut named = Named::Nothing;
    let mut seen = Vec::new();
    while !extensions.is_empty() {
        let Some((kind, content, rest)) = extension(extensions) else { return Named::Nothing };
        extensions = rest;
        // A message has each extension once (RFC 8446, 4.2). The name outside an encrypted hello is not the one that is meant.
        if seen.contains(&kind) || matches!(kind, ENCRYPTED_CLIENT_HELLO | ENCRYPTED_SERVER_NAME) {
            return Named::Nothing;
        }
        seen.push(kind);
        if kind == SERVER_NAME {
            let Some(name) = host_name(content) else { return Named::Nothing };
            named = Named::Server(name);
        }
    }
    named
}

/// Splits off the first extension: its type, its content, and what follows.
fn extension(extensions: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = extensions.split_first_chunk::<4>()?;
    let [a, b, c, d] = *head;
    let (content, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
    Some((u16::from_be_bytes([a, b]), content, rest))
}

/// Reads a list of server names (RFC 6066, 3) that has one name, of the type `host_name`, and nothing else.
fn host_name(content: &[u8]) -> Option<DnsName> {
    let (head, name) = content.split_first_chunk::<5>()?;
    let [a, b, kind, c, d] = *head;
    let (list, length) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let is_exact = kind == 0
        && usize::from(length) == name.len()
        && usize::from(list) == content.len() - size_of::<u16>();
    if is_exact { str::from_utf8(name).ok().and_then(DnsName::new) } else { None }
}

fn of_http(bytes: &[u8]) -> Named {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Named::Partly,
        Err(_) => return Named::Nothing,
    }
    // A request to a proxy names the server twice.
    if !request.path.is_some_and(|path| path.starts_with('/') || path == "*") {
        return Named::Nothing;
    }
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Named::Nothing };
    let Ok(host) = str::from_utf8(host.value) else { return Named::Nothing };
    let host = host.trim();
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    DnsName::new(host).map_or(Named::Nothing, Named::Server)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn named(name: &str) -> Named {
        Named::Server(DnsName::new(name).unwrap())
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &(content.len() as u16).to_be_bytes(), content].concat()
    }

    fn sni(name: &str) -> Vec<u8> {
        let length = name.len() as u16;
        let list = [&(length + 3).to_be_bytes()[..], &[0], &length.to_be_bytes(), name.as_bytes()].concat();
        extension(0, &list)
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat()
    }

    fn records(handshake: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[0x16, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
        handshake.chunks(size).flat_map(record).collect()
    }

    /// A TLS client's first bytes.
    pub(crate) fn client_hello(name: &str) -> Vec<u8> {
        records(&hello(&sni(name)), 16_000)
    }

    #[test]
    fn the_name_in_a_tls_handshake_is_found_however_it_is_cut() {
        let handshake = hello(&[extension(10, &[0, 2, 0, 29]), sni("Example.test")].concat());
        for size in [16_000, 100, 7, 1] {
            let bytes = records(&handshake, size);
            assert_eq!(server_name(&bytes), named("example.test"), "records of {size}");
            for cut in 0..bytes.len() {
                assert_eq!(server_name(&bytes[..cut]), Named::Partly, "{cut} bytes, records of {size}");
            }
        }
    }

    #[test]
    fn a_tls_handshake_that_hides_its_name_names_nothing() {
        let of = |extensions: &[u8]| server_name(&records(&hello(extensions), 16_000));
        assert_eq!(of(&extension(10, &[0, 2, 0, 29])), Named::Nothing);
        assert_eq!(of(&[sni("a.test"), extension(0xfe0d, &[0; 8])].concat()), Named::Nothing);
        assert_eq!(of(&[sni("a.test"), sni("b.test")].concat()), Named::Nothing);
        // Behind extensions whose content is not what their type says, of which servers take no notice.
        for odd in [extension(13_172, &[1]), extension(0xffce, &[]), extension(10, &[9])] {
            let hidden = [sni("a.test"), odd, extension(0xfe0d, &[0; 8])].concat();
            assert_eq!(of(&hidden), Named::Nothing);
        }
        assert_eq!(of(&[sni("a.test"), vec![0]].concat()), Named::Nothing, "a part of an extension");
        let mut two_names = sni("a.test");
        two_names.extend(b"\0\0\x06b.test");
        two_names[3] += 9;
        assert_eq!(of(&two_names), Named::Nothing, "bytes behind the list");
        assert_eq!(of(&sni("not a name")), Named::Nothing);
        assert_eq!(server_name(&records(&[2, 0, 0, 1, 0], 100)), Named::Nothing, "not a client's");
        assert_eq!(server_name(&[0x16; 100]), Named::Partly, "the record is 5,654 bytes long");
        assert_eq!(server_name(&[0x16; INSPECTION_BYTES]), Named::Nothing);
    }

    #[test]
    fn the_host_of_a_request_is_found() {
        let text = b"GET /a HTTP/1.1\r\nAccept: */*\r\nHOST: Example.test:80\r\n\r\n";
        assert_eq!(server_name(text), named("example.test"));
        for cut in 0..text.len() {
            assert_eq!(server_name(&text[..cut]), Named::Partly, "{cut} bytes");
        }
        for text in [
            "GET / HTTP/1.1\r\nAccept: */*\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
            "GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "CONNECT b.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: 192.0.2.1 x\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n",
            "\0\0\0\0",
        ] {
            assert_eq!(server_name(text.as_bytes()), Named::Nothing, "{text}");
        }
    }
}
