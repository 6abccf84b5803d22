//! Guests that get their host's certification authorities and proxies.

use super::world::program_in_world;
use crate::harness::{ENVIRONMENT, Ended, PYRO, Running, Sandbox};

/// Runs on the host of the world, and then the rest of the arguments as a shell script. Its authority has certified the server
/// on port 8443 of 10.99.0.1, which answers HTTP over TLS.
const WITH_TLS: &str = r#"
    set -e
    cd "$HOME"
    key() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" "${@:2}" 2>> openssl.log; }
    key ca -x509 -days 2 -subj /CN=authority -out ca.crt
    key server -subj /CN=server -out server.csr
    echo subjectAltName=IP:10.99.0.1 > extensions
    openssl x509 -req -days 2 -in server.csr -CA ca.crt -CAkey ca.key -extfile extensions -out server.crt 2>> openssl.log
    cat ca.key ca.crt > bundle.pem
    mkfifo tls
    openssl s_server -accept 10.99.0.1:8443 -cert server.crt -key server.key -www > tls 2>> openssl.log &
    trap 'kill $(jobs -p) 2> /dev/null' EXIT
    exec 7< tls
    while read -r line <&7 && [ "$line" != ACCEPT ]; do :; done
    pyro=$1 environment=$2
    eval "$3"
"#;

/// What Git, which checks certificates, says about the server.
const FETCH: &str = "git ls-remote https://10.99.0.1:8443/x 2>&1 | grep -o 'verification failed\\|not valid\\|connect' | head -n 1";

/// A proxy on 127.0.0.1:3128 that opens connections for `CONNECT`, and writes each request's first line and credentials to
/// `proxied`.
const PROXY: &str = r#"
    use strict; use warnings; use IO::Socket::IP; use IO::Select; use MIME::Base64;
    my $server = IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => 3128, ReuseAddr => 1, Listen => 10) or die $@;
    open my $log, '>>', 'proxied' or die; $log->autoflush(1);
    $SIG{CHLD} = 'IGNORE';
    print "listening\n"; STDOUT->flush; close STDOUT;
    while (my $client = $server->accept) {
        next if fork;
        my ($target, $user);
        until (defined $user) {
            ($target) = (<$client> // exit) =~ /^CONNECT (\S+)/;
            while (defined(my $line = <$client>)) {
                $user = decode_base64($1) if $line =~ /^Proxy-Authorization: Basic (\S+)/i;
                last if $line =~ /^\r?\n$/;
            }
            next if defined $user;
            syswrite $client, "HTTP/1.1 407 Credentials\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n";
        }
        print $log "$target $user\n";
        my $peer = IO::Socket::IP->new(PeerAddr => $target) or exit;
        syswrite $client, "HTTP/1.1 200 OK\r\n\r\n";
        my $select = IO::Select->new($client, $peer);
        while (my @ready = $select->can_read) {
            for my $from (@ready) {
                my $to = $from == $client ? $peer : $client;
                exit unless sysread $from, my $bytes, 65536;
                syswrite $to, $bytes;
            }
        }
    }
"#;

fn run_with_tls(sandbox: &Sandbox, script: &str) -> Ended {
    let mut command = program_in_world(sandbox, "bash");
    command.args(["-c", WITH_TLS, "world", PYRO, ENVIRONMENT, script, PROXY]);
    Running::start(&mut command).finish()
}

#[test]
fn a_guest_trusts_the_hosts_authorities_if_it_is_asked_for() {
    let sandbox = Sandbox::new();
    let script = format!(
        r#"
        run() {{ "$pyro" run "$environment" --network --allow-host 10.99.0.1:8443 --timeout-seconds 300 "$@"; }}
        fetch="{FETCH}"
        run -- "$fetch"
        SSL_CERT_FILE=$HOME/ca.crt run --host-ca -- "$fetch; grep -c BEGIN \$SSL_CERT_FILE \$CURL_CA_BUNDLE; apt-config dump Acquire::https::CaInfo"
        run --host-ca=bundle.pem -- "$fetch; grep -c PRIVATE \$SSL_CERT_FILE; true"
        PYRO_HOST_CA=$HOME/bundle.pem run -- "GIT_SSL_CAINFO=/etc/hostname; $fetch"
        run --host-ca=missing.pem -- true 2>&1 | grep -o 'cannot read.*'
        "#
    );
    let ended = run_with_tls(&sandbox, &script);
    let home = sandbox.path("home");
    let expected = format!(
        "verification failed\nnot valid\n/run/pyro/host-ca.pem:1\n/run/pyro/host-ca.pem:1\nAcquire::https::CaInfo \"/run/pyro/host-ca.pem\";\nnot valid\n0\nverification failed\n\
         cannot read the certificates in {}/missing.pem: No such file or directory (os error 2)\n",
        home.display()
    );
    assert_eq!(ended.success(), expected, "{ended:?}");
}

#[test]
fn a_task_gets_the_authorities_at_each_start() {
    let sandbox = Sandbox::new();
    let script = format!(
        r#"
        fetch="{FETCH}"
        key other -x509 -days 2 -subj /CN=other -out authorities
        task() {{ "$pyro" task "$@"; }}
        task create "$environment" --network --allow-host 10.99.0.1:8443 --host-ca=authorities --json > task.json
        id=$(grep -o '"task_id": *"[^"]*"' task.json | cut -d'"' -f4)
        grep -o '"host_ca": *"[^"]*"' task.json
        task exec $id -- "$fetch"
        task stop $id > /dev/null
        cat ca.crt > authorities
        task start $id > /dev/null
        task exec $id -- "$fetch"
        task exec $id --env GIT_SSL_CAINFO=/etc/hostname -- "$fetch"
        task delete $id > /dev/null
        "#
    );
    let ended = run_with_tls(&sandbox, &script);
    let authorities = sandbox.path("home").join("authorities");
    let expected = format!(
        "\"host_ca\": \"{}\"\nverification failed\nnot valid\nverification failed\n",
        authorities.display()
    );
    assert_eq!(ended.success(), expected, "{ended:?}");
}

#[test]
fn a_guest_uses_the_hosts_proxy_and_its_credentials_are_not_kept() {
    let sandbox = Sandbox::new();
    let script = format!(
        r#"
        fetch="{FETCH}"
        mkfifo proxy
        perl -e "$4" > proxy &
        read -r line < proxy; [ "$line" = listening ]
        echo closed-to-others; "$pyro" run "$environment" --network --egress allowlist --host-ca=ca.crt -- "$fetch"
        export HTTPS_PROXY=http://user:first-word@localhost:3128 NO_PROXY=internal.test
        task() {{ "$pyro" task "$@"; }}
        task create "$environment" --network --egress allowlist --host-proxy --host-ca=ca.crt --json > task.json
        id=$(grep -o '"task_id": *"[^"]*"' task.json | cut -d'"' -f4)
        task exec $id -- "echo \$HTTPS_PROXY \$NO_PROXY | sed s/first/1st/; $fetch"
        task stop $id > /dev/null
        HTTPS_PROXY=http://user:second-word@127.0.0.1:3128 task start $id > /dev/null
        task exec $id -- "$fetch; timeout 5 bash -c '< /dev/tcp/10.0.2.2/8080' 2> /dev/null || echo closed"
        task status $id --json > status.json
        grep -o '"host_proxy": *"[^"]*"' status.json
        grep -rl -e first-word -e second-word $PYRO_BASE_DIR task.json status.json || echo not kept
        for process in /proc/[0-9]*; do
            if tr '\0' ' ' < $process/cmdline | grep -q "^$pyro"; then
                cat $process/environ > environ 2> /dev/null && grep -q . environ && echo an environment was read
                cat $process/cmdline environ | grep -c -e first-word -e second-word || true
            fi
        done | sort -u
        task delete $id > /dev/null
        cat proxied
        "#
    );
    let ended = run_with_tls(&sandbox, &script);
    let expected = "closed-to-others\nconnect\nhttp://user:1st-word@10.0.2.2:3128 internal.test,localhost,127.0.0.1,::1\nnot valid\nnot valid\nclosed\n\
                    \"host_proxy\": \"true\"\nnot kept\n0\nan environment was read\n10.99.0.1:8443 user:first-word\n10.99.0.1:8443 user:second-word\n";
    assert_eq!(ended.success(), expected, "{ended:?}");
}
