//! Ports of guests on the host.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{LONG, Sandbox, Task, kill, wait_until};

/// A server in the guest that answers each request over HTTP with `$WHO`, on its loopback interface alone.
const SERVER: &str = r#"perl -MIO::Socket::INET -e '
    $server = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1", LocalPort => 80) or die;
    open(READY, ">", "/run/ready") && close(READY);
    while ($client = $server->accept) {
        while (<$client>) { last if /^\r?$/ }
        print $client "HTTP/1.0 200 OK\r\n\r\n$ENV{WHO}\n";
        close $client;
    }'"#;

/// Starts the server in the guest and waits until it listens.
fn serve(task: &Task<'_>, who: &str) {
    task.exec([], "rm -f /run/ready").success();
    task.detach(&format!("WHO={who} {SERVER}"));
    task.exec([], "until [ -e /run/ready ]; do sleep 0.1; done").success();
}

fn get(address: SocketAddr) -> io::Result<String> {
    let mut client = TcpStream::connect(address)?;
    client.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer.rsplit("\r\n").next().unwrap_or_default().to_owned())
}

fn is_closed(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn address(published: &Value) -> SocketAddr {
    let port = u16::try_from(published["host_port"].as_u64().unwrap()).unwrap();
    SocketAddr::new(published["host_ip"].as_str().unwrap().parse().unwrap(), port)
}

fn publish(task: &Task<'_>, mapping: &str) -> SocketAddr {
    address(&task.call("publish", [mapping, "--json"]).json())
}

#[test]
fn a_server_in_a_guest_without_a_network_is_reached_until_its_port_is_closed() {
    let sandbox = Sandbox::new();
    let (task, other) = (sandbox.task([]), sandbox.task([]));
    serve(&task, "first");
    serve(&other, "second");
    let four = publish(&task, "0:80");
    let six = publish(&task, "[::1]:0:80");
    let of_other = publish(&other, "0:80");
    assert_eq!(get(four).unwrap(), "first\n");
    assert_eq!(get(six).unwrap(), "first\n");
    assert_eq!(get(of_other).unwrap(), "second\n");
    let listed = task.call("publish", []).success().to_owned();
    assert_eq!(listed, format!("{four} -> 80\n{six} -> 80\n"));
    let taken = other.call("publish", [&*format!("{}:80", four.port())]);
    assert!(taken.stderr.contains(&format!("cannot publish on {four}: the port is in use")), "{taken:?}");
    task.call("unpublish", [&*four.port().to_string()]).success();
    assert!(is_closed(four));
    assert_eq!(get(six).unwrap(), "first\n");
    task.delete();
    assert!(is_closed(six));
    // Its supervisor is killed, which leaves nothing open.
    kill(sandbox.supervisor().pid, Signal::KILL);
    wait_until(LONG, "closed port", || is_closed(of_other));
    other.delete();
}

#[test]
fn ports_of_a_task_come_back_with_it() {
    let sandbox = Sandbox::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mapping = format!("{}:80", free.port());
    let task = sandbox.task(["--publish", &*mapping, "--publish", "0:81"]);
    serve(&task, "guest");
    assert_eq!(get(free).unwrap(), "guest\n");
    let chosen = address(&task.status()["published_ports"][1]);
    assert_ne!(chosen.port(), 0);
    let refused = TcpStream::connect(chosen).and_then(|mut client| client.read(&mut [0])).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset, "nothing listens in the guest");
    task.call("stop", []).success();
    assert!(is_closed(free) && is_closed(chosen));
    assert_eq!(task.status()["published_ports"][1]["host_port"], 0);

    let taken = TcpListener::bind(free).unwrap();
    let start = task.call("start", []);
    assert!(start.stderr.contains(&format!("cannot publish on {free}: the port is in use")), "{start:?}");
    drop(taken);
    task.call("start", []).success();
    serve(&task, "again");
    assert_eq!(get(free).unwrap(), "again\n");
    task.call("unpublish", [&*free.port().to_string()]).success();
    task.call("stop", []).success();
    let ports = task.status()["published_ports"].as_array().unwrap().len();
    assert_eq!(ports, 1);
    task.delete();
}

#[test]
fn a_port_that_is_open_to_others_is_warned_of() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let published = task.call("publish", ["0.0.0.0:0:80"]);
    assert!(published.success().starts_with("Published: 0.0.0.0:"), "{published:?}");
    assert!(
        published.stderr.contains("port 80 of the guest is open to other hosts, on 0.0.0.0:0"),
        "{published:?}"
    );
    task.delete();
}
