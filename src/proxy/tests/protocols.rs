use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::nodes::{Node, Proxies, raw, two};

#[tokio::test]
async fn http2_without_encryption_is_spoken_too() {
    let (a, b) = two(|_| {}).await;
    a.site.txid.send_replace(3);
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
    for (method, app) in [("GET", "app b"), ("POST", "app a")] {
        let request = Request::builder().method(method).uri(format!("http://{}/x?q", b.addr));
        let request = request.body(Full::from("hello")).unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!(response.version(), hyper::Version::HTTP_2);
        assert_eq!(response.headers().contains_key("set-cookie"), method == "POST");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains(app) && body.contains("body hello"), "{body}");
        assert!(body.contains(&format!("host: {}", b.addr)), "{body}");
    }
}

#[tokio::test]
async fn bodies_are_streamed_both_ways() {
    let (a, b) = two(|_| {}).await;
    for (version2, addr) in [(false, a.addr), (true, a.addr), (false, b.addr), (true, b.addr)] {
        let client = Client::builder(TokioExecutor::new()).http2_only(version2).build_http();
        let (pieces, received) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
        let body = StreamBody::new(ReceiverStream::new(received));
        pieces.send(Ok(Frame::data("one".into()))).await.unwrap();
        let request = Request::post(format!("http://{addr}/echo")).body(body).unwrap();
        let mut answer = client.request(request).await.unwrap().into_body().into_data_stream();
        assert_eq!(answer.next().await.unwrap().unwrap(), "one");
        // The rest is sent only after the first piece has come back.
        pieces.send(Ok(Frame::data("two".into()))).await.unwrap();
        assert_eq!(answer.next().await.unwrap().unwrap(), "two");
        drop(pieces);
        let rest: Vec<Bytes> = answer.map(Result::unwrap).collect().await;
        assert_eq!(rest.concat(), b"");
    }
}

#[tokio::test]
async fn a_websocket_passes_through_also_to_the_primary() {
    for forwarded in [false, true] {
        let (a, b) = two(|settings| {
            if forwarded {
                settings.always_forward.push("/upgrade".into());
            }
        })
        .await;
        let mut stream = TcpStream::connect(b.addr).await.unwrap();
        let head =
            "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: shout\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("\r\n\r\n") {
            answer.push(char::from(stream.read_u8().await.unwrap()));
        }
        assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("upgrade: shout"), "{answer}");
        stream.write_all(b"hello").await.unwrap();
        let mut word = String::new();
        stream.read_to_string(&mut word).await.unwrap();
        assert_eq!(word, "HELLO");
        assert_eq!(
            (a.app.count("GET /upgrade"), b.app.count("GET /upgrade")),
            (usize::from(forwarded), usize::from(!forwarded))
        );
    }
}

#[tokio::test]
async fn a_large_body_is_not_held_but_arrives() {
    let (a, b) = two(|settings| settings.held_body_bytes = 4).await;
    b.hears(None);
    let waiting = tokio::spawn(raw(b.addr, "POST /x", "\n\nmore than four bytes"));
    raw(b.addr, "GET /x", "").await;
    b.hears(Some("a"));
    let wrote = waiting.await.unwrap();
    assert!(wrote.contains("app a") && wrote.contains("body more than four bytes"), "{wrote}");
    assert_eq!(a.app.count("POST /x"), 1);
}

#[tokio::test]
async fn connections_have_limits() {
    let proxies = Proxies::default();
    let node = Node::start("a", &proxies, |settings| {
        settings.idle_timeout = Duration::from_millis(300);
        settings.max_connections = 1;
    })
    .await;
    node.hears(Some("a"));
    // One that says nothing is closed, and so makes room for the next.
    let mut idle = TcpStream::connect(node.addr).await.unwrap();
    assert!(raw(node.addr, "GET /x", "").await.contains("app a"));
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0);
    // One that does not end its head too.
    let mut slow = TcpStream::connect(node.addr).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await.unwrap();
    let large = raw(node.addr, "GET /x", &format!("X-Large: {}", "x".repeat(100_000))).await;
    assert!(large.starts_with("HTTP/1.1 431"), "{large}");
    let connect = raw(node.addr, "CONNECT example.com:443", "").await;
    assert!(connect.starts_with("HTTP/1.1 405"), "{connect}");
    node.shutdown.cancel();
    for _ in 0..200 {
        if TcpStream::connect(node.addr).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the proxy does not end");
}
