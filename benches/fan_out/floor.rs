//! The bare floor: one thread, one epoll, the same frame to each socket with one write.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::AnyError;
use crate::message::{Order, message};

const LISTENER: Token = Token(usize::MAX);
const ORDERS: Token = Token(usize::MAX - 1);

struct Viewer {
    stream: TcpStream,
    /// The request, until it is whole.
    head: Vec<u8>,
    is_watching: bool,
    /// What the socket did not take of a frame; messages that come meanwhile are left out.
    rest: Vec<u8>,
    is_gone: bool,
}

impl Viewer {
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.is_gone = true;
                    return;
                }
                Ok(_) if self.is_watching => {}
                Ok(read) => {
                    self.head.extend_from_slice(&buffer[..read]);
                    self.answer();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.is_gone = true;
                    return;
                }
            }
        }
    }

    fn answer(&mut self) {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        if !head.ends_with("\r\n\r\n") {
            return;
        }
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
        });
        let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.head = Vec::new();
        self.is_watching = true;
        self.write(answer.as_bytes());
    }

    /// Writes a frame once; one that comes while a part of another waits is left out.
    fn write(&mut self, bytes: &[u8]) {
        if self.is_watching && !self.is_gone && self.rest.is_empty() {
            let written = self.write_some(bytes);
            // A frame of which nothing was taken is left out.
            if written > 0 {
                self.rest.extend_from_slice(&bytes[written..]);
            }
        }
    }

    /// Writes what the socket did not take before.
    fn flush(&mut self) {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            let written = self.write_some(&rest);
            self.rest = rest[written..].to_vec();
        }
    }

    fn write_some(&mut self, bytes: &[u8]) -> usize {
        match self.stream.write(bytes) {
            Ok(written) => return written,
            Err(error) => self.is_gone |= error.kind() != ErrorKind::WouldBlock,
        }
        0
    }
}

/// One text frame.
fn frame(text: &str) -> Vec<u8> {
    let length = text.len();
    let mut frame = vec![0x81];
    match u16::try_from(length) {
        Ok(short @ 0..126) => frame.push(short as u8),
        Ok(length) => {
            frame.push(126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(text.as_bytes());
    frame
}

struct Publishing {
    order: Order,
    next: Instant,
    until: Instant,
    began: Instant,
    sequence: u64,
}

impl Publishing {
    /// Publishes what is due; false when all is done.
    fn go_on(&mut self, viewers: &mut [Viewer]) -> bool {
        let now = Instant::now();
        if now >= self.until {
            let seconds = self.began.elapsed().as_secs_f64();
            println!("published {} {seconds}", self.sequence);
            return false;
        }
        if now < self.next {
            return true;
        }
        self.next += self.order.tick();
        for _ in 0..self.order.at_once() {
            self.sequence += 1;
            let frame = frame(&message(self.sequence, self.order.bytes));
            viewers.iter_mut().for_each(|viewer| viewer.write(&frame));
        }
        true
    }
}

pub(crate) fn run() -> Result<(), AnyError> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let waker = Waker::new(poll.registry(), ORDERS)?;
    let (give, orders) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if give.send(line).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(give);
        waker.wake().ok();
    });
    println!("listening {}", listener.local_addr()?);
    let (mut viewers, mut events) = (Vec::<Viewer>::new(), Events::with_capacity(1024));
    let mut publishing: Option<Publishing> = None;
    loop {
        let wait = publishing.as_ref().map(|one| one.next.saturating_duration_since(Instant::now()));
        match poll.poll(&mut events, wait) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            match event.token() {
                LISTENER => accept(&listener, &poll, &mut viewers)?,
                ORDERS => match orders.try_recv() {
                    Ok(line) => {
                        let (order, began) = (Order::parse(&line)?, Instant::now());
                        let until = began + Duration::from_secs_f64(order.seconds);
                        publishing = Some(Publishing { order, next: began, until, began, sequence: 0 });
                    }
                    Err(mpsc::TryRecvError::Empty) => {}
                    Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                },
                Token(number) => {
                    let viewer = &mut viewers[number];
                    if event.is_readable() {
                        viewer.read();
                    }
                    if event.is_writable() {
                        viewer.flush();
                    }
                }
            }
        }
        if publishing.as_mut().is_some_and(|one| !one.go_on(&mut viewers)) {
            publishing = None;
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, viewers: &mut Vec<Viewer>) -> Result<(), AnyError> {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nodelay(true)?;
                let both = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut stream, Token(viewers.len()), both)?;
                let (head, rest) = (Vec::new(), Vec::new());
                viewers.push(Viewer { stream, head, is_watching: false, rest, is_gone: false });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
