use std::path::Path;

use pyro_engine::{Config, Engine};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf};

use super::*;

fn server(dir: &Path) -> Server {
    let config = Config {
        vmm_program: Some(dir.join("no-qemu")),
        ..Config::new(dir.join("state"), dir.join("cache"), dir.join("no-pyro"))
    };
    Server::new(Engine::new(config))
}

/// A client of a server whose state directory is empty.
struct Client {
    input: WriteHalf<DuplexStream>,
    output: BufReader<ReadHalf<DuplexStream>>,
    served: std::thread::JoinHandle<io::Result<()>>,
}

impl Client {
    fn new(dir: &Path) -> Self {
        let (near, far) = tokio::io::duplex(4096);
        let (read, write) = tokio::io::split(far);
        let server = server(dir);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let serve = move || runtime.block_on(server.serve(read, write, std::future::pending()));
        let served = std::thread::spawn(serve);
        let (output, input) = tokio::io::split(near);
        Self { input, output: BufReader::new(output), served }
    }

    async fn say(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    async fn ask(&mut self, id: i64, method: &str, params: Value) -> Value {
        self.say(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string())
            .await;
        let answer = self.hear().await;
        assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(id)));
        answer
    }

    async fn greet(&mut self) {
        let client = json!({ "name": "test", "version": handshake::VERSION });
        let hello = self.ask(0, "initialize", json!({ "protocol": 1, "client": client })).await;
        assert_eq!(hello["result"]["server"]["name"], "pyro");
    }

    async fn end(mut self) {
        self.input.shutdown().await.unwrap();
        self.served.join().unwrap().unwrap();
    }
}

/// The number and the word of an error.
fn error(answer: &Value) -> (i64, &str) {
    let error = &answer["error"];
    assert!(error["message"].is_string() && error["data"]["hints"].is_array(), "{answer}");
    (error["code"].as_i64().unwrap(), error["data"]["code"].as_str().unwrap())
}

#[tokio::test]
async fn nothing_is_done_before_the_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new(dir.path());
    assert_eq!(client.ask(1, "rpc.discover", json!({})).await["result"]["openrpc"], "1.3.2");
    assert_eq!(error(&client.ask(2, "list_tasks", json!({})).await), (-32600, "invalid_request"));
    let old = json!({ "protocol": 1, "client": { "name": "old", "version": "0.1.0" } });
    assert_eq!(error(&client.ask(3, "initialize", old).await), (-32000, "version_mismatch"));
    assert_eq!(error(&client.ask(4, "list_tasks", json!({})).await), (-32600, "invalid_request"));
    client.greet().await;
    assert_eq!(client.ask(5, "list_tasks", json!({})).await["result"]["count"], 0);
    assert_eq!(error(&client.ask(6, "initialize", json!({})).await), (-32600, "invalid_request"));
    client.end().await;
}

#[tokio::test]
async fn parameters_are_those_of_the_method_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new(dir.path());
    client.greet().await;
    let cases = [
        ("no_such_method", json!({}), (-32601, "unknown_method")),
        ("list_tasks", json!({ "x": 1 }), (-32602, "invalid_input")),
        ("status_task", json!({}), (-32602, "invalid_input")),
        ("status_task", json!({ "task_id": null }), (-32602, "invalid_input")),
        ("status_task", json!({ "task_id": 5 }), (-32602, "invalid_input")),
        ("status_task", json!(["9775b3af1eeb"]), (-32602, "invalid_input")),
        ("status_task", json!({ "task_id": "9775b3af1eeb" }), (-32000, "not_found")),
        ("wait_task", json!({ "task_id": "9775b3af1eeb", "sequence": -1 }), (-32602, "invalid_input")),
        ("create_vm", json!({ "environment": "debian:12", "vcpu_count": 9 }), (-32000, "invalid_input")),
        ("create_vm", json!({ "environment": "debian:12", "Vcpu_count": 1 }), (-32602, "invalid_input")),
        ("create_vm", json!({ "environment": "windows:11", "mem_mib": null }), (-32000, "invalid_input")),
        (
            "exec_task",
            json!({ "task_id": "9775b3af1eeb", "command": "", "output": "x" }),
            (-32602, "invalid_input"),
        ),
        (
            "detach_task",
            json!({ "task_id": "9775b3af1eeb", "command": "", "output": "capture" }),
            (-32602, "invalid_input"),
        ),
        (
            "copy_to_task",
            json!({ "task_id": "9775b3af1eeb", "source": "x", "path": "x" }),
            (-32000, "invalid_input"),
        ),
        (
            "read_task_file",
            json!({ "task_id": "9775b3af1eeb", "path": "x", "max_bytes": 0 }),
            (-32000, "invalid_input"),
        ),
        ("logs_task", json!({ "task_id": "9775b3af1eeb" }), (-32000, "not_found")),
    ];
    for (method, params, expected) in cases {
        let answer = client.ask(1, method, params.clone()).await;
        assert_eq!(error(&answer), expected, "{method} {params}: {answer}");
    }
    let answer = client.ask(1, "create_vm", json!({ "environment": "debian:12", "mem_mib": "many" })).await;
    assert!(answer["error"]["message"].as_str().unwrap().starts_with("`mem_mib`: "), "{answer}");
    client.end().await;
}

#[tokio::test]
async fn what_needs_no_answer_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new(dir.path());
    client.greet().await;
    for (method, params) in [
        ("cancel", json!({ "id": 99 })),
        ("cancel", json!({ "id": 1.5 })),
        ("ack", json!({ "id": 99, "bytes": 1 })),
        ("ack", json!({})),
        ("no_such", json!({})),
        ("list_tasks", json!({})),
    ] {
        client.say(&json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string()).await;
    }
    assert_eq!(client.ask(1, "list_tasks", json!({})).await["result"]["count"], 0);
    client.end().await;
}

#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new(dir.path());
    client.greet().await;
    let (mut input, output) = (client.input, &mut client.output);
    let saying = async {
        for id in 1..=1000 {
            let line = json!({ "jsonrpc": "2.0", "id": id, "method": "list_tasks" }).to_string() + "\n";
            input.write_all(line.as_bytes()).await.unwrap();
        }
        input.shutdown().await.unwrap();
    };
    let hearing = async {
        let mut ids = Vec::new();
        let mut lines = output.lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            ids.push(serde_json::from_str::<Value>(&line).unwrap()["id"].as_u64().unwrap());
        }
        ids.sort_unstable();
        ids
    };
    let ((), ids) = tokio::join!(saying, hearing);
    assert!(ids.into_iter().eq(1..=1000), "also those that were in flight when the input ended");
    client.served.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_no_longer_reads_ends_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let (input, mut near) = tokio::io::duplex(4096);
    let (output, far) = tokio::io::duplex(4096);
    drop(far);
    near.write_all(b"x\n").await.unwrap();
    let served = server(dir.path()).serve(input, output, std::future::pending()).await;
    assert_eq!(served.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}
