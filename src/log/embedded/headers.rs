//! A record's headers as one blob: for each the name's length (u16), the name, the value's length (u32), the value;
//! numbers little-endian. No headers are no blob.

use std::borrow::Cow;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::log::{Headers, header_name};

/// `None` when there are none. The caller made sure that names have at most 65,535 bytes ([`is_encodable`]).
pub(super) fn encode(headers: &[(Cow<'static, str>, Bytes)]) -> Option<BytesMut> {
    if headers.is_empty() {
        return None;
    }
    let mut blob =
        BytesMut::with_capacity(headers.iter().map(|(name, value)| 6 + name.len() + value.len()).sum());
    for (name, value) in headers {
        blob.put_u16_le(u16::try_from(name.len()).unwrap_or(u16::MAX));
        blob.put_slice(name.as_bytes());
        blob.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
        blob.put_slice(value);
    }
    Some(blob)
}

/// Whether every name fits its length.
pub(super) fn is_encodable(headers: &[(Cow<'static, str>, Bytes)]) -> bool {
    headers.iter().all(|(name, _)| u16::try_from(name.len()).is_ok())
}

/// `None` when the blob is not what [`encode`] makes.
pub(super) fn decode(blob: Option<&[u8]>) -> Option<Headers> {
    let mut headers = Vec::new();
    let Some(blob) = blob else { return Some(headers) };
    let mut rest = Bytes::copy_from_slice(blob);
    while rest.has_remaining() {
        let name_bytes = usize::from(rest.try_get_u16_le().ok()?);
        let name = header_name(std::str::from_utf8(rest.get(..name_bytes)?).ok()?);
        rest.advance(name_bytes);
        let value_bytes = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
        if rest.len() < value_bytes {
            return None;
        }
        headers.push((name, rest.split_to(value_bytes)));
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_in_order_with_repeated_names_and_empty_values() {
        let headers: Headers = [("rows", "20"), ("rows", ""), ("content-type", "application/x")]
            .map(|(name, value)| (header_name(name), Bytes::from(value)))
            .to_vec();
        assert_eq!(decode(encode(&headers).as_deref()), Some(headers));
        assert_eq!(decode(encode(&[]).as_deref()), Some(Vec::new()));
    }

    #[test]
    fn a_cut_blob_is_refused() {
        let blob = encode(&[(header_name("final"), Bytes::from_static(b"true"))]).unwrap();
        for cut in 1..blob.len() {
            assert_eq!(decode(Some(&blob[..cut])), None, "cut at {cut}");
        }
    }
}
