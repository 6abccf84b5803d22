//! Debian's own nginx, with TLS, and dnsmasq as the internet, and git as the client.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{ENVIRONMENT, Ended, PYRO, Running, Sandbox};

/// Makes two namespaces, starts the servers in the second, then runs the rest of the arguments in the first.
///
/// `files.example.test` and `other.example.test` are one server with a Git repository; `rebind.example.test` resolves to the
/// client's own loopback.
const WORLD: &str = r#"
    set -e
    servers=$1; shift
    cd "$HOME"
    export LD_LIBRARY_PATH=$servers/usr/lib/x86_64-linux-gnu
    mkfifo ready
    trap 'kill $(jobs -p) $(cat nginx.pid dnsmasq.pid 2> /dev/null) 2> /dev/null' EXIT
    ip link set lo up
    unshare --net sh -c 'ip link set lo up; echo ready > ready; exec sleep infinity' &
    beyond=$!
    read -r line < ready
    there() { nsenter --net=/proc/$beyond/ns/net "$@"; }
    ip link add outside type veth peer name beyond netns $beyond
    ip address add 5.6.7.1/24 dev outside
    ip link set outside up
    there ip address add 5.6.7.8/24 dev beyond
    there ip link set beyond up
    ip route add default via 5.6.7.8
    echo nameserver 5.6.7.8 > resolv.conf
    mount --bind resolv.conf /etc/resolv.conf

    git init --quiet --bare www/repository
    git -C www/repository update-server-info
    tree=$(git -C www/repository mktree < /dev/null)
    export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a
    commit=$(git -C www/repository commit-tree -m first "$tree")
    git -C www/repository update-ref refs/heads/main "$commit"
    git -C www/repository update-server-info
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key -out certificate \
        -subj /CN=test -addext 'subjectAltName=DNS:*.example.test' 2> openssl.log
    cat > nginx.conf <<END
        user $(id -un);
        pid $HOME/nginx.pid;
        error_log $HOME/nginx.log;
        events {}
        http {
            access_log $HOME/nginx-access.log;
            client_body_temp_path $HOME/n1; proxy_temp_path $HOME/n2; fastcgi_temp_path $HOME/n3;
            uwsgi_temp_path $HOME/n4; scgi_temp_path $HOME/n5;
            server {
                listen 5.6.7.8:80;
                listen 5.6.7.8:443 ssl;
                ssl_certificate $HOME/certificate;
                ssl_certificate_key $HOME/key;
                root $HOME/www;
            }
        }
END
    # Both return once they listen.
    there "$servers/usr/sbin/nginx" -e "$HOME/nginx.log" -c "$HOME/nginx.conf"
    there "$servers/usr/sbin/dnsmasq" --conf-file=/dev/null --user="$(id -un)" --group= --pid-file="$HOME/dnsmasq.pid" \
        --log-facility="$HOME/dnsmasq.log" --listen-address=5.6.7.8 --bind-interfaces --no-resolv --no-hosts \
        --address=/files.example.test/5.6.7.8 --address=/other.example.test/5.6.7.8 \
        --address=/rebind.example.test/127.0.0.1
    unset LD_LIBRARY_PATH
    "$@"
"#;

/// Where `scripts/fetch-test-servers` has put the servers.
fn servers() -> PathBuf {
    let from_here =
        || Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().nth(2).unwrap().join("test-servers");
    let servers = std::env::var_os("PYRO_TEST_SERVERS").map_or_else(from_here, PathBuf::from);
    let path = servers.display();
    assert!(servers.join("usr/sbin/nginx").exists(), "run `scripts/fetch-test-servers {path}` first");
    servers
}

fn run<'a>(sandbox: &Sandbox, flags: impl IntoIterator<Item = &'a str>, line: &str) -> Ended {
    let mut command: Command = sandbox.program("unshare");
    command.args((!rustix::process::geteuid().is_root()).then_some("--map-root-user"));
    command.args(["--net", "--mount", "bash", "-c", WORLD, "world"]).arg(servers());
    command.args([PYRO, "run", ENVIRONMENT, "--network"]).args(flags);
    command.args(["--timeout-seconds", "300", "--", line]);
    Running::start(&mut command).finish()
}

/// `refs URL [OPTION]...` prints how many references the repository has, or `none`.
const REFS: &str = r#"
    refs() { url=$1; shift; timeout 60 git -c http.sslVerify=false "$@" ls-remote "$url" main 2>/dev/null | grep -c . || echo none; }
"#;

#[test]
fn git_reaches_a_public_server_over_http_and_https() {
    let sandbox = Sandbox::new();
    let line = format!(
        "{REFS}
        refs https://files.example.test/repository; refs http://other.example.test/repository
        refs https://rebind.example.test/repository"
    );
    let ended = run(&sandbox, [], &line);
    assert_eq!(ended.success(), "1\n1\n0\nnone\n", "{ended:?}");
}

#[test]
fn an_allowlist_compares_the_name_that_tls_and_http_carry() {
    let sandbox = Sandbox::new();
    // Each name but the first leads to the same address, which is open once it was asked for.
    let line = format!(
        "{REFS}
        refs https://files.example.test/repository; refs http://files.example.test/repository
        refs https://other.example.test/repository; echo 5.6.7.8 other.example.test >> /etc/hosts
        refs https://other.example.test/repository; refs http://other.example.test/repository
        refs https://5.6.7.8/repository; refs https://rebind.example.test/repository"
    );
    let names = ["files.example.test", "rebind.example.test"];
    let domains = names.iter().flat_map(|name| ["--allow-domain", name]);
    let ended = run(&sandbox, ["--egress", "allowlist"].into_iter().chain(domains), &line);
    let refused = "0\nnone\n".repeat(5);
    assert_eq!(ended.success(), format!("1\n1\n{refused}"), "{ended:?}");
    for denial in [
        "[network] denied dns other.example.test: name_not_on_allowlist",
        "[network] denied dns rebind.example.test (127.0.0.1): dns_rebinding",
        "[network] denied tcp other.example.test:443 (5.6.7.8): server_name_mismatch",
        "[network] denied tcp other.example.test:80 (5.6.7.8): server_name_mismatch",
        "[network] denied tcp 5.6.7.8:443: server_name_missing",
    ] {
        assert!(ended.stderr.contains(denial), "{denial} is not in {}", ended.stderr);
    }
}
