//! A model that plays by a script, behind an OpenAI-compatible endpoint of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// The endpoint, up until the test ends.
#[derive(Debug)]
pub struct Model {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// Request line and headers.
    pub head: String,
    /// The JSON that came with it.
    pub body: Value,
}

/// What is answered.
#[derive(Debug)]
pub enum Answer {
    /// A message of the model.
    Message(Value),
    /// Status line after the version, more headers, and a body of any kind.
    Http(&'static str, &'static str, Vec<u8>),
    /// No answer, ever.
    Never,
}

impl Model {
    /// A model that answers its n-th request, counted from 0, as `script` says.
    pub fn new(script: impl Fn(usize, &Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&requests);
        std::thread::spawn(move || {
            let mut unanswered = Vec::new();
            for round in 0.. {
                let (mut stream, _) = listener.accept().unwrap();
                let request = Request::read(&mut stream);
                assert!(
                    request.head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
                    "{}",
                    request.head
                );
                heard.lock().unwrap().push(request.clone());
                match script(round, &request) {
                    Answer::Message(message) => {
                        let body = json!({ "id": "x", "choices": [{ "index": 0, "message": message }] });
                        answer(&mut stream, "200 OK", "", body.to_string().as_bytes());
                    }
                    Answer::Http(status, headers, body) => answer(&mut stream, status, headers, &body),
                    Answer::Never => unanswered.push(stream),
                }
            }
        });
        Self { port, requests }
    }

    /// The address of the endpoint, as `--base-url` takes it.
    pub fn base_url(&self) -> String {
        format!("http://localhost:{}/v1", self.port)
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The results of its tool calls that the model received, in their order.
    pub fn told(&self) -> Vec<Value> {
        let requests = self.requests();
        let messages = requests.last().unwrap().body["messages"].as_array().unwrap();
        let told = messages.iter().filter(|message| message["role"] == "tool");
        told.map(|message| serde_json::from_str(message["content"].as_str().unwrap()).unwrap()).collect()
    }
}

impl Request {
    fn read(stream: &mut TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0, "the request stops short: {head}");
        }
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap()];
        reader.read_exact(&mut body).unwrap();
        Self { head, body: serde_json::from_slice(&body).unwrap() }
    }

    /// The command that the model is asked to run.
    pub fn command(&self) -> String {
        let prompt = self.body["messages"][0]["content"].as_str().unwrap();
        let mut lines = prompt.lines().skip_while(|line| !line.starts_with("Run exactly this command"));
        lines.nth(1).unwrap().to_owned()
    }
}

fn answer(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // A client that does not read it all closes the connection.
    let _ = stream.write_all(body);
}

/// Words only.
pub fn says(text: &str) -> Value {
    json!({ "role": "assistant", "content": text })
}

/// Calls of these tools, with their arguments as they are written on the line.
pub fn calls(tools: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let call = |(n, (name, arguments))| json!({ "id": format!("call_{n}"), "type": "function", "function": { "name": name, "arguments": arguments } });
    let calls: Vec<Value> = tools.into_iter().enumerate().map(call).collect();
    json!({ "role": "assistant", "content": "", "tool_calls": calls })
}
