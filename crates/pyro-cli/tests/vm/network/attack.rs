//! What a hostile guest tries. Every canary is heard when the host itself, or an allowed destination, is asked in the same
//! way, so that a canary that is deaf does not pass for a closed one.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::helper::helper;
use super::world::{
    ECHO_PORT, OPEN_PORT, PUBLIC, ask, heard, program_in_world, run_in_world, start_in_world,
};
use crate::harness::{Sandbox, kill};

/// Addresses on which canaries listen, and by which a guest must not reach them: those of the host, and of networks that are not
/// public.
const CANARIES: [&str; 12] = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "5.6.7.1",
    "10.99.0.1",
    "10.99.0.8",
    "169.254.169.254",
    "100.64.0.8",
    "::1",
    "2a00:5:6::1",
    "fd00:99::8",
    "::ffff:127.0.0.1",
];

/// Attacks with frames of the guest's own making, and prints what came of each as a JSON object.
const FRAMES: &str = r#"
import json, os, socket, struct, time
results = {}
mac = bytes.fromhex(open('/sys/class/net/eth0/address').read().strip().replace(':', ''))
gateway = bytes.fromhex('02707972' + '6f01')
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(('eth0', 0))
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)

def checksum(data):
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack(f'!{len(data) // 2}H', data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def packet(source, target, protocol, segment, at):
    family = socket.AF_INET6 if ':' in target else socket.AF_INET
    s, t = socket.inet_pton(family, source), socket.inet_pton(family, target)
    pseudo = s + t + (struct.pack('!II', len(segment), protocol) if ':' in target else struct.pack('!HH', protocol, len(segment)))
    segment = segment[:at] + struct.pack('!H', checksum(pseudo + segment) or 0xffff) + segment[at + 2:]
    if ':' in target:
        return b'\x86\xdd', struct.pack('!IHBB', 6 << 28, len(segment), protocol, 64) + s + t + segment
    header = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(segment), 1, 0, 64, protocol, 0) + s + t
    return b'\x08\x00', header[:10] + struct.pack('!H', checksum(header)) + header[12:] + segment

def frame(kind, content, source_mac=mac): return gateway + source_mac + kind + content
def syn(source, target, port, own): return packet(source, target, 6, struct.pack('!HHIIBBHHH', own, port, 1000, 0, 0x50, 2, 64000, 0, 0), 16)
def udp(source, target, port, own, text): return packet(source, target, 17, struct.pack('!HHHH', own, port, 8 + len(text), 0) + text, 6)

def answered(own, seconds):
    'Whether a segment that opens a connection arrives at this port.'
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        wire.settimeout(left)
        try: seen = wire.recv(65536)
        except TimeoutError: break
        if seen[:6] != mac: continue
        segment = seen[34:] if seen[12:14] == b'\x08\x00' and seen[23] == 6 else seen[54:] if seen[12:14] == b'\x86\xdd' and seen[20] == 6 else b''
        if len(segment) >= 20 and struct.unpack('!H', segment[2:4])[0] == own and segment[13] & 0x12 == 0x12: return True
    return False

# The kernel of the guest must not reset connections that it has not opened.
v4, v6 = '10.0.2.15', 'fd70:7972:6f00::f'
own = 30000
def try_connect(name, source, target, seconds, **more):
    global own
    own += 1
    wire.send(frame(*syn(source, target, PORT, own), **more))
    results[name] = answered(own, seconds)

try_connect('public v4', v4, '5.6.7.8', 20)
try_connect('public v6', v6, '2a00:5:6::8', 20)
for target in CANARIES:
    try_connect(target, v6 if ':' in target else v4, target, 1)
for target in ['10.0.2.2', '10.0.2.3', '255.255.255.255', '5.6.7.255', '224.0.0.1', '2002:7f00:1::1', '64:ff9b::7f00:1']:
    try_connect(target, v6 if ':' in target else v4, target, 1)
try_connect('foreign ip', '10.0.2.16', '5.6.7.8', 1)
try_connect('foreign mac', v4, '5.6.7.8', 1, source_mac=bytes([6, 0, 9, 9, 9, 9]))
for target in CANARIES:
    wire.send(frame(*udp(v6 if ':' in target else v4, target, ECHO, 5353, b'raw ' + target.encode())))
wire.send(frame(*udp('10.0.2.16', '5.6.7.8', ECHO, 1234, b'foreign ip')))
wire.send(frame(*udp('127.0.0.1', '5.6.7.8', ECHO, 1234, b'loopback ip')))
wire.send(frame(*udp(v4, '5.6.7.8', ECHO, 1234, b'foreign mac'), source_mac=bytes([6, 0, 9, 9, 9, 9])))
kind, content = udp(v4, '5.6.7.8', ECHO, 1234, b'fragment')
wire.send(frame(kind, content[:6] + b'\x20\x00' + content[8:]))
wire.send(frame(b'\x81\x00', b'\0\1' + kind + udp(v4, '5.6.7.8', ECHO, 1234, b'tagged')[1]))

# Datagrams from the port of multicast DNS: only the peer's answer arrives.
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(('0.0.0.0', 5353))
listener.sendto(b'question', ('5.6.7.8', ECHO))
listener.settimeout(20)
results['answer'] = listener.recv(100).decode()
listener.settimeout(3)
try: results['more'] = listener.recv(100).decode()
except TimeoutError: results['more'] = None

# The resolver, by UDP and TCP.
results['name'] = socket.gethostbyname('public.test')
query = b'\0\7\1\0\0\1\0\0\0\0\0\0' + b'\6public\4test\0' + b'\0\1\0\1'
with socket.create_connection(('10.0.2.3', 53), 20) as resolver:
    resolver.sendall(struct.pack('!H', len(query)) + query)
    reply = resolver.makefile('rb')
    length, = struct.unpack('!H', reply.read(2))
    results['name by TCP'] = socket.inet_ntoa(reply.read(length)[-4:])
try: results['unknown name'] = socket.gethostbyname('unknown.test')
except socket.gaierror: results['unknown name'] = None

# Errors are quick and say what they are.
for name, target, port in [('closed port', '5.6.7.8', 1), ('denied', '10.99.0.8', PORT)]:
    started = time.monotonic()
    try: socket.create_connection((target, port), 20); results[name] = 'open'
    except OSError as error: results[name] = [error.errno, time.monotonic() - started < 5]
print(json.dumps(results))
"#;

/// Shell text that runs a Python program with these definitions.
fn python(program: &str) -> String {
    let canaries = CANARIES.map(|canary| format!("{canary:?}")).join(", ");
    format!(
        "python3 - <<'END'\nPORT, ECHO, CANARIES = {OPEN_PORT}, {ECHO_PORT}, [{canaries}]\n{program}\nEND"
    )
}

#[test]
fn the_canaries_hear_what_reaches_them() {
    let sandbox = Sandbox::new();
    let ask_all = CANARIES.map(|canary| {
        format!("exec 3<>/dev/tcp/{canary}/{OPEN_PORT}; cat <&3 | tail -n 1; echo {canary} > /dev/udp/{canary}/{ECHO_PORT};")
    });
    let mut command: Command = program_in_world(&sandbox, "bash");
    let output = command.args(["-c", &ask_all.concat()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), CANARIES.len(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let all = heard(&sandbox, "host") + &heard(&sandbox, "beyond");
    assert_eq!(all.matches("tcp 8080").count(), CANARIES.len(), "{all}");
}

#[test]
fn a_guest_reaches_the_public_internet_and_none_of_the_canaries() {
    let sandbox = Sandbox::new();
    let servers: Vec<_> =
        [PUBLIC].into_iter().chain(CANARIES).chain(["10.0.2.2", "10.0.2.3", "10.0.2.15"]).collect();
    // Within the guest, its own loopback is not the host's.
    let asked: Vec<_> = servers.iter().map(|server| (*server, OPEN_PORT)).collect();
    let line = format!(
        "{}; python3 -c 'import urllib.request as r; print(r.urlopen(\"http://public.test:8080/\").read().decode().strip())'",
        ask(&asked)
    );
    let ended = run_in_world(&sandbox, ["--network"], &line);
    let expected = format!("public\n{}public\n", "closed\n".repeat(servers.len() - 1));
    assert_eq!(ended.success(), expected, "{ended:?}");
    assert_eq!(heard(&sandbox, "host"), "");
    let beyond = heard(&sandbox, "beyond");
    assert!(beyond.lines().all(|line| line.ends_with(PUBLIC)), "{beyond}");
}

#[test]
fn frames_of_the_guests_own_making_reach_none_of_the_canaries() {
    let sandbox = Sandbox::new();
    let ended = run_in_world(&sandbox, ["--network"], &python(FRAMES));
    let results: Value = serde_json::from_str(ended.success()).unwrap();
    let results = results.as_object().unwrap();
    for (name, result) in results {
        let expected: Value = match name.as_str() {
            "public v4" | "public v6" => true.into(),
            "answer" => "echo question".into(),
            "more" | "unknown name" => Value::Null,
            "name" | "name by TCP" => PUBLIC.into(),
            "closed port" => serde_json::json!([111, true]),
            "denied" => serde_json::json!([113, true]),
            _ => false.into(),
        };
        assert_eq!(*result, expected, "{name}: {results:?}");
    }
    assert!(results.len() > CANARIES.len() + 15);
    assert_eq!(heard(&sandbox, "host"), "");
    let beyond = heard(&sandbox, "beyond");
    let datagrams: Vec<_> = beyond.lines().filter(|line| line.starts_with("udp")).collect();
    assert_eq!(datagrams, ["udp 9999 question"]);
}

/// Opens as many connections and flows as a guest can.
const FLOOD: &str = r#"
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (30000, 30000))
sockets = []
for n in range(20000):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(('5.6.7.8', ECHO))
    sockets.append(s)
    if n % 4 == 0:
        d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        d.setblocking(False)
        try: d.sendto(b'x', ('5.6.7.8', 1000 + n))
        except OSError: pass
        d.close()
print('flooded', flush=True)
input()
"#;

#[test]
fn a_flood_of_connections_holds_bounded_descriptors_and_memory() {
    let sandbox = Sandbox::new();
    let program = FLOOD.replace("input()", "import time; time.sleep(600)");
    let line = python(&program);
    let running = start_in_world(&sandbox, ["--network"], &line);
    running.stdout.wait_for("flooded\n");
    let helper = helper(&sandbox);
    let pid = helper.pid.as_raw_pid();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!((100..928).contains(&descriptors), "{descriptors} descriptors");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let memory: u64 = memory.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(memory < 64 << 10, "{memory} KiB");
    for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"] {
        assert!(status.contains(line), "{status}");
    }
    if rustix::process::geteuid().is_root() {
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    }
    kill(sandbox.supervisor().pid, Signal::KILL);
    running.finish();
}
