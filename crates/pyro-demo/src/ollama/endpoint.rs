//! An OpenAI-compatible HTTP endpoint. Its responses are untrusted.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use ureq::Agent;
use ureq::http::{StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};

use super::chat::Message;
use super::error::{CallError, DemoError};

/// Time limit for a response, from the connection to its last byte.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// Maximum size of a response, in bytes. A model does not write as much in 90 seconds.
const ANSWER_BYTES: u64 = 4 << 20;
/// Maximum length of an error message of the server that is shown, in characters.
const REFUSAL_CHARS: usize = 500;

/// The endpoint of a model.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    agent: Agent,
    address: String,
}

/// The whole body of a request.
#[derive(Serialize)]
pub(super) struct Question<'a> {
    model: &'a str,
    messages: &'a [Message],
    tools: &'a [Value],
    tool_choice: &'static str,
    temperature: u8,
}

impl<'a> Question<'a> {
    /// Asks `model` to go on with a conversation, in which it may call `tools`.
    pub(super) fn new(model: &'a str, messages: &'a [Message], tools: &'a [Value]) -> Self {
        Self { model, messages, tools, tool_choice: "auto", temperature: 0 }
    }
}

impl Endpoint {
    /// Creates the endpoint below `base_url` without connecting to it.
    ///
    /// # Errors
    /// The address is invalid, or could contain credentials.
    pub(super) fn new(base_url: &str) -> Result<Self, DemoError> {
        Self::answering_within(base_url, ANSWER_WITHIN)
    }

    fn answering_within(base_url: &str, limit: Duration) -> Result<Self, DemoError> {
        let refused =
            |address: &str, cause: &str| CallError { address: address.to_owned(), cause: cause.to_owned() };
        // Checked before parsing, and not shown, because it may contain a secret.
        if base_url.contains('@') {
            let cause = "the address must not contain `@`: credentials are not sent";
            return Err(refused("--base-url", cause).into());
        }
        if base_url.contains(['?', '#']) {
            let cause = "the address must not contain `?` or `#`: `/chat/completions` is added at its end";
            return Err(refused("--base-url", cause).into());
        }
        let address = format!("{}/chat/completions", base_url.trim_end_matches('/'));
        let uri: Uri = address.parse().map_err(|_| refused(&address, "invalid address"))?;
        // Fails only if a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = Agent::config_builder()
            .timeout_global(Some(limit))
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .http_status_as_error(false)
            // A redirected request would go to another place, perhaps with another method.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The server may close idle connections while a tool runs.
            .max_idle_connections(0)
            .user_agent(concat!("pyro/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&uri) {
            // The proxy from the environment variables cannot reach this machine's loopback.
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().new_agent(), address })
    }

    /// Sends a question and returns the response.
    ///
    /// # Errors
    /// The endpoint did not respond or returned an error, or `cancel` came first; the request then continues unobserved.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
        cancel: &CancellationToken,
    ) -> Result<Value, DemoError> {
        let body = serde_json::to_vec(question).map_err(|error| self.failed(error.to_string()))?;
        let endpoint = self.clone();
        let exchange = tokio::task::spawn_blocking(move || endpoint.exchange(&body));
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(DemoError::Cancelled),
            answer = exchange => match answer {
                Ok(Ok(bytes)) => serde_json::from_slice(&bytes)
                    .map_err(|error| DemoError::Answer(format!("it is not JSON: {error}"))),
                Ok(Err(failed)) => Err(failed.into()),
                Err(lost) => Err(self.failed(lost.to_string()).into()),
            },
        }
    }

    fn failed(&self, cause: String) -> CallError {
        CallError { address: self.address.clone(), cause }
    }

    fn exchange(&self, body: &[u8]) -> Result<Vec<u8>, CallError> {
        let mut response = self
            .agent
            .post(&self.address)
            .header("content-type", "application/json")
            .send(body)
            .map_err(|error| self.failed(self.message(error)))?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec();
        match response.status() {
            status if status.is_success() => body.map_err(|error| self.failed(self.message(error))),
            // The status is reported even without the text.
            status => Err(self.failed(refusal(status, &body.unwrap_or_default()))),
        }
    }

    /// Message for an error of the HTTP library.
    fn message(&self, error: ureq::Error) -> String {
        let limit = self.agent.config().timeouts().global.unwrap_or_default();
        match error {
            ureq::Error::Timeout(_) => format!("timed out after {} seconds", limit.as_secs_f64()),
            ureq::Error::BodyExceedsLimit(limit) => {
                format!("the response is too large: the maximum is {limit} bytes")
            }
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        }
    }
}

/// Message for an error status. Servers send an object or a string under `error`, or plain text.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(value) => {
            let error = &value["error"];
            error["message"].as_str().or(error.as_str()).unwrap_or_default().to_owned()
        }
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let shown: String = text.trim().chars().take(REFUSAL_CHARS).collect();
    if shown.is_empty() {
        format!("the server returned {status}")
    } else {
        format!("the server returned {status}: {shown}")
    }
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::net::TcpListener;

    use super::*;

    fn cause(base_url: &str, limit: Duration) -> String {
        let asked = async {
            let endpoint = Endpoint::answering_within(base_url, limit)?;
            endpoint.ask(&Question::new("m", &[], &[]), &CancellationToken::new()).await
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(asked).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to call Ollama. Ensure `ollama serve` is running and the model is available."
        );
        error.source().unwrap().to_string()
    }

    #[test]
    fn a_server_that_does_not_answer_is_given_up() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}/v1//", server.local_addr().unwrap());
        let expected =
            base_url.trim_end_matches('/').to_owned() + "/chat/completions: timed out after 0.05 seconds";
        assert_eq!(cause(&base_url, Duration::from_millis(50)), expected);
    }

    #[test]
    fn addresses_that_cannot_be_called_are_refused() {
        let causes: Vec<String> =
            ["", "not an address", "ftp://localhost/v1", "localhost:11434/v1", "http://"]
                .into_iter()
                .chain(["https://user:secret@example.com/v1", "http://user:se/cret@example.com/v1"])
                .chain([
                    "user:s€cret@example.com",
                    "http://user:se?cret@example.com",
                    "http://h/v1?key=secret",
                ])
                .chain(["http://h/v1#secret"])
                .map(|base_url| cause(base_url, ANSWER_WITHIN))
                .collect();
        insta::assert_snapshot!(causes.join("\n"), @r"
        /chat/completions: bad uri: /chat/completions is missing scheme
        not an address/chat/completions: invalid address
        ftp://localhost/v1/chat/completions: bad uri: unknown scheme: ftp
        localhost:11434/v1/chat/completions: invalid address
        http:/chat/completions: invalid address
        --base-url: the address must not contain `@`: credentials are not sent
        --base-url: the address must not contain `@`: credentials are not sent
        --base-url: the address must not contain `@`: credentials are not sent
        --base-url: the address must not contain `@`: credentials are not sent
        --base-url: the address must not contain `?` or `#`: `/chat/completions` is added at its end
        --base-url: the address must not contain `?` or `#`: `/chat/completions` is added at its end
        ");
    }

    #[test]
    fn refusals_are_told_with_what_the_server_says() {
        let cases: [&[u8]; 5] = [
            br#"{"error": {"message": "model 'x' not found", "type": "api_error"}}"#,
            br#"{"error": "no such path"}"#,
            b"<h1>Bad gateway</h1>\n",
            b"{}",
            &[0xff; 10_000],
        ];
        for body in cases {
            let text = refusal(StatusCode::NOT_FOUND, body);
            assert!(text.starts_with("the server returned 404 Not Found") && text.len() < 2000, "{text}");
        }
        let texts: Vec<String> = cases[..4].iter().map(|body| refusal(StatusCode::NOT_FOUND, body)).collect();
        insta::assert_snapshot!(texts.join("\n"), @r"
        the server returned 404 Not Found: model 'x' not found
        the server returned 404 Not Found: no such path
        the server returned 404 Not Found: <h1>Bad gateway</h1>
        the server returned 404 Not Found
        ");
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for (address, expected) in [
            ("http://localhost:1/v1", true),
            ("http://LOCALHOST/v1", true),
            ("http://127.8.0.1/v1", true),
            ("http://[::1]:80/v1", true),
            ("http://10.0.0.1/v1", false),
            ("http://localhost.example.com/v1", false),
        ] {
            assert_eq!(is_loopback(&address.parse().unwrap()), expected, "{address}");
        }
    }
}
