//! A WebSocket client written by hand from RFC 6455, byte by byte: it shares no code with the server's library, and
//! can break every rule.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// The key of the standard's example (1.3), and what a server answers to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// First bytes of frames (5.2).
pub(crate) const FIN: u8 = 0x80;
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

/// What a server answered to a handshake.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of a close frame.
    pub(crate) fn code(&self) -> Option<u16> {
        let bytes = self.payload.get(..2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

/// A connection.
pub(crate) struct RawSocket {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

/// The headers of a handshake as the standard asks for.
pub(crate) fn proper() -> Vec<(&'static str, &'static str)> {
    vec![
        ("Host", "localhost"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
    ]
}

/// A frame as a client sends it: masked, with its first byte as given.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = header(first, payload.len(), true);
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The head of a frame without its mask.
pub(crate) fn header(first: u8, length: usize, is_masked: bool) -> Vec<u8> {
    let bit = if is_masked { 0x80 } else { 0 };
    let mut header = vec![first];
    match length {
        0..126 => header.push(bit | u8::try_from(length).unwrap()),
        126..=0xFFFF => {
            header.push(bit | 126);
            header.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            header.push(bit | 127);
            header.extend((length as u64).to_be_bytes());
        }
    }
    header
}

/// A close frame's payload.
pub(crate) fn closing(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

impl RawSocket {
    /// Sends a handshake with these headers, and reads the answer's head.
    pub(crate) async fn ask(address: &str, target: &str, headers: &[(&str, &str)]) -> (Answer, Self) {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut socket = Self { stream, unread: Vec::new() };
        let mut head = format!("GET {target} HTTP/1.1\r\n");
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        socket.send(format!("{head}\r\n").as_bytes()).await;
        (socket.answer().await, socket)
    }

    /// Opens a connection.
    pub(crate) async fn open(address: &str, target: &str) -> Self {
        Self::open_with(address, target, &[]).await
    }

    /// The same with more headers.
    pub(crate) async fn open_with(address: &str, target: &str, more: &[(&str, &str)]) -> Self {
        let (answer, socket) = Self::ask(address, target, &[&proper(), more].concat()).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(answer.header("sec-websocket-accept"), Some(ACCEPT));
        assert!(answer.header("upgrade").unwrap().eq_ignore_ascii_case("websocket"));
        assert!(answer.header("connection").unwrap().eq_ignore_ascii_case("upgrade"));
        assert_eq!(answer.header("sec-websocket-extensions"), None, "none was offered");
        socket
    }

    async fn answer(&mut self) -> Answer {
        let end = loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            assert!(self.read_more().await > 0, "an answer before the end");
        };
        let head: Vec<u8> = self.unread.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        Answer { status, headers: headers.collect() }
    }

    /// Sends bytes as they are; whether the server still takes them is what the test finds out.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = in_time(self.stream.write_all(bytes)).await {
            eprintln!("the server took no more: {error}");
        }
    }

    /// Sends a frame, masked as it must be.
    pub(crate) async fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&masked(first, payload)).await;
    }

    /// Sends a text message.
    pub(crate) async fn say(&mut self, text: impl AsRef<str>) {
        self.send_frame(FIN | TEXT, text.as_ref().as_bytes()).await;
    }

    async fn read_more(&mut self) -> usize {
        let mut bytes = [0; 4096];
        let read = in_time(self.stream.read(&mut bytes)).await.unwrap_or(0);
        self.unread.extend_from_slice(&bytes[..read]);
        read
    }

    /// The next frame, which must be as a server's frames are: whole, unmasked, its length written as short as it can
    /// be. `None` when the connection ended.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((head, length)) = self.head()
                && self.unread.len() >= head + length
            {
                let frame: Vec<u8> = self.unread.drain(..head + length).collect();
                assert_eq!(frame[0] & 0xF0, FIN, "whole, and no reserved bit");
                assert_eq!(frame[1] & 0x80, 0, "a server does not mask");
                assert_eq!(frame[..head], header(frame[0], length, false), "the shortest length");
                return Some(Frame { opcode: frame[0] & 0x0F, payload: frame[head..].to_vec() });
            }
            if self.read_more().await == 0 {
                assert!(self.unread.is_empty(), "the connection ended within a frame");
                return None;
            }
        }
    }

    /// Lengths of the next frame's head and payload, if they are there.
    fn head(&self) -> Option<(usize, usize)> {
        let length = self.unread.get(1)? & 0x7F;
        let (head, bytes) = match length {
            126 => (4, self.unread.get(2..4)?),
            127 => (10, self.unread.get(2..10)?),
            _ => return Some((2, length.into())),
        };
        Some((head, bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))))
    }

    /// The next text message, which must be JSON; pings are answered, pongs passed over.
    pub(crate) async fn json(&mut self) -> Value {
        loop {
            let frame = self.frame().await.expect("a message before the end");
            match frame.opcode {
                TEXT => return serde_json::from_slice(&frame.payload).expect("JSON"),
                PING => self.send_frame(FIN | PONG, &frame.payload).await,
                PONG => {}
                other => panic!("a frame {other:#x}: {frame:?}"),
            }
        }
    }

    /// Reads to the end; the code of the close frame, which must be the last one.
    pub(crate) async fn ended(&mut self) -> Option<u16> {
        let mut last = None;
        while let Some(frame) = self.frame().await {
            assert!(last.is_none(), "a frame after the last: {frame:?}");
            last = (frame.opcode == CLOSE).then(|| frame.code());
        }
        last.expect("a close frame before the end")
    }
}
