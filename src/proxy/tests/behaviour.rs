use std::time::{Duration, Instant};

use crate::config::ProxySettings;

use super::nodes::{Node, Proxies, nobody, raw, two};

const COOKIE: &str = "set-cookie: __txid=";

#[tokio::test]
async fn reads_are_served_here_and_writes_where_the_primary_is() {
    let (a, b) = two(|_| {}).await;
    let read = raw(b.addr, "GET /x?y=1", "X-Forwarded-For: 9.9.9.9").await;
    assert!(read.starts_with("HTTP/1.1 200") && read.contains("app b"), "{read}");
    assert!(read.contains("x-forwarded-for: 9.9.9.9, 127.0.0.1\n"), "{read}");
    assert!(read.contains("x-forwarded-host: app.example") && read.contains("host: app.example"), "{read}");
    assert!(!read.contains("keep-alive:") && !read.contains("skein-proxy"), "{read}");
    assert!(!read.contains("set-cookie"), "{read}");
    a.site.txid.send_replace(0x2a);
    for node in [&a, &b] {
        for request in ["POST /x", "DELETE /x", "GET /logout"] {
            let wrote = raw(node.addr, request, "\n\nhello").await;
            assert!(wrote.contains("app a") && wrote.contains("body hello"), "{request} {wrote}");
            assert!(wrote.contains(&format!("{COOKIE}000000000000002a; Path=/")), "{request} {wrote}");
            assert!(!wrote.contains("skein-proxy-hops"), "that is between proxies: {wrote}");
        }
        let unseen = raw(node.addr, "POST /static/x", "").await;
        assert!(!unseen.contains("set-cookie"), "{unseen}");
    }
    assert_eq!(b.app.count("POST /static/x"), 1);
    assert_eq!((a.app.count("POST /x"), b.app.count("POST /x")), (2, 0));
}

#[tokio::test]
async fn a_reader_waits_for_what_it_wrote_or_is_sent_to_the_primary() {
    let (a, b) = two(|settings| settings.txid_timeout = Duration::from_secs(20)).await;
    a.site.txid.send_replace(7);
    let waiting = tokio::spawn(raw(b.addr, "GET /x", "Cookie: a=b; __txid=0000000000000007"));
    let other = raw(b.addr, "GET /y", "Cookie: __txid=0000000000000001").await;
    assert!(other.contains("app b"), "who wrote less need not wait: {other}");
    assert_eq!(b.app.count("GET /x"), 0);
    b.site.txid.send_replace(7);
    assert!(waiting.await.unwrap().contains("app b"));

    let short = |settings: &mut ProxySettings| settings.primary_redirect_timeout = Duration::from_millis(300);
    let (a, b) = two(short).await;
    a.site.txid.send_replace(9);
    let sent = raw(b.addr, "GET /x", "Cookie: __txid=0000000000000009").await;
    assert!(sent.contains("app a") && !sent.contains("set-cookie"), "{sent}");
    b.hears(None);
    let none = raw(b.addr, "GET /x", "Cookie: __txid=0000000000000009").await;
    assert!(none.starts_with("HTTP/1.1 504") && none.contains("no primary is known"), "{none}");
}

#[tokio::test]
async fn cookies_that_mean_nothing_are_taken_away() {
    let (a, b) = two(|_| {}).await;
    let invalid = raw(b.addr, "GET /x", "Cookie: __txid=nonsense").await;
    assert!(invalid.contains("app b") && invalid.contains("__txid=; Path=/; Max-Age=0"), "{invalid}");
    // Ahead of the primary itself: lost, or of another cluster.
    a.site.txid.send_replace(5);
    for node in [&a, &b] {
        let ahead = raw(node.addr, "GET /x", "Cookie: __txid=00000000000000ff").await;
        assert!(ahead.contains("app a") && ahead.contains(&format!("{COOKIE}0000000000000005")), "{ahead}");
    }
}

#[tokio::test]
async fn a_write_waits_for_a_primary_and_is_sent_once() {
    let (a, b) = two(|_| {}).await;
    a.hears(None);
    b.hears(None);
    let waiting = tokio::spawn(raw(b.addr, "POST /x", "\n\nhello"));
    // Another request, so that the first has arrived.
    raw(b.addr, "GET /x", "").await;
    b.hears(Some("a"));
    a.hears(Some("a"));
    let wrote = waiting.await.unwrap();
    assert!(wrote.contains("app a") && wrote.contains("body hello"), "{wrote}");
    assert_eq!(a.app.count("POST /x") + b.app.count("POST /x"), 1);
}

#[tokio::test]
async fn without_a_primary_a_write_is_refused_with_a_reason_in_time() {
    let (a, b) = two(|settings| settings.primary_redirect_timeout = Duration::from_millis(300)).await;
    b.hears(None);
    let start = Instant::now();
    let refused = raw(b.addr, "POST /x", "").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("no primary is known"), "{refused}");
    assert!(
        refused.contains("skein-proxy-error: no-primary") && refused.contains("retry-after: 1"),
        "{refused}"
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    // Each holds the other for primary: nobody asks in circles.
    a.hears(Some("b"));
    b.hears(Some("a"));
    let circle = raw(b.addr, "POST /x", "").await;
    assert!(circle.starts_with("HTTP/1.1 503"), "{circle}");
    assert_eq!(a.app.count("POST /x") + b.app.count("POST /x"), 0);
}

#[tokio::test]
async fn what_may_have_been_sent_is_not_sent_again() {
    let (a, b) = two(|_| {}).await;
    for node in [&a, &b] {
        let broke = raw(node.addr, "POST /die", "").await;
        assert!(broke.starts_with("HTTP/1.1 502") && broke.contains("may have seen"), "{broke}");
    }
    assert_eq!(a.app.count("POST /die"), 2);
    // A read changes nothing: it is tried twice.
    assert!(raw(b.addr, "GET /die", "").await.starts_with("HTTP/1.1 502"));
    assert_eq!(b.app.count("GET /die"), 2);
}

#[tokio::test]
async fn an_application_that_is_slow_or_away_is_told_apart() {
    let down = nobody().await;
    let (a, _) = two(|settings| settings.response_timeout = Duration::from_millis(200)).await;
    let slow = raw(a.addr, "POST /slow", "").await;
    assert!(slow.starts_with("HTTP/1.1 504") && slow.contains("application-slow"), "{slow}");
    let (a, _) = two(|settings| {
        settings.target = down.clone();
        settings.connect_timeout = Duration::from_millis(200);
    })
    .await;
    for request in ["GET /x", "POST /x", "POST /static/x"] {
        let away = raw(a.addr, request, "").await;
        assert!(away.starts_with("HTTP/1.1 503") && away.contains("application-down"), "{away}");
        assert!(away.contains("refused"), "{away}");
    }
}

#[tokio::test]
async fn a_planned_move_waits_for_writes_and_lets_new_ones_wait() {
    let (a, b) = two(|settings| settings.response_timeout = Duration::from_secs(2)).await;
    // The application has begun one that does not end by itself.
    let slow = tokio::spawn(raw(a.addr, "POST /slow", ""));
    while a.app.count("POST /slow") == 0 {
        tokio::task::yield_now().await;
    }
    let gate = a.gate.clone();
    let moving = tokio::spawn(async move { gate.pause(Duration::from_secs(60)).await });
    while a.gate.enter().is_some() {
        tokio::task::yield_now().await;
    }
    let waiting = tokio::spawn(raw(a.addr, "POST /x", "\n\nhello"));
    assert!(slow.await.unwrap().starts_with("HTTP/1.1 504"));
    let pause = moving.await.unwrap();
    a.gate.set_primary(false);
    b.hears(Some("b"));
    a.hears(Some("b"));
    drop(pause);
    let wrote = waiting.await.unwrap();
    assert!(wrote.contains("app b") && wrote.contains("body hello"), "{wrote}");
    assert_eq!(a.app.count("POST /x"), 0);
}

#[tokio::test]
async fn a_primary_that_cannot_be_reached_is_asked_for_again() {
    let proxies = Proxies::default();
    let node = Node::start("b", &proxies, |_| {}).await;
    let gone = format!("http://{}", nobody().await);
    proxies.lock().unwrap().insert("a".into(), gone);
    node.hears(Some("a"));
    let waiting = tokio::spawn(raw(node.addr, "POST /x", "\n\nhello"));
    // It has come back elsewhere, under the same name.
    let back = Node::start("a", &proxies, |_| {}).await;
    back.hears(Some("a"));
    let wrote = waiting.await.unwrap();
    assert!(wrote.contains("app a") && wrote.contains("body hello"), "{wrote}");
}

#[tokio::test]
async fn a_primary_without_a_proxy_is_named() {
    let proxies = Proxies::default();
    let short = |settings: &mut ProxySettings| {
        settings.primary_redirect_timeout = Duration::from_millis(200);
    };
    let node = Node::start("b", &proxies, short).await;
    node.hears(Some("a"));
    let refused = raw(node.addr, "POST /x", "").await;
    assert!(refused.contains("the primary a has no proxy"), "{refused}");
}

#[tokio::test]
async fn on_fly_the_write_is_replayed_there() {
    let (_a, b) = two(|settings| settings.fly_replay = true).await;
    let replay = raw(b.addr, "POST /x", "").await;
    assert!(replay.starts_with("HTTP/1.1 200") && replay.contains("fly-replay: instance=a"), "{replay}");
    assert!(raw(b.addr, "GET /x", "").await.contains("app b"));
}

#[tokio::test]
async fn the_health_check_fails_where_the_node_is_too_far_behind() {
    let (a, _) = two(|_| {}).await;
    for path in ["GET /skein/health", "GET /litefs/health"] {
        let healthy = raw(a.addr, path, "").await;
        assert!(healthy.starts_with("HTTP/1.1 200") && healthy.ends_with("OK\n"), "{healthy}");
    }
    *a.site.lag.lock().unwrap() = Some(Duration::from_secs(11));
    let behind = raw(a.addr, "GET /skein/health", "").await;
    assert!(behind.starts_with("HTTP/1.1 503") && behind.contains("11.0s behind"), "{behind}");
    *a.site.lag.lock().unwrap() = None;
    assert!(raw(a.addr, "GET /skein/health", "").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn an_answer_names_the_node_that_gave_it_and_what_each_proxy_took() {
    let (_a, b) = two(|_| {}).await;
    let read = raw(b.addr, "GET /x", "").await;
    assert!(read.contains("skein-node: b\r\n") && !read.contains("forged"), "{read}");
    assert!(read.contains("server-timing: skein;desc=\"b\";dur="), "{read}");
    let wrote = raw(b.addr, "POST /x", "").await;
    assert!(wrote.contains("skein-node: a\r\n") && !wrote.contains("skein-node: b"), "{wrote}");
    for name in ["a", "b"] {
        assert!(wrote.contains(&format!("server-timing: skein;desc=\"{name}\";dur=")), "{wrote}");
    }
}

#[tokio::test]
async fn only_other_proxies_hear_that_a_request_was_not_sent() {
    let (_a, b) = two(|settings| settings.primary_redirect_timeout = Duration::from_millis(100)).await;
    b.hears(None);
    let refused = raw(b.addr, "POST /x", "").await;
    assert!(refused.starts_with("HTTP/1.1 503") && !refused.contains("skein-proxy-unsent"), "{refused}");
    let passed_on = raw(b.addr, "POST /x", "Skein-Proxy-Hops: 1").await;
    assert!(passed_on.starts_with("HTTP/1.1 503") && passed_on.contains("skein-proxy-unsent"), "{passed_on}");
}

#[tokio::test]
async fn the_health_of_writes_is_that_of_the_primary_alone() {
    let (a, b) = two(|_| {}).await;
    let writable = raw(a.addr, "GET /skein/health/write", "").await;
    assert!(writable.starts_with("HTTP/1.1 200") && writable.ends_with("OK\n"), "{writable}");
    // Once it knows where writes go.
    raw(b.addr, "POST /x", "").await;
    let elsewhere = raw(b.addr, "GET /skein/health/write", "").await;
    assert!(elsewhere.starts_with("HTTP/1.1 503") && elsewhere.contains("writes are for a"), "{elsewhere}");
    let pause = a.gate.pause(Duration::from_secs(60)).await;
    assert!(raw(a.addr, "GET /skein/health/write", "").await.starts_with("HTTP/1.1 503"));
    drop(pause);
    assert!(raw(a.addr, "GET /skein/health/write", "").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_read_that_fails_where_nobody_may_write_says_how_to_send_it_to_the_primary() {
    let (a, b) = two(|_| {}).await;
    let failed = raw(b.addr, "GET /fail", "").await;
    assert!(failed.starts_with("HTTP/1.1 500") && failed.ends_with("database is locked"), "{failed}");
    assert!(failed.contains("skein-proxy-hint: ") && failed.contains("proxy.always_forward"), "{failed}");
    let on_primary = raw(a.addr, "GET /fail", "").await;
    assert!(
        on_primary.starts_with("HTTP/1.1 500") && !on_primary.contains("skein-proxy-hint"),
        "{on_primary}"
    );
}
