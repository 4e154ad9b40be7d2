//! A WebSocket's handshake, and the socket itself once that is done.
//!
//! The checks are the library's; the socket is taken out from under the server, because what is written to thousands
//! of clients is framed once and written as it is, which no library's connection does.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use socket2::SockRef;
use tokio::net::TcpStream;
use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::server::create_response_with_body;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::CloseCode;

use super::connection::Connection;
use super::{Problem, STALLED_FOR};

/// The one version of the protocol that is spoken.
const VERSION: &str = "13";
/// The longest message a client may send; more than that is POSTed.
pub const MAX_MESSAGE: usize = 64 << 10;
/// What the kernel takes for a client that does not read. By itself it would take megabytes: minutes of windows, shown
/// when they are long over.
const SEND_BUFFER: usize = 64 << 10;

/// How long saying goodbye may take.
pub const FAREWELL: Duration = Duration::from_secs(2);

/// How long a WebSocket client is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How often it is pinged.
    pub ping_every: Duration,
    /// After so long without a word, pongs included, it is taken for gone.
    pub silent_for: Duration,
    /// After so long in which it read nothing of what it is sent, it is closed.
    pub stalled_for: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_secs(25),
            silent_for: Duration::from_secs(60),
            stalled_for: STALLED_FOR,
        }
    }
}

/// How a connection is read and written: at most so much at a time, nothing held back, messages up to [`MAX_MESSAGE`].
pub fn config(read_buffer: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(read_buffer)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// A socket to come, once the answer is sent.
#[derive(Debug)]
pub struct Upgrading(OnUpgrade);

impl Upgrading {
    /// Hands on the socket, and what the client sent already, when the handshake's answer is sent.
    pub async fn hand_to<F: Future<Output = ()>>(self, serve: impl FnOnce((TcpStream, Bytes)) -> F) {
        match self.socket().await {
            Ok(opened) => serve(opened).await,
            Err(error) => tracing::debug!(error, "a client was gone before it was answered"),
        }
    }

    async fn socket(self) -> Result<(TcpStream, Bytes), String> {
        let upgraded = self.0.await.map_err(|error| error.to_string())?;
        let parts = upgraded
            .downcast::<Connection>()
            .map_err(|_| "the connection is of another server".to_owned())?;
        let socket = parts.io.into_inner().into_inner();
        if let Err(error) = SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER) {
            tracing::debug!(%error, "SO_SNDBUF could not be set");
        }
        Ok((socket, parts.read_buf))
    }
}

/// Says that nothing more comes, while what the client still says can be read. Tokio's own takes the socket for itself.
///
/// # Errors
/// When the connection is broken.
pub fn say_no_more(socket: &TcpStream) -> std::io::Result<()> {
    SockRef::from(socket).shutdown(std::net::Shutdown::Write)
}

/// How a connection is closed on which reading or writing failed so (RFC 6455, 7.4.1); `None` when it is over already.
pub fn close_of(error: &Error) -> Option<(CloseCode, &'static str)> {
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing) => {
            None
        }
        Error::Protocol(_) => Some((CloseCode::Protocol, "not as RFC 6455 asks")),
        Error::Utf8(_) => Some((CloseCode::Invalid, "a text that is no UTF-8")),
        Error::Capacity(_) => Some((CloseCode::Size, "a message of more than 65536 bytes")),
        _ => None,
    }
}

/// Whether a WebSocket is asked for.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The answer to a handshake, and what follows when it is sent.
///
/// # Errors
/// The answer to one that is not as RFC 6455 asks.
pub fn accept(request: &mut Request) -> Result<(Response, Upgrading), Box<Response>> {
    let refused = |status, detail: &str| Problem::new(status, "bad-handshake", detail).into_response();
    let answer = match create_response_with_body(request, Body::empty) {
        Ok(answer) => answer,
        Err(Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader)) => {
            let detail = "only version 13 of the WebSocket protocol is spoken";
            let mut answer = refused(StatusCode::UPGRADE_REQUIRED, detail);
            let headers = answer.headers_mut();
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            return Err(Box::new(answer));
        }
        Err(error) => return Err(Box::new(refused(StatusCode::BAD_REQUEST, &error.to_string()))),
    };
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    if key.and_then(|key| BASE64_STANDARD.decode(key).ok()).is_none_or(|key| key.len() != 16) {
        let detail = "Sec-WebSocket-Key takes 16 bytes in base64";
        return Err(Box::new(refused(StatusCode::BAD_REQUEST, detail)));
    }
    match request.extensions_mut().remove::<OnUpgrade>() {
        Some(upgrading) => Ok((answer, Upgrading(upgrading))),
        None => Err(Box::new(refused(StatusCode::BAD_REQUEST, "this connection cannot be upgraded"))),
    }
}
