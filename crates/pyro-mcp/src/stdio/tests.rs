//! The transport over pipes in memory.

use std::task::Poll;

use rmcp::model::{ErrorData, RequestId};
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
async fn an_id_is_refused_while_its_request_may_be_answered() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    client.write_all(format!("{0}{0}{1}", request("a"), request("b")).as_bytes()).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::String("a".into()));
    assert_eq!(id_of(transport.receive().await), RequestId::String("b".into()));
    assert_eq!(answer(&mut output).await["error"]["code"], -32600);
    transport.send(response(RequestId::String("a".into()))).await.unwrap();
    let _ = answer(&mut output).await;
    let cancel =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": "b" } });
    client
        .write_all(format!("{}{cancel}\n{}{}", request("a"), request("b"), request("c")).as_bytes())
        .await
        .unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::String("a".into()));
    assert!(matches!(transport.receive().await, Some(JsonRpcMessage::Notification(_))));
    assert_eq!(id_of(transport.receive().await), RequestId::String("c".into()));
    let refused = answer(&mut output).await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!("b"), &json!(-32600)));
}

#[tokio::test]
async fn a_last_line_without_an_end_is_taken() {
    let (mut transport, mut client, _output) = pair(1 << 16);
    let ended = transport.ended();
    client.write_all(request(1).trim_end().as_bytes()).await.unwrap();
    drop(client);
    assert_eq!(id_of(transport.receive().await), RequestId::Number(1));
    assert!(!ended.is_cancelled());
    assert!(transport.receive().await.is_none());
    assert!(ended.is_cancelled());
}

#[tokio::test]
async fn a_client_that_leaves_answers_unread_can_still_end() {
    let (mut transport, client, _output) = pair(1 << 10);
    let large = TxJsonRpcMessage::<RoleServer>::error(
        ErrorData::internal_error("x".repeat(2 * UNREAD_BYTES), None),
        None,
    );
    let sending = tokio::spawn(transport.send(large));
    drop(client);
    assert!(transport.receive().await.is_none());
    transport.close().await.unwrap();
    assert!(sending.await.unwrap().is_err());
}

#[tokio::test]
async fn requests_in_flight_have_a_size() {
    let (mut transport, mut client, _output) = pair(1 << 16);
    transport.in_flight.begin(&RequestId::Number(1), IN_FLIGHT_BYTES).unwrap();
    // A small message, such as a cancellation, is taken all the same.
    client.write_all(request(3).as_bytes()).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::Number(3));
    let large = request(2).replace("\"ping\"", &format!("\"ping\",\"x\":\"{}\"", "x".repeat(SMALL_BYTES)));
    client.write_all(large.as_bytes()).await.unwrap();
    {
        let mut receiving = std::pin::pin!(transport.receive());
        let is_pending =
            std::future::poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx).is_pending())).await;
        assert!(is_pending, "a request was taken");
    }
    transport.send(response(RequestId::Number(1))).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::Number(2));
}

fn large_request(id: usize) -> String {
    let params = json!({ "uri": "pyro://tasks/x/commands/1/stdout" });
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": "resources/read", "params": params }))
}

async fn is_pending<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
    let mut future = future;
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// Requests with small answers are taken all the same: long commands are among them.
#[tokio::test]
async fn requests_with_large_answers_wait_for_each_other() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    client.write_all(request("small").as_bytes()).await.unwrap();
    let requests: String = (0..8).map(large_request).collect();
    client.write_all(requests.as_bytes()).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::String("small".into()));
    let mut taken = 0;
    loop {
        let mut receiving = std::pin::pin!(transport.receive());
        let received = std::future::poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx))).await;
        let Poll::Ready(message) = received else { break };
        assert_eq!(id_of(message), RequestId::Number(taken));
        taken += 1;
    }
    assert_eq!(taken, 2, "answers of 32 MiB each");
    assert!(transport.in_flight.bytes() <= IN_FLIGHT_BYTES + (32 << 20) + SMALL_BYTES);

    // An answer that the client does not read holds back the next request, and one that it has read does not.
    let large = TxJsonRpcMessage::<RoleServer>::error(
        ErrorData::internal_error("x".repeat(UNREAD_BYTES), None),
        Some(RequestId::Number(0)),
    );
    let sending = tokio::spawn(transport.send(large));
    let mut receiving = std::pin::pin!(transport.receive());
    assert!(is_pending(receiving.as_mut()).await, "a request was taken");
    let (message, _) = tokio::join!(receiving, answer(&mut output));
    assert_eq!(id_of(message), RequestId::Number(2));
    sending.await.unwrap().unwrap();
}

/// Fills the space of requests in flight with one that has this id.
fn fill(transport: &mut Stdio<DuplexStream, DuplexStream>, id: &str) {
    transport.in_flight.begin(&RequestId::String(id.into()), IN_FLIGHT_BYTES).unwrap();
}

fn cancellation(id: impl Into<Value>) -> String {
    let params = json!({ "requestId": id.into() });
    format!("{}\n", json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params }))
}

#[tokio::test]
async fn small_messages_pass_large_requests_that_wait() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    fill(&mut transport, "slow");
    let all = [large_request(1), large_request(2), large_request(1), request("ping")].concat();
    client.write_all(all.as_bytes()).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::String("ping".into()));
    // One that waits counts as in flight: its id is taken.
    assert_eq!(answer(&mut output).await["error"]["code"], -32600);
    assert!(is_pending(std::pin::pin!(transport.receive())).await, "there is space");

    // The one that needs the space and one that waits are cancelled: the latter is never taken, and its id is free again.
    let all = [cancellation(1), cancellation("slow"), request(1)].concat();
    client.write_all(all.as_bytes()).await.unwrap();
    assert!(matches!(transport.receive().await, Some(JsonRpcMessage::Notification(_))));
    assert!(matches!(transport.receive().await, Some(JsonRpcMessage::Notification(_))));
    assert_eq!(id_of(transport.receive().await), RequestId::Number(2));
    assert_eq!(id_of(transport.receive().await), RequestId::Number(1));
}

#[tokio::test]
async fn requests_that_wait_have_a_maximum_number() {
    let (mut transport, mut client, _output) = pair(1 << 16);
    fill(&mut transport, "slow");
    let all: String = (0..waiting::MAX_WAITING).map(large_request).chain([request("ping")]).collect();
    client.write_all(all.as_bytes()).await.unwrap();
    assert!(is_pending(std::pin::pin!(transport.receive())).await, "a message was read");
    transport.send(response(RequestId::String("slow".into()))).await.unwrap();
    assert_eq!(id_of(transport.receive().await), RequestId::Number(0));
    assert_eq!(id_of(transport.receive().await), RequestId::Number(1));
    // Now there is space for the next message, and not for a third large answer.
    assert_eq!(id_of(transport.receive().await), RequestId::String("ping".into()));
}

#[tokio::test]
async fn requests_that_wait_have_a_maximum_size() {
    let (mut transport, mut client, _output) = pair(1 << 16);
    fill(&mut transport, "slow");
    let writing = tokio::spawn(async move {
        for id in 0..3 {
            let padding = format!("\"ping\",\"x\":\"{}\"", "x".repeat(waiting::WAITING_BYTES / 2));
            client.write_all(request(id).replace("\"ping\"", &padding).as_bytes()).await.unwrap();
        }
        client.write_all(request("ping").as_bytes()).await.unwrap();
        client
    });
    // The second of them fills the space.
    tokio::select! {
        message = transport.receive() => panic!("{message:?}"),
        () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {}
    }
    assert!(!writing.is_finished());
    transport.in_flight.end(&RequestId::String("slow".into()));
    for id in [0, 1, 2] {
        assert_eq!(id_of(transport.receive().await), RequestId::Number(id));
    }
    assert_eq!(id_of(transport.receive().await), RequestId::String("ping".into()));
    writing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_are_taken_after_the_end_of_the_input() {
    let (mut transport, mut client, _output) = pair(1 << 16);
    let ended = transport.ended();
    fill(&mut transport, "slow");
    client.write_all([large_request(1), large_request(2)].concat().as_bytes()).await.unwrap();
    drop(client);
    assert!(is_pending(std::pin::pin!(transport.receive())).await, "there is space");
    // Calls in flight are ended, which makes space.
    assert!(ended.is_cancelled());
    transport.send(response(RequestId::String("slow".into()))).await.unwrap();
    for id in [1, 2] {
        assert_eq!(id_of(transport.receive().await), RequestId::Number(id));
    }
    assert!(transport.receive().await.is_none());

    // If no space is made, the transport ends all the same.
    let (mut transport, mut client, _output) = pair(1 << 16);
    fill(&mut transport, "slow");
    client.write_all(large_request(1).as_bytes()).await.unwrap();
    drop(client);
    assert!(transport.receive().await.is_none());
}

#[test]
fn large_answers_are_those_of_requests_that_read_much() {
    let expected = |method: &str, params: Value| {
        let line = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        Next::of(line.as_bytes()).size.answer
    };
    let tool = |name: &str, arguments: Value| {
        expected("tools/call", json!({ "name": name, "arguments": arguments }))
    };
    let part = |max_bytes: Value| tool("task_read_file", json!({ "path": "x", "max_bytes": max_bytes }));
    assert_eq!((part(json!(1_000_000)), part(json!("500000"))), (4_000_000, 2_000_000));
    assert_eq!((part(json!(u64::MAX)), part(json!(null)), part(json!(-1))), (4_000_000, 0, 0));
    assert!(expected("resources/read", json!({ "uri": "x" })) >= 32 << 20);
    assert!(tool("task_logs", json!({})) >= 1 << 20);
    assert_eq!(
        (tool("task_exec", json!({})), tool("task_wait", json!({})), expected("ping", json!({}))),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn requests_in_flight_have_a_maximum() {
    let (mut transport, mut client, mut output) = pair(1 << 16);
    let requests: String = (0..=in_flight::MAX_IN_FLIGHT).map(request).collect();
    client.write_all(requests.as_bytes()).await.unwrap();
    for id in 0..in_flight::MAX_IN_FLIGHT {
        assert_eq!(id_of(transport.receive().await), RequestId::Number(id as i64));
    }
    tokio::select! {
        message = transport.receive() => panic!("{message:?}"),
        refused = answer(&mut output) => assert_eq!(refused["id"], in_flight::MAX_IN_FLIGHT),
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
async fn closing_does_not_wait_for_a_refusal_that_nobody_reads() {
    let (mut transport, mut client, _output) = pair(1);
    client.write_all(b"nonsense\n").await.unwrap();
    {
        let mut receiving = std::pin::pin!(transport.receive());
        for _ in 0..3 {
            let polled =
                std::future::poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx).is_pending())).await;
            assert!(polled, "there is no request");
        }
    }
    tokio::time::timeout(std::time::Duration::from_secs(10), transport.close()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_closed_its_input_ends_the_transport() {
    let (mut transport, _client, output) = pair(1 << 10);
    drop(output);
    assert!(transport.send(response(RequestId::Number(1))).await.is_err());
    assert!(transport.receive().await.is_none());
}
