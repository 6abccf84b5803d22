//! Two network namespaces without a connection to the outside, and servers in them.

use std::process::Command;

use crate::harness::{ENVIRONMENT, Ended, PYRO, Running, Sandbox};

/// A public address that belongs to another host.
pub(super) const PUBLIC: &str = "5.6.7.8";
/// Port of the server there, which is open to guests. Canaries have the same port elsewhere.
pub(super) const OPEN_PORT: u16 = 8080;
/// Port on which datagrams are answered, and connections to which stay open.
pub(super) const ECHO_PORT: u16 = 9999;

/// Runs in each namespace. Arguments: the file for what was heard, a word, and the resolver's addresses or nothing.
///
/// TCP: on port 8080, answers with the word as an HTTP response; on port 9999, keeps connections. UDP on port 9999: echoes, and
/// sends more to the same host from another port, and to its port 5353. UDP and TCP on port 53, where asked for: a
/// resolver that knows two names.
const SERVER: &str = r#"
    use strict; use warnings; use IO::Socket::IP; use IO::Select;
    my ($file, $word, $resolver) = @ARGV;
    open my $heard, '>>', $file or die; $heard->autoflush(1);
    my %names = ('public.test' => '5.6.7.8', 'rebind.test' => '127.0.0.1', 'lan.test' => '10.99.0.8');
    sub listen_on { IO::Socket::IP->new(LocalHost => '::', V6Only => 0, ReuseAddr => 1, @_) or die "cannot listen: $@" }
    my $http = listen_on(LocalPort => 8080, Type => SOCK_STREAM, Listen => 1000);
    my $kept = listen_on(LocalPort => 9999, Type => SOCK_STREAM, Listen => 4096);
    my $echo = listen_on(LocalPort => 9999, Type => SOCK_DGRAM);
    my $stranger = listen_on(LocalPort => 9998, Type => SOCK_DGRAM);
    my ($dns, $dns_tcp);
    if ($resolver) {
        $dns = IO::Socket::IP->new(LocalHost => $resolver, LocalPort => 53, Type => SOCK_DGRAM) or die $@;
        $dns_tcp = IO::Socket::IP->new(LocalHost => $resolver, LocalPort => 53, Type => SOCK_STREAM, Listen => 50) or die $@;
    }
    sub answer {
        my ($query) = @_;
        my ($at, @labels) = (12);
        while (my $length = ord substr $query, $at, 1) { push @labels, substr $query, $at + 1, $length; $at += $length + 1 }
        my ($kind) = unpack 'n', substr $query, $at + 1, 2;
        my $address = $names{lc join '.', @labels};
        my $found = defined $address && $kind == 1;
        my $reply = substr($query, 0, 2) . pack('nnnnn', defined $address ? 0x8180 : 0x8183, 1, $found ? 1 : 0, 0, 0)
            . substr($query, 12, $at + 5 - 12);
        $reply .= pack('nnnNn', 0xc00c, 1, 1, 60, 4) . pack('C4', split /\./, $address) if $found;
        return $reply;
    }
    my $select = IO::Select->new(grep { $_ } $http, $kept, $echo, $dns, $dns_tcp);
    my (@kept, @held);
    print "listening\n"; STDOUT->flush; close STDOUT;
    while (my @ready = $select->can_read) {
        for my $socket (@ready) {
            if ($socket == $http) {
                my $client = $http->accept or next;
                print $heard "tcp 8080 ", $client->sockhost, "\n";
                print $client "HTTP/1.0 200 OK\r\n\r\n$word\n"; $client->flush;
                shutdown $client, 1; push @kept, $client; shift @kept if @kept > 100;
            } elsif ($socket == $kept) {
                my $client = $kept->accept or next; push @held, $client;
            } elsif ($socket == $echo) {
                my $from = $echo->recv(my $text, 65536) or next;
                print $heard "udp 9999 $text\n";
                $echo->send("echo $text", 0, $from);
                my ($error, $host, $port) = Socket::getnameinfo($from, 3);
                $stranger->send("unsolicited", 0, $from);
                my ($e, @found) = Socket::getaddrinfo($host, 5353, {flags => 4, socktype => SOCK_DGRAM});
                $stranger->send("unsolicited", 0, $found[0]{addr}) if @found;
            } elsif ($dns && $socket == $dns) {
                my $from = $dns->recv(my $query, 4096) or next;
                $dns->send(answer($query), 0, $from);
            } elsif ($dns_tcp && $socket == $dns_tcp) {
                my $client = $dns_tcp->accept or next;
                read $client, my $length, 2; read $client, my $query, unpack 'n', $length;
                my $reply = answer($query); print $client pack('n', length $reply), $reply; close $client;
            }
        }
    }
"#;

/// Makes the namespaces, then runs the rest of the arguments on the host. What canaries have heard is in `$HOME/heard-host`
/// and `$HOME/heard-beyond`.
const WORLD: &str = r#"
    set -e
    server=$1; shift
    cd "$HOME"
    mkfifo ready
    trap 'kill $(jobs -p) 2> /dev/null' EXIT
    ip link set lo up
    unshare --net sh -c 'echo ready > ready; exec sleep infinity' &
    beyond=$!
    read -r line < ready
    ip link add outside type veth peer name beyond netns $beyond
    ip address add 5.6.7.1/24 dev outside
    # A secondary address, whose local route has the first one as its source.
    ip address add 5.6.7.2/24 dev outside
    ip address add 10.99.0.1/24 dev outside
    ip address add 2a00:5:6::1/64 dev outside nodad
    ip link set outside up
    # Every address of this network is the host's.
    ip route add local 2a00:5:7::/64 dev lo
    there() { nsenter --net=/proc/$beyond/ns/net "$@"; }
    there ip link set lo up
    for address in 5.6.7.8/24 10.99.0.8/24 169.254.169.254/32 100.64.0.8/32; do
        there ip address add $address dev beyond
    done
    there ip address add 2a00:5:6::8/64 dev beyond nodad
    there ip address add fd00:99::8/64 dev beyond nodad
    there ip link set beyond up
    there ip route add default via 5.6.7.1
    there ip route add default via 2a00:5:6::1
    ip route add default via 5.6.7.8
    ip route add default via 2a00:5:6::8
    echo nameserver 5.6.7.8 > resolv.conf
    mount --bind resolv.conf /etc/resolv.conf
    perl -e "$server" heard-host host > ready 2>&1 &
    read -r line < ready; [ "$line" = listening ] || { echo "$line" >&2; exit 99; }
    nsenter --net=/proc/$beyond/ns/net perl -e "$server" heard-beyond public 5.6.7.8 > ready 2>&1 &
    read -r line < ready; [ "$line" = listening ] || { echo "$line" >&2; exit 99; }
    "$@"
"#;

/// `pyro` on the host of a world without a connection to the outside.
pub(crate) fn pyro_in_world(sandbox: &Sandbox) -> Command {
    program_in_world(sandbox, PYRO)
}

/// Another program there.
pub(super) fn program_in_world(sandbox: &Sandbox, program: &str) -> Command {
    let mut command = sandbox.program("unshare");
    command.args((!rustix::process::geteuid().is_root()).then_some("--map-root-user"));
    command.args(["--net", "--mount", "bash", "-c", WORLD, "world", SERVER, program]);
    command
}

pub(super) fn start_in_world<'a>(
    sandbox: &Sandbox,
    flags: impl IntoIterator<Item = &'a str>,
    line: &'a str,
) -> Running {
    let mut command = pyro_in_world(sandbox);
    command.args(["run", ENVIRONMENT]).args(flags).args(["--timeout-seconds", "300", "--", line]);
    Running::start(&mut command)
}

pub(super) fn run_in_world<'a>(
    sandbox: &Sandbox,
    flags: impl IntoIterator<Item = &'a str>,
    line: &'a str,
) -> Ended {
    start_in_world(sandbox, flags, line).finish()
}

/// What the canaries of a namespace have heard.
pub(super) fn heard(sandbox: &Sandbox, namespace: &str) -> String {
    std::fs::read_to_string(sandbox.path("home").join(format!("heard-{namespace}"))).unwrap()
}

/// Shell text that prints what each server says last, or `closed`, in this order. All are asked at once, because an
/// address that does not answer takes its time.
pub(super) fn ask(servers: &[(&str, u16)]) -> String {
    let mut line = String::from("cd /tmp; ");
    for (n, (address, port)) in servers.iter().enumerate() {
        let answer = format!(
            "(timeout 20 bash -c 'cat < /dev/tcp/{address}/{port}' 2>/dev/null || echo closed) | tail -n 1"
        );
        line.push_str(&format!("({answer}) > {n} & "));
    }
    line + &format!("wait; cat $(seq 0 {})", servers.len() - 1)
}
