//! A minimal HTTP client, which can also send what no library would.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::{Value, json};

/// A server on a port of this host's loopback.
#[derive(Debug)]
pub struct HttpServer {
    /// The server.
    pub process: Child,
    /// Where it listens.
    pub port: u16,
    /// What follows the address.
    pub stderr: BufReader<ChildStderr>,
}

impl HttpServer {
    /// Starts `pyro mcp serve`, of which `command` is the beginning, and waits until it can be reached. It needs no token
    /// unless `command` has a file with tokens.
    pub fn start(command: &mut Command) -> Self {
        if command.get_args().all(|word| word != "--token-file") {
            command.arg("--no-token");
        }
        Self::start_as_it_is(command)
    }

    /// The same with the flags of `command` and no others about tokens.
    pub fn start_as_it_is(command: &mut Command) -> Self {
        command.args(["--transport", "http", "--listen", "127.0.0.1:0"]).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let port = line
            .strip_prefix("pyro: serving MCP on http://127.0.0.1:")
            .and_then(|rest| rest.strip_suffix("/mcp\n"));
        let port = port.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        Self { process, port, stderr }
    }

    /// A connection on which nothing was sent.
    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    /// Sends a request whose answer ends with the connection.
    pub fn send(&self, line: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = self.connect();
        let mut head = format!("{line} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
        let usual = [
            ("Host", "localhost"),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
        ];
        let replaced = |name: &str| headers.iter().any(|(given, _)| *given == name);
        for (name, value) in usual.iter().filter(|(name, _)| !replaced(name)).chain(headers) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        // The server may close the connection before everything is sent.
        let _ = stream.write_all(format!("{head}\r\n{body}").as_bytes());
        stream
    }

    /// The same, with its answer.
    pub fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        Answer::read(self.send(line, headers, body))
    }

    /// A message of a client of the newer kind, which needs no session, with its answer.
    pub fn call(&self, method: &str, params: Value) -> Answer {
        Answer::read(self.begin(method, params))
    }

    /// The same with a token.
    pub fn call_as(&self, token: &str, method: &str, params: Value) -> Answer {
        Answer::read(self.begin_with(&[("Authorization", &format!("Bearer {token}"))], method, params))
    }

    /// Sends such a message.
    pub fn begin(&self, method: &str, params: Value) -> TcpStream {
        self.begin_with(&[], method, params)
    }

    fn begin_with(&self, more: &[(&str, &str)], method: &str, mut params: Value) -> TcpStream {
        let version = "2026-07-28";
        params["_meta"]["io.modelcontextprotocol/protocolVersion"] = version.into();
        params["_meta"]["io.modelcontextprotocol/clientInfo"] = json!({ "name": "test", "version": "1" });
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        let name = params["name"].as_str().unwrap_or_default().to_owned();
        let mut headers = vec![("MCP-Protocol-Version", version), ("Mcp-Method", method)];
        headers.extend(more);
        if !name.is_empty() {
            headers.push(("Mcp-Name", &name));
        }
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.send("POST /mcp", &headers, &body.to_string())
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// What follows the headers.
    pub body: String,
}

impl Answer {
    /// Reads to the end of the connection.
    pub fn read(mut stream: TcpStream) -> Self {
        let mut text = Vec::new();
        // It may be reset by a server that has not read everything.
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The messages in the body, which is one of them or a stream of events.
    pub fn messages(&self) -> Vec<Value> {
        let parse =
            |text: &str| serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        if self.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            return vec![parse(&self.body)];
        }
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|text| !text.is_empty()).map(parse).collect()
    }

    /// The result of the call, the last of the messages.
    pub fn result(&self) -> Value {
        self.messages().last().unwrap_or_else(|| panic!("{self:?}"))["result"].clone()
    }
}
