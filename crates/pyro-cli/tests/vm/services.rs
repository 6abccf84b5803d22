//! Services: commands of a task that are kept running.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::harness::{Ended, LONG, Sandbox, Task, wait_until};

/// A server in the guest that answers each request over HTTP with its process number.
const SERVER: &str = r#"exec perl -MIO::Socket::INET -e '
    $| = 1;
    $server = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1", LocalPort => 80, ReuseAddr => 1) or die;
    print "serving as $$\n";
    while ($client = $server->accept) {
        $request = <$client>;
        while (<$client>) { last if /^\r?$/ }
        print $client "HTTP/1.0 200 OK\r\n\r\n$$\n";
        close $client;
        exit 7 if $request =~ m{GET /crash };
    }'"#;

/// `pyro task service WORD ID NAME` with more words.
fn service<'a>(
    sandbox: &Sandbox,
    task: &'a Task<'_>,
    word: &'a str,
    more: impl IntoIterator<Item = &'a str>,
) -> Ended {
    sandbox.pyro(["task", "service", word, &task.id].into_iter().chain(more))
}

fn text(ended: &Ended) -> String {
    String::from_utf8(ended.stdout.clone()).unwrap()
}

fn state(sandbox: &Sandbox, task: &Task<'_>, name: &str) -> Value {
    service(sandbox, task, "status", [name, "--json"]).json()
}

fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut client = TcpStream::connect(address)?;
    client.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer.rsplit("\r\n").next().unwrap_or_default().trim().to_owned())
}

fn address(task: &Task<'_>) -> SocketAddr {
    let port = task.status()["published_ports"][0]["host_port"].as_u64().unwrap();
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
}

#[test]
fn a_published_service_is_restarted_and_comes_back_with_its_task() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let flags = ["web", "--ready-http", "http://localhost:80/", "--ready-timeout-seconds", "120"];
    let more = ["--restart", "on-failure", "--start-with-task", "--publish", "0:80", "--json", "--", SERVER];
    let started = service(&sandbox, &task, "start", flags.into_iter().chain(more));
    assert_eq!(started.code(), 0, "{started:?}");
    let started = started.json();
    assert_eq!((&started["state"], &started["ready"]), (&"ready".into(), &true.into()), "{started}");
    let first = get(address(&task), "/").unwrap();
    assert!(first.parse::<u32>().is_ok(), "{first:?}");
    // The journal does not have it, and the task shows it.
    assert_eq!(task.status()["command_count"], 0);
    assert_eq!(task.status()["services"][0], serde_json::json!({ "name": "web", "state": "ready" }));

    // It fails, and is run again.
    get(address(&task), "/crash").unwrap();
    wait_until(LONG, "restart", || {
        let status = state(&sandbox, &task, "web");
        status["restarts"] == 1 && status["state"] == "ready"
    });
    assert_eq!(state(&sandbox, &task, "web")["exit_code"], 7);
    let second = get(address(&task), "/").unwrap();
    assert_ne!(second, first);
    let log = service(&sandbox, &task, "logs", ["web"]);
    assert_eq!(text(&log), format!("serving as {first}\nserving as {second}\n"));
    let last = service(&sandbox, &task, "logs", ["web", "--tail", "1"]);
    assert_eq!(text(&last), format!("serving as {second}\n"));

    // What follows a log sees what was written before and what is written later, and ends with the service.
    let follower = sandbox.start(["task", "service", "logs", &task.id, "web", "--follow"]);
    follower.stdout.wait_for(&format!("serving as {second}\n"));
    get(address(&task), "/crash").unwrap();
    wait_until(LONG, "second restart", || {
        let status = state(&sandbox, &task, "web");
        status["restarts"] == 2 && status["state"] == "ready"
    });
    let third = get(address(&task), "/").unwrap();
    follower.stdout.wait_for(&format!("serving as {third}\n"));

    // The guest is booted again, and nothing of the earlier one is left but its disk.
    assert_eq!(task.call("stop", ["--json"]).json()["state"], "stopped");
    let followed = follower.finish();
    let all = format!("serving as {first}\nserving as {second}\nserving as {third}\n");
    assert_eq!(text(&followed), all, "{followed:?}");
    assert_eq!(state(&sandbox, &task, "web")["state"], "stopped");
    assert_eq!(task.call("start", ["--json"]).json()["state"], "started");
    wait_until(LONG, "service", || state(&sandbox, &task, "web")["state"] == "ready");
    assert!(get(address(&task), "/").is_ok());

    let stopped = service(&sandbox, &task, "stop", ["web", "--json"]).json();
    assert_eq!(stopped["state"], "stopped");
    task.exec(["--timeout-seconds", "60"], "! grep -sqx perl /proc/[0-9]*/comm").success();
    let removed = service(&sandbox, &task, "remove", ["web"]);
    assert_eq!(removed.success(), "Removed service: web\n");
    assert_eq!(service(&sandbox, &task, "list", []).success(), "No services found.\n");
    task.delete();
}

#[test]
fn a_service_that_fails_says_why() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let ended =
        service(&sandbox, &task, "start", ["bad", "--ready-file", "up", "--", "echo broken >&2; exit 3"]);
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(text(&ended).contains("State: failed") && text(&ended).contains("Exit code: 3\n"), "{ended:?}");
    assert!(text(&ended).ends_with("Last output:\n    broken\n"), "{ended:?}");
    // What a service leaves in the background ends with it, and a file and a command can say that it is ready.
    let line = "(trap '' TERM; while :; do sleep 7777; done) & touch up; wait";
    let ready = service(
        &sandbox,
        &task,
        "start",
        ["bad", "--ready-file", "up", "--ready-timeout-seconds", "120", "--json", "--", line],
    );
    assert_eq!(ready.json()["state"], "ready", "{ready:?}");
    let check = [
        "other",
        "--ready-command",
        "test -e up",
        "--ready-timeout-seconds",
        "120",
        "--json",
        "--argv",
        "--",
        "sleep",
        "1000",
    ];
    assert_eq!(service(&sandbox, &task, "start", check).json()["state"], "ready");
    assert_eq!(service(&sandbox, &task, "stop", ["bad", "--json"]).json()["state"], "stopped");
    task.exec(["--timeout-seconds", "60"], "! grep -sq [7]777 /proc/[0-9]*/cmdline").success();
    task.delete();
}
