//! The protocol's edges, after the test areas of RFC 6455: what a client may send and what it must not, and what it is
//! answered. The client is written by hand ([`raw_socket`](crate::support::raw_socket)).

use std::sync::Arc;

use emostream::log::Log;
use emostream::publish::Live;
use serde_json::json;

use crate::support::raw_socket::{
    BINARY, CLOSE, CONTINUATION, FIN, Frame, PING, PONG, RawSocket, TEXT, closing, header, masked, proper,
};
use crate::support::tier::{Running, close, create_sink, embedded};

/// A tier without windows, and its log.
struct Bench {
    tier: Running,
    log: Arc<dyn Log>,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = embedded(&folder);
        create_sink(log.as_ref()).await;
        let tier = Running::start_small(&log, Live::default()).await;
        Self { tier, log, _folder: folder }
    }

    async fn open(&self) -> RawSocket {
        RawSocket::open(&self.tier.address, "/v1/live").await
    }

    /// Sends these bytes; the connection must end with that code.
    async fn check_closed(&self, what: &str, bytes: &[u8], code: u16) {
        let mut socket = self.open().await;
        socket.send(bytes).await;
        assert_eq!(socket.ended().await, Some(code), "{what}");
    }
}

fn pong(payload: &[u8]) -> Frame {
    Frame { opcode: PONG, payload: payload.to_vec() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_fragments_is_one_message_and_control_frames_may_come_between() {
    let bench = Bench::new().await;
    let mut socket = bench.open().await;
    let text = r#"{"subscribe":{"room":"ä😀"},"ref":1}"#.as_bytes();
    // Cut within characters, and with an empty fragment.
    let (first, rest) = text.split_at(23);
    let (second, third) = rest.split_at(3);
    socket.send_frame(TEXT, first).await;
    socket.send_frame(FIN | PING, b"between").await;
    socket.send_frame(CONTINUATION, second).await;
    socket.send_frame(CONTINUATION, b"").await;
    socket.send_frame(FIN | PONG, b"unasked").await;
    socket.send_frame(FIN | CONTINUATION, third).await;
    assert_eq!(socket.frame().await, Some(pong(b"between")));
    let answer = socket.json().await;
    assert_eq!((&answer["type"], &answer["ref"]), (&json!("watching"), &json!(1)));
    assert_eq!(answer["room"]["ä😀"], json!({"table": [], "early": false}));
    // Byte by byte, whatever the server reads at a time.
    for byte in masked(FIN | TEXT, br#"{"unsubscribe":{"room":"main"},"ref":2}"#) {
        socket.send(&[byte]).await;
    }
    assert_eq!(socket.json().await["ref"], 2);
    bench.tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_is_answered_with_its_payload() {
    let bench = Bench::new().await;
    let mut socket = bench.open().await;
    for payload in [&b""[..], b"hello", &[0xFF; 125], &[0, 0x80, 0xFE]] {
        socket.send_frame(FIN | PING, payload).await;
        assert_eq!(socket.frame().await, Some(pong(payload)));
    }
    socket.send_frame(FIN | PONG, b"nobody asked").await;
    socket.say("?").await;
    assert_eq!(socket.json().await["type"], "problem");
    bench.tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_protocol_forbids_ends_the_connection_with_1002() {
    let bench = Bench::new().await;
    let unmasked = [header(FIN | TEXT, 2, false), b"{}".to_vec()].concat();
    bench.check_closed("a frame that is not masked", &unmasked, 1002).await;
    bench.check_closed("a ping that is not masked", &[FIN | PING, 0], 1002).await;
    for bit in [0x40, 0x20, 0x10] {
        bench.check_closed("a reserved bit", &masked(FIN | bit | TEXT, b"{}"), 1002).await;
        bench.check_closed("a reserved bit of a ping", &masked(FIN | bit | PING, b""), 1002).await;
    }
    for opcode in [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        bench.check_closed("a reserved opcode", &masked(FIN | opcode, b""), 1002).await;
    }
    for opcode in [PING, PONG, CLOSE] {
        bench.check_closed("a control frame of 126 bytes", &masked(FIN | opcode, &[b'x'; 126]), 1002).await;
        bench.check_closed("a control frame in fragments", &masked(opcode, b""), 1002).await;
    }
    bench.check_closed("a continuation of nothing", &masked(FIN | CONTINUATION, b"x"), 1002).await;
    bench.check_closed("a continuation of nothing, open", &masked(CONTINUATION, b"x"), 1002).await;
    let within = [masked(TEXT, b"{"), masked(FIN | TEXT, b"}")].concat();
    bench.check_closed("a message within another", &within, 1002).await;
    let after = [masked(TEXT, b"{"), masked(FIN | BINARY, b"}")].concat();
    bench.check_closed("bytes within a text", &after, 1002).await;
    bench.tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_no_utf_8_ends_the_connection_with_1007() {
    let bench = Bench::new().await;
    let smile = "😀".as_bytes();
    let surrogate = [0xED, 0xA0, 0x80];
    bench.check_closed("a lone byte", &masked(FIN | TEXT, &[0xFF]), 1007).await;
    bench.check_closed("a surrogate", &masked(FIN | TEXT, &surrogate), 1007).await;
    bench.check_closed("an overlong slash", &masked(FIN | TEXT, &[0xC0, 0xAF]), 1007).await;
    bench.check_closed("half a character", &masked(FIN | TEXT, &smile[..2]), 1007).await;
    let split = [masked(TEXT, &smile[..2]), masked(FIN | CONTINUATION, b"x")].concat();
    bench.check_closed("half a character, then another", &split, 1007).await;
    let open = [masked(TEXT, &smile[..3]), masked(FIN | CONTINUATION, b"")].concat();
    bench.check_closed("half a character at the end", &open, 1007).await;
    bench
        .check_closed(
            "a reason that is none",
            &masked(FIN | CLOSE, &[&closing(1000, "")[..], &[0xFF]].concat()),
            1007,
        )
        .await;
    bench.tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_ends_the_connection_with_1009() {
    const MOST: usize = 64 << 10;
    let bench = Bench::new().await;
    let mut socket = bench.open().await;
    socket.say("x".repeat(MOST)).await;
    assert_eq!(socket.json().await["type"], "problem", "the longest one is read");
    bench.check_closed("one byte more", &masked(FIN | TEXT, &vec![b'x'; MOST + 1]), 1009).await;
    let mask = [0; 4];
    let head = [&header(FIN | TEXT, MOST + 1, true)[..], &mask].concat();
    bench.check_closed("its head alone", &head, 1009).await;
    let huge = [&[FIN | BINARY, 0xFF, 0x7F][..], &[0xFF; 7], &mask].concat();
    bench.check_closed("a length of 2^63 - 1", &huge, 1009).await;
    let mut fragments = masked(TEXT, &vec![b'x'; MOST / 2]);
    fragments.extend(masked(CONTINUATION, &vec![b'x'; MOST / 2]));
    fragments.extend(masked(CONTINUATION, b"x"));
    bench.check_closed("in fragments", &fragments, 1009).await;
    bench.tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_echoed_when_its_code_may_be_sent() {
    let bench = Bench::new().await;
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        let bytes = masked(FIN | CLOSE, &closing(code, "goodbye"));
        bench.check_closed("a code that may be sent", &bytes, code).await;
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        let bytes = masked(FIN | CLOSE, &closing(code, ""));
        bench.check_closed(&format!("{code} may not be sent"), &bytes, 1002).await;
    }
    bench.check_closed("a body of one byte", &masked(FIN | CLOSE, &[3]), 1002).await;

    let mut socket = bench.open().await;
    socket.send_frame(FIN | CLOSE, b"").await;
    assert_eq!(socket.ended().await, None, "a close without a code has an answer without one");
    let mut socket = bench.open().await;
    socket.send(&[masked(FIN | CLOSE, &closing(1000, "")), masked(FIN | PING, b"late")].concat()).await;
    assert_eq!(socket.ended().await, Some(1000), "what follows a close is not read");
    bench.tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_wrong_is_told_why() {
    let bench = Bench::new().await;
    let status = async |without: &str, with: &[(&str, &str)]| {
        let mut headers = proper();
        headers.retain(|(name, _)| *name != without);
        headers.extend(with);
        let (answer, _) = RawSocket::ask(&bench.tier.address, "/v1/live", &headers).await;
        (answer.status, answer.header("sec-websocket-version").map(str::to_owned))
    };
    for version in ["8", "14", "", "013"] {
        let refused = status("Sec-WebSocket-Version", &[("Sec-WebSocket-Version", version)]).await;
        assert_eq!(refused, (426, Some("13".to_owned())), "version {version:?}");
    }
    assert_eq!(status("Sec-WebSocket-Version", &[]).await.0, 426);
    assert_eq!(status("Sec-WebSocket-Key", &[]).await.0, 400);
    for key in ["", "short", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZSE=x"] {
        assert_eq!(status("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", key)]).await.0, 400, "{key:?}");
    }
    assert_eq!(status("Connection", &[("Connection", "keep-alive")]).await.0, 400);
    assert_eq!(status("Connection", &[("Connection", "keep-alive, Upgrade")]).await.0, 101);
    assert_eq!(status("Upgrade", &[("Upgrade", "WebSocket")]).await.0, 101);
    assert_eq!(
        status("Upgrade", &[("Upgrade", "h2c")]).await.0,
        200,
        "who asks for something else gets events"
    );
    let offer = [("Sec-WebSocket-Extensions", "permessage-deflate"), ("Sec-WebSocket-Protocol", "chat")];
    assert_eq!(status("", &offer).await.0, 101, "what is offered need not be taken");
    let (answer, _) = RawSocket::ask(&bench.tier.address, "/v1/live?rooms=a", &proper()).await;
    assert_eq!(answer.status, 400);
    bench.tier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_with_the_handshake_is_heard_and_windows_come_whole_between_answers() {
    const WINDOWS: i64 = 200;
    let bench = Bench::new().await;
    let mut socket = RawSocket::open(&bench.tier.address, "/v1/live?last=1").await;
    let mut early = proper().iter().fold("GET /v1/live HTTP/1.1\r\n".to_owned(), |head, (name, value)| {
        format!("{head}{name}: {value}\r\n")
    });
    early.push_str("\r\n");
    let mut at_once = tokio::net::TcpStream::connect(&bench.tier.address).await.unwrap();
    let bytes =
        [early.as_bytes(), &masked(FIN | TEXT, b"{\"ref\":\"early\"}"), &masked(FIN | CLOSE, b"")].concat();
    tokio::io::AsyncWriteExt::write_all(&mut at_once, &bytes).await.unwrap();
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut at_once, &mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("101 Switching") && answer.contains(r#""ref":"early""#), "{answer}");

    let mut writer = bench.log.fence("engine").await.unwrap();
    let closing = async {
        for end_s in 1..=WINDOWS {
            close(writer.as_mut(), end_s, "main").await;
        }
    };
    let talking = async {
        let (mut windows, mut answers, mut pongs) = (0, 0, 0);
        while windows < WINDOWS || answers < WINDOWS || pongs < WINDOWS {
            if answers == pongs && answers < WINDOWS {
                socket.say("{\"unsubscribe\":{\"room\":\"nowhere\"}}").await;
                socket.send_frame(FIN | PING, b"?").await;
            }
            let frame = socket.frame().await.unwrap();
            if frame.opcode == PONG {
                pongs += 1;
                continue;
            }
            let message: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
            match message["type"].as_str() {
                Some("watching") => answers += 1,
                None => {
                    windows += 1 + message["skipped"].as_i64().unwrap_or(0);
                    assert_eq!(message["rows"].as_array().unwrap().len(), 3);
                }
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::join!(closing, talking);
    bench.tier.stop().await;
}
