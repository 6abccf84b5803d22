//! What a hostile guest tries. Every canary is heard when the host itself, or an allowed destination, is asked in the same
//! way, so that a canary that is deaf does not pass for a closed one.

use std::process::Command;

use rustix::process::Signal;

use super::helper::helper;
use super::world::{
    ECHO_PORT, OPEN_PORT, PUBLIC, ask, heard, program_in_world, run_in_world, start_in_world,
};
use crate::harness::{PYRO, Sandbox, kill};

/// Addresses on which canaries listen, and by which a guest must not reach them: those of the host, and of networks that are not
/// public.
const CANARIES: [&str; 14] = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "5.6.7.1",
    "5.6.7.2",
    "10.99.0.1",
    "10.99.0.8",
    "169.254.169.254",
    "100.64.0.8",
    "::1",
    "2a00:5:6::1",
    "2a00:5:7::9",
    "fd00:99::8",
    "::ffff:127.0.0.1",
];

/// Attacks with frames of the guest's own making, and prints what came of each, a line for each.
const FRAMES: &str = r#"
    use strict; use warnings; use Socket qw(:all); use Time::HiRes qw(time); $| = 1;
    my ($port, $echo, @canaries) = @ARGV;
    sub slurp { open my $file, '<', $_[0] or die; my $text = <$file>; chomp $text; $text }
    my $mac = pack 'H*', slurp('/sys/class/net/eth0/address') =~ tr/://dr;
    my $gateway = pack 'H*', '027079726f01';
    socket my $wire, 17, SOCK_RAW, unpack('S', pack 'n', 3) or die "packet socket: $!";
    my $index = slurp('/sys/class/net/eth0/ifindex');
    bind $wire, pack 'S n l S C C a8', 17, 3, $index, 0, 0, 6, '' or die "bind: $!";

    sub checksum {
        my $total = 0; $total += $_ for unpack 'n*', $_[0] . (length($_[0]) % 2 ? "\0" : '');
        $total = ($total & 0xffff) + ($total >> 16) while $total >> 16;
        return ~$total & 0xffff;
    }
    sub ip {
        my ($source, $target, $protocol, $segment, $at) = @_;
        my $family = $target =~ /:/ ? AF_INET6 : AF_INET;
        my ($s, $t) = (inet_pton($family, $source), inet_pton($family, $target));
        my $ends = $s . $t . ($family == AF_INET6 ? pack 'NN', length $segment, $protocol : pack 'nn', $protocol, length $segment);
        substr $segment, $at, 2, pack 'n', checksum($ends . $segment) || 0xffff;
        return ("\x86\xdd", pack('NnCC', 6 << 28, length $segment, $protocol, 64) . $s . $t . $segment) if $family == AF_INET6;
        my $header = pack('CCnnnCCn', 0x45, 0, 20 + length $segment, 1, 0, 64, $protocol, 0) . $s . $t;
        substr $header, 10, 2, pack 'n', checksum($header);
        return ("\x08\x00", $header . $segment);
    }
    sub put { my ($kind, $content, $source) = @_; send $wire, $gateway . ($source // $mac) . $kind . $content, 0 or die "send: $!" }
    sub syn { my ($source, $target, $to, $own) = @_; ip($source, $target, 6, pack('nnNNCCnnn', $own, $to, 1000, 0, 0x50, 2, 64000, 0, 0), 16) }
    sub udp { my ($source, $target, $to, $own, $text) = @_; ip($source, $target, 17, pack('nnnn', $own, $to, 8 + length $text, 0) . $text, 6) }

    # Whether a segment that opens a connection arrives at this port.
    sub answered {
        my ($own, $seconds) = @_;
        my $end = time + $seconds;
        while ((my $left = $end - time) > 0) {
            vec(my $bits = '', fileno $wire, 1) = 1;
            select($bits, undef, undef, $left) or last;
            recv $wire, my $seen, 65536, 0;
            next unless substr($seen, 0, 6) eq $mac;
            my $kind = substr $seen, 12, 2;
            my $segment = $kind eq "\x08\x00" && ord(substr $seen, 23, 1) == 6 ? substr $seen, 34
                : $kind eq "\x86\xdd" && ord(substr $seen, 20, 1) == 6 ? substr $seen, 54 : '';
            next if length $segment < 20;
            return 'open' if unpack('x2 n', $segment) == $own && (ord(substr $segment, 13, 1) & 0x12) == 0x12;
        }
        return 'closed';
    }
    my ($v4, $v6, $own) = ('10.0.2.15', 'fd70:7972:6f00::f', 30000);
    sub try_connect {
        my ($name, $source, $target, $seconds, $source_mac) = @_;
        put(syn($source, $target, $port, ++$own), $source_mac);
        print "$name ", answered($own, $seconds), "\n";
    }
    sub own_address { $_[0] =~ /:/ ? $v6 : $v4 }
    my $foreign_mac = pack 'H*', '060009090909';
    try_connect('public-v4', $v4, '5.6.7.8', 20);
    try_connect('public-v6', $v6, '2a00:5:6::8', 20);
    try_connect($_, own_address($_), $_, 1)
        for @canaries, qw(10.0.2.2 10.0.2.3 255.255.255.255 5.6.7.255 224.0.0.1 2002:7f00:1::1 64:ff9b::7f00:1);
    try_connect('foreign-ip', '10.0.2.16', '5.6.7.8', 1);
    try_connect('foreign-mac', $v4, '5.6.7.8', 1, $foreign_mac);
    put(udp(own_address($_), $_, $echo, 5353, "raw $_")) for @canaries;
    put(udp('10.0.2.16', '5.6.7.8', $echo, 1234, 'foreign ip'));
    put(udp('127.0.0.1', '5.6.7.8', $echo, 1234, 'loopback ip'));
    put(udp($v4, '5.6.7.8', $echo, 1234, 'foreign mac'), $foreign_mac);
    my ($kind, $content) = udp($v4, '5.6.7.8', $echo, 1234, 'fragment');
    substr $content, 6, 2, "\x20\x00";
    put($kind, $content);
    put("\x81\x00", "\0\1" . join '', udp($v4, '5.6.7.8', $echo, 1234, 'tagged'));

    # Datagrams from the port of multicast DNS: only the answer of the peer arrives.
    socket my $mdns, AF_INET, SOCK_DGRAM, 0; bind $mdns, pack_sockaddr_in(5353, INADDR_ANY) or die "bind: $!";
    send $mdns, 'question', 0, pack_sockaddr_in($echo, inet_aton('5.6.7.8'));
    sub heard { vec(my $bits = '', fileno $mdns, 1) = 1; select($bits, undef, undef, $_[0]) or return 'nothing'; recv $mdns, my $text, 100, 0; $text }
    print 'first ', heard(20), "\n", 'then ', heard(3), "\n";

    # The resolver, by UDP and TCP.
    sub name { my $found = gethostbyname $_[0]; $found ? inet_ntoa($found) : 'unknown' }
    print 'name ', name('public.test'), "\n", 'other-name ', name('unknown.test'), "\n";
    my $query = "\0\7\1\0\0\1\0\0\0\0\0\0" . "\6public\4test\0" . "\0\1\0\1";
    socket my $dns, AF_INET, SOCK_STREAM, 0;
    connect $dns, pack_sockaddr_in(53, inet_aton('10.0.2.3')) or die "resolver: $!";
    syswrite $dns, pack('n', length $query) . $query;
    read $dns, my $length, 2; read $dns, my $reply, unpack 'n', $length;
    print 'name-by-tcp ', inet_ntoa(substr $reply, -4), "\n";

    # Errors are quick and say what they are.
    for (['closed-port', '5.6.7.8', 1], ['denied', '10.99.0.8', $port]) {
        my ($name, $target, $to) = @$_;
        my $started = time;
        socket my $socket, AF_INET, SOCK_STREAM, 0;
        my $error = connect($socket, pack_sockaddr_in($to, inet_aton($target))) ? 0 : $! + 0;
        print "$name $error ", (time - $started < 5 ? 'quick' : 'slow'), "\n";
    }
"#;

/// Shell text that runs a Perl program with these arguments.
fn perl(program: &str) -> String {
    let canaries = CANARIES.join(" ");
    format!("perl - {OPEN_PORT} {ECHO_PORT} {canaries} <<'END'\n{program}\nEND")
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
        "{}; bash -c 'exec 3<>/dev/tcp/public.test/{OPEN_PORT}; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; tail -n 1 <&3'",
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
    let ended = run_in_world(&sandbox, ["--network"], &perl(FRAMES));
    let lines: Vec<_> = ended.success().lines().collect();
    for line in &lines {
        let (name, result) = line.split_once(' ').unwrap();
        let expected = match name {
            "public-v4" | "public-v6" => "open",
            "first" => "echo question",
            "then" => "nothing",
            "name" | "name-by-tcp" => PUBLIC,
            "other-name" => "unknown",
            // ECONNREFUSED and EHOSTUNREACH.
            "closed-port" => "111 quick",
            "denied" => "113 quick",
            _ => "closed",
        };
        assert_eq!(result, expected, "{name}: {ended:?}");
    }
    assert_eq!(lines.len(), CANARIES.len() + 18);
    assert_eq!(heard(&sandbox, "host"), "");
    let beyond = heard(&sandbox, "beyond");
    let datagrams: Vec<_> = beyond.lines().filter(|line| line.starts_with("udp")).collect();
    assert_eq!(datagrams, ["udp 9999 question"]);
}

/// Opens as many connections and flows as a guest can.
const FLOOD: &str = r#"
    use strict; use warnings; use Socket qw(:all); use Fcntl; $| = 1;
    my ($port, $echo) = @ARGV;
    my @sockets;
    for my $n (0 .. 19_999) {
        socket my $tcp, AF_INET, SOCK_STREAM | 0x800, 0 or die "socket $n: $!";
        connect $tcp, pack_sockaddr_in($echo, inet_aton('5.6.7.8'));
        push @sockets, $tcp;
        next if $n % 4;
        socket my $udp, AF_INET, SOCK_DGRAM | 0x800, 0 or die "socket $n: $!";
        send $udp, 'x', 0, pack_sockaddr_in(1000 + $n, inet_aton('5.6.7.8'));
    }
    print "flooded\n";
    sleep 600;
"#;

#[test]
fn a_flood_of_connections_holds_bounded_descriptors_and_memory() {
    let sandbox = Sandbox::new();
    let line = format!("ulimit -n 30000 && {}", perl(FLOOD));
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
    for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "Seccomp:\t2"] {
        assert!(status.contains(line), "{status}");
    }
    // Root's process has become another user.
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert!(users.split_ascii_whitespace().all(|user| user != "0"), "{status}");
    kill(sandbox.supervisor().pid, Signal::KILL);
    running.finish();
}

/// A guest stays while the host gets the address of its server, and loses and gets back its uplink.
const CHANGES: &str = r#"
    set -e
    pyro=$1
    id=$("$pyro" task create debian:12 --network | sed -n 's/^Task ID: //p')
    ask() {
        "$pyro" task exec "$id" -- \
            "timeout 20 bash -c 'cat < /dev/tcp/5.6.7.8/8080' 2> /dev/null | tail -n 1 | grep . || echo closed"
    }
    ask
    ip address add 5.6.7.8/32 dev lo
    ask
    ip address delete 5.6.7.8/32 dev lo
    ask
    ip link set outside down
    ask
    ip link set outside up
    ip route add default via 5.6.7.8
    ask
    "$pyro" task delete "$id" > /dev/null
"#;

#[test]
fn addresses_and_routes_of_the_host_may_change() {
    let sandbox = Sandbox::new();
    let mut command = program_in_world(&sandbox, "bash");
    let output = command.args(["-c", CHANGES, "changes", PYRO]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text, "public\nclosed\npublic\nclosed\npublic\n", "{errors}");
    assert_eq!(heard(&sandbox, "host"), "");
}
