//! The network boundary: closed without the flag; with it, open to the outside and not to the host.
//!
//! All traffic stays in a network namespace that the test makes: one interface that leads nowhere, a
//! default route through it, and two servers: one on a reachable address and one on the loopback interface.

use std::process::Command;

use pyro_engine::VmSpec;
use rustix::process::Signal;

use crate::harness::{
    ENVIRONMENT, Ended, LONG, PYRO, Process, Running, Sandbox, chain, exec_text, kill, never, quiet,
    wait_until,
};

/// Address of the namespace's own interface, from a block that is reserved for documentation.
const HOST: &str = "192.0.2.1";
/// The open server's port, and that of the one on loopback.
const OPEN_PORT: u16 = 8080;
const PRIVATE_PORT: u16 = 8081;

/// Answers every connection with a word. Arguments: pairs of address and port, then the word.
const SERVER: &str = r#"
    use IO::Socket::INET;
    my ($address, $port, $word) = @ARGV;
    my $socket = IO::Socket::INET->new(LocalAddr => $address, LocalPort => $port, Listen => 5, ReuseAddr => 1)
        or die "cannot listen: $!";
    syswrite STDOUT, "listening\n";
    while (my $client = $socket->accept) { print $client "$word\n"; close $client }
"#;

/// Makes the namespace, then runs `pyro` in it with the rest of the arguments.
const WORLD: &str = r#"
    set -e
    ip link set lo up
    ip link add outside type veth peer name beyond
    ip address add 192.0.2.1/24 dev outside
    ip link set outside up
    ip link set beyond up
    ip route add default via 192.0.2.254
    server=$1; shift
    listen() {
        mkfifo "$HOME/$2"
        perl -e "$server" "$1" "$2" "$3" > "$HOME/$2" 2>&1 &
        read -r line < "$HOME/$2"
        [ "$line" = listening ] || { echo "$line" >&2; exit 99; }
    }
    listen 192.0.2.1 8080 open
    listen 127.0.0.1 8081 private
    trap 'kill $(jobs -p)' EXIT
    "$@"
"#;

/// `pyro` in a network namespace without a connection to the outside.
pub(crate) fn pyro_in_world(sandbox: &Sandbox) -> Command {
    let mut command = sandbox.program("unshare");
    command.args((!rustix::process::geteuid().is_root()).then_some("--map-root-user"));
    command.args(["--net", "bash", "-c", WORLD, "world", SERVER, PYRO]);
    command
}

fn start_in_world<'a>(sandbox: &Sandbox, flags: impl IntoIterator<Item = &'a str>, line: &'a str) -> Running {
    let mut command = pyro_in_world(sandbox);
    command.args(["run", ENVIRONMENT]).args(flags).args(["--timeout-seconds", "120", "--", line]);
    Running::start(&mut command)
}

fn run_in_world<'a>(sandbox: &Sandbox, flags: impl IntoIterator<Item = &'a str>, line: &'a str) -> Ended {
    start_in_world(sandbox, flags, line).finish()
}

/// Shell text that prints what each server says, or `closed`, in this order. All are asked at once, because an
/// address that does not answer takes its time.
fn ask(servers: &[(&str, u16)]) -> String {
    let mut line = String::from("cd /tmp; ");
    for (n, (address, port)) in servers.iter().enumerate() {
        let answer =
            format!("timeout 10 bash -c 'cat < /dev/tcp/{address}/{port}' 2>/dev/null || echo closed");
        line.push_str(&format!("({answer}) > {n} & "));
    }
    line + &format!("wait; cat $(seq 0 {})", servers.len() - 1)
}

#[test]
fn a_guest_without_the_flag_has_only_its_own_loopback() {
    let sandbox = Sandbox::new();
    let line = format!("ls /sys/class/net; wc -l < /proc/net/route; {}", ask(&[(HOST, OPEN_PORT)]));
    let ended = run_in_world(&sandbox, [], &line);
    assert_eq!(ended.success(), "lo\n1\nclosed\n", "{ended:?}");
}

#[test]
fn a_guest_with_the_flag_gets_out_and_not_into_the_host() {
    let sandbox = Sandbox::new();
    let private = ["127.0.0.1", "10.0.2.2", "10.0.2.3", "10.0.2.15", HOST].map(|host| (host, PRIVATE_PORT));
    let servers: Vec<_> = [(HOST, OPEN_PORT)].into_iter().chain(private).collect();
    let ended = run_in_world(&sandbox, ["--network"], &ask(&servers));
    assert_eq!(ended.success(), format!("open\n{}", "closed\n".repeat(private.len())), "{ended:?}");
}

#[tokio::test]
async fn the_networks_facts_are_those_of_the_guest() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine();
    let spec = VmSpec { network: true, ..VmSpec::new(ENVIRONMENT) };
    let vm = engine.create_vm(spec, &quiet(), &never()).await.unwrap();
    let id = vm.vm_id.as_str();
    let vm = engine.start_vm(id, &quiet(), &never()).await.map_err(|error| chain(&error)).unwrap();
    assert!(vm.network_enabled);
    let info = engine.network_info_vm(id).await.unwrap();
    assert!(info.network_enabled && info.outbound_connectivity_expected, "{info:?}");
    let facts = info.assignment.unwrap();
    assert_eq!(vm.guest_ip, facts.guest_ip);
    let guest = sandbox.guest(&vm);
    let mac = exec_text(&guest, "cat /sys/class/net/eth0/address").await;
    assert_eq!(facts.mac_address.as_deref(), Some(mac.trim()));
    let addresses = exec_text(&guest, "hostname -I").await;
    assert_eq!(facts.guest_ip.as_deref(), Some(addresses.trim()));
    let resolvers = exec_text(&guest, "cat /etc/resolv.conf").await;
    let expected: String = facts.dns_servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    assert_eq!(resolvers, expected);
    engine.delete_vm(id).await.unwrap();
}

#[test]
fn without_the_helper_a_network_is_refused_and_the_rest_works() {
    let sandbox = Sandbox::new();
    let bin = sandbox.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in ["qemu-system-x86_64", "mke2fs"] {
        let directories = std::env::split_paths(&std::env::var_os("PATH").unwrap()).collect::<Vec<_>>();
        let directories = directories.into_iter().chain(["/usr/sbin".into(), "/sbin".into()]);
        let found = directories.map(|directory| directory.join(program)).find(|path| path.is_file()).unwrap();
        std::os::unix::fs::symlink(found, bin.join(program)).unwrap();
    }
    let sandbox = sandbox.set("PATH", bin.to_str().unwrap());
    let ended = sandbox.run(["--network"], "echo never");
    let error = ended.error();
    assert!(error.contains("starting the network failed: passt is not installed"), "{error}");
    assert_eq!(sandbox.run([], "echo fine").success(), "fine\n");
}

fn helper(sandbox: &Sandbox) -> Process {
    // The program starts itself again as a variant for this processor.
    sandbox.wait_for_process("helper", |process| {
        ["passt", "passt.avx2"].iter().any(|name| process.is_program(name))
    })
}

#[test]
fn the_helper_goes_with_the_vm() {
    for victim in [Sandbox::supervisor, Sandbox::vmm] {
        let sandbox = Sandbox::new();
        let running = start_in_world(&sandbox, ["--network"], "echo running; sleep 1000");
        running.stdout.wait_for("running\n");
        helper(&sandbox);
        kill(victim(&sandbox).pid, Signal::KILL);
        assert!(running.finish().error().contains("was lost while its command ran"));
    }
}

#[test]
fn the_loss_of_the_helper_is_the_loss_of_the_network_only() {
    let sandbox = Sandbox::new();
    let line = "echo running; head -c 100000000 /dev/zero | md5sum > /dev/null; echo done";
    let running = start_in_world(&sandbox, ["--network"], line);
    running.stdout.wait_for("running\n");
    kill(helper(&sandbox).pid, Signal::KILL);
    assert_eq!(running.finish().success(), "running\ndone\n");
}

#[test]
fn the_console_log_says_why_the_network_was_lost() {
    let sandbox = Sandbox::new();
    // The warning about the network is on standard error.
    let created = sandbox.pyro(["task", "create", ENVIRONMENT, "--network"]);
    let id = created.success().lines().find_map(|line| line.strip_prefix("Task ID: ")).unwrap();
    kill(helper(&sandbox).pid, Signal::KILL);
    let log = sandbox.vm_dir(id).join("serial.log");
    let report = "[the network is lost: passt ended (signal: 9 (SIGKILL)): ";
    let reported = || std::fs::read_to_string(&log).unwrap().contains(report);
    wait_until(LONG, "report of the lost network", reported);
    let still = sandbox.pyro(["task", "exec", id, "--", "echo still running"]);
    assert_eq!(still.success(), "still running\n");
    sandbox.pyro(["task", "delete", id]).success();
}
