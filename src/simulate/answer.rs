//! The head of an HTTP answer, and a body that comes in chunks, as far as a viewer needs them. Pure.

/// The longest head.
const MOST_BYTES: usize = 16 << 10;

/// What an answer's head says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) location: Option<String>,
    pub(super) retry_after_s: Option<u64>,
    /// `Sec-WebSocket-Accept`.
    pub(super) accept: Option<String>,
    pub(super) is_chunked: bool,
}

impl Answer {
    /// The head at the beginning and its length; `None` when it is not whole.
    ///
    /// # Errors
    /// When it is no answer of HTTP/1, or longer than any.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, String> {
        let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
            return if bytes.len() > MOST_BYTES { Err("an endless answer".to_owned()) } else { Ok(None) };
        };
        let no_answer = || "what answers does not speak HTTP/1".to_owned();
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| no_answer())?;
        let mut lines = head.split("\r\n");
        let first = lines.next().filter(|first| first.starts_with("HTTP/1.")).ok_or_else(no_answer)?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(no_answer)?;
        let mut answer = Self { status, ..Self::default() };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "location" => answer.location = Some(value.to_owned()),
                "retry-after" => answer.retry_after_s = value.parse().ok(),
                "sec-websocket-accept" => answer.accept = Some(value.to_owned()),
                "transfer-encoding" => answer.is_chunked = value.eq_ignore_ascii_case("chunked"),
                _ => {}
            }
        }
        Ok(Some((answer, end + 4)))
    }
}

/// Where a body is that comes in chunks.
#[derive(Debug)]
pub(super) enum Chunks {
    /// In the line that says how long the next chunk is.
    Size(Vec<u8>),
    /// So many bytes are to come, the line end after them included.
    Data(usize),
    /// After the last one.
    End,
}

impl Default for Chunks {
    fn default() -> Self {
        Self::Size(Vec::new())
    }
}

impl Chunks {
    /// Takes the next bytes and hands those of the body to `each`.
    ///
    /// # Errors
    /// What is no chunk; and what `each` returns.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        while let Some(first) = bytes.first() {
            match self {
                Self::Size(line) if *first == b'\n' => {
                    let text = std::str::from_utf8(line).unwrap_or_default();
                    let digits = text.split(';').next().unwrap_or_default().trim();
                    let size = u32::from_str_radix(digits, 16)
                        .map_err(|_| format!("a chunk whose length is '{}'", text.escape_debug()))?;
                    *self = if size == 0 { Self::End } else { Self::Data(size as usize + 2) };
                    bytes = &bytes[1..];
                }
                Self::Size(line) => {
                    if line.len() > MOST_BYTES {
                        return Err("an endless length of a chunk".to_owned());
                    }
                    line.push(*first);
                    bytes = &bytes[1..];
                }
                Self::Data(left) => {
                    let taken = bytes.len().min(*left);
                    let of_body = taken.min(left.saturating_sub(2));
                    *left -= taken;
                    let is_over = *left == 0;
                    each(&bytes[..of_body])?;
                    bytes = &bytes[taken..];
                    if is_over {
                        *self = Self::default();
                    }
                }
                Self::End => return Ok(()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let text = "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://h:1/v1/live?room=a\r\nRetry-After: 2\r\n\
                    transfer-encoding: chunked\r\n\r\nbody";
        for cut in 0..text.len() - 4 {
            assert_eq!(Answer::read(&text.as_bytes()[..cut]).unwrap(), None);
        }
        let (answer, length) = Answer::read(text.as_bytes()).unwrap().unwrap();
        assert_eq!((answer.status, length), (307, text.len() - 4));
        assert_eq!(answer.location.as_deref(), Some("http://h:1/v1/live?room=a"));
        assert_eq!((answer.retry_after_s, answer.is_chunked), (Some(2), true));
        assert!(Answer::read(b"SSH-2.0\r\n\r\n").is_err());
        assert!(Answer::read(&vec![b'x'; MOST_BYTES + 1]).is_err());
    }

    #[test]
    fn a_body_is_read_wherever_its_chunks_are_cut() {
        let text = b"5\r\nhello\r\nb;name=value\r\n to \r\nevery\r\n5\r\nbody!\r\n0\r\n\r\n";
        for cut in 0..text.len() {
            let (mut chunks, mut body) = (Chunks::default(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                chunks
                    .feed(part, |bytes| {
                        body.extend_from_slice(bytes);
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(String::from_utf8_lossy(&body), "hello to \r\neverybody!", "cut at {cut}");
        }
        assert!(Chunks::default().feed(b"no length\r\n", |_| Ok(())).is_err());
    }
}
