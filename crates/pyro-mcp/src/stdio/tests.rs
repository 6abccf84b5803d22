//! The transport over pipes in memory.

use std::task::Poll;

use rmcp::model::ErrorData;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, DuplexStream};

use super::*;

/// A transport, what a client writes to, and what it reads from.
fn pair(unread: usize) -> (Stdio<DuplexStream, DuplexStream>, DuplexStream, BufReader<DuplexStream>) {
    let (to_server, input) = tokio::io::duplex(1 << 16);
    let (output, from_server) = tokio::io::duplex(unread);
    (Stdio::new(input, output), to_server, BufReader::new(from_server))
}

fn request(id: impl Into<Value>) -> String {
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id.into(), "method": "ping" }))
}

async fn answer(client: &mut BufReader<DuplexStream>) -> Value {
    let mut line = String::new();
    client.read_line(&mut line).await.unwrap();
    serde_json::from_str(&line).unwrap()
}

fn id_of(message: Option<RxJsonRpcMessage<RoleServer>>) -> RequestId {
    let Some(JsonRpcMessage::Request(request)) = message else { panic!("{message:?}") };
    request.id
}

fn response(id: RequestId) -> TxJsonRpcMessage<RoleServer> {
    TxJsonRpcMessage::<RoleServer>::error(ErrorData::internal_error("x", None), Some(id))
}

#[tokio::test]
async fn an_invalid_line_is_answered_and_the_next_one_works() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    client.write_all(format!("nonsense\n{}", request(1)).as_bytes()).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::Number(1));
    assert_eq!(answer(&mut output).await["error"]["code"], -32700);
}

#[tokio::test]
async fn a_line_that_is_too_long_is_answered_with_its_id() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    transport.lines.max_bytes = 1 << 18;
    let writing = tokio::spawn(async move {
        client.write_all(br#"{"method":"tools/call","params":{"x":""#).await.unwrap();
        for _ in 0..5 {
            client.write_all(&[b'x'; 1 << 16]).await.unwrap();
        }
        client
            .write_all(format!("\"}},\"jsonrpc\":\"2.0\",\"id\":7}}\n{}", request(8)).as_bytes())
            .await
            .unwrap();
        client
    });
    assert_eq!(id_of(transport.receive().await), RequestId::Number(8));
    let refused = answer(&mut output).await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(7), &json!(-32600)));
    drop(writing.await.unwrap());
    assert!(transport.receive().await.is_none());
}

#[tokio::test]
async fn an_id_in_flight_is_refused_until_it_is_answered() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    client.write_all(format!("{0}{0}{1}", request("a"), request("b")).as_bytes()).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::String("a".into()));
    assert_eq!(id_of(transport.receive().await), RequestId::String("b".into()));
    assert_eq!(answer(&mut output).await["error"]["code"], -32600);
    transport.send(response(RequestId::String("a".into()))).await.unwrap();
    let cancel =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": "b" } });
    client.write_all(format!("{}{cancel}\n{}", request("a"), request("b")).as_bytes()).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::String("a".into()));
    assert!(matches!(transport.receive().await, Some(JsonRpcMessage::Notification(_))));
    assert_eq!(id_of(transport.receive().await), RequestId::String("b".into()));
}

#[tokio::test]
async fn requests_in_flight_have_a_maximum() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    let requests: String = (0..=IN_FLIGHT).map(request).collect();
    client.write_all(requests.as_bytes()).await.unwrap();
    for id in 0..IN_FLIGHT {
        assert_eq!(id_of(transport.receive().await), RequestId::Number(id as i64));
    }
    tokio::select! {
        message = transport.receive() => panic!("{message:?}"),
        refused = answer(&mut output) => assert_eq!(refused["id"], IN_FLIGHT),
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_from() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    client.write_all(request(1).as_bytes()).await.unwrap();
    let large = TxJsonRpcMessage::<RoleServer>::error(
        ErrorData::internal_error("x".repeat(UNREAD_BYTES), None),
        None,
    );
    let sending = tokio::spawn(transport.send(large));
    let mut receiving = std::pin::pin!(transport.receive());
    let polled = std::future::poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx).is_pending())).await;
    assert!(polled, "a request was taken");
    // Once it has read, its request is taken.
    let mut all = vec![0; UNREAD_BYTES];
    output.read_exact(&mut all).await.unwrap();
    let (message, rest) = tokio::join!(receiving, answer_rest(output));
    assert_eq!(id_of(message), RequestId::Number(1));
    assert!(rest > 0);
    sending.await.unwrap().unwrap();
}

async fn answer_rest(mut output: BufReader<DuplexStream>) -> usize {
    let mut rest = Vec::new();
    output.read_until(b'\n', &mut rest).await.unwrap()
}

#[tokio::test]
async fn a_client_that_closed_its_input_ends_the_transport() {
    let (mut transport, _client, output) = pair(1 << 10);
    drop(output);
    assert!(transport.send(response(RequestId::Number(1))).await.is_err());
    assert!(transport.receive().await.is_none());
}
