//! A record's headers as one blob: for each the name's length (u16), the name, the value's length (u32), the value;
//! numbers little-endian. No headers are no blob.

use std::borrow::Cow;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::log::{Headers, header_name};

type Header = (Cow<'static, str>, Bytes);

/// Under this name lies a stamp that the record brought, as decimal text. The column `time` has the log's own clock all
/// the same: by that one its order and its retention go.
const STAMP: &str = "emostream.stamp";

/// `None` when there are none. The caller made sure that names have at most 65,535 bytes ([`is_encodable`]).
pub(super) fn encode(headers: &[Header], stamp_ms: Option<i64>) -> Option<BytesMut> {
    let stamp = stamp_ms.map(|stamp_ms| (Cow::Borrowed(STAMP), Bytes::from(stamp_ms.to_string())));
    if headers.is_empty() && stamp.is_none() {
        return None;
    }
    let size = |(name, value): &Header| 6 + name.len() + value.len();
    let mut blob = BytesMut::with_capacity(stamp.iter().chain(headers).map(size).sum());
    for (name, value) in stamp.iter().chain(headers) {
        blob.put_u16_le(u16::try_from(name.len()).unwrap_or(u16::MAX));
        blob.put_slice(name.as_bytes());
        blob.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
        blob.put_slice(value);
    }
    Some(blob)
}

/// Whether every name fits its length.
pub(super) fn is_encodable(headers: &[Header]) -> bool {
    headers.iter().all(|(name, _)| u16::try_from(name.len()).is_ok())
}

/// The headers, and the stamp that the record brought; `None` when the blob is not what [`encode`] makes.
pub(super) fn decode(blob: Option<&[u8]>) -> Option<(Headers, Option<i64>)> {
    let (mut headers, mut stamp_ms) = (Vec::new(), None);
    let Some(blob) = blob else { return Some((headers, stamp_ms)) };
    let mut rest = Bytes::copy_from_slice(blob);
    while rest.has_remaining() {
        let name_bytes = usize::from(rest.try_get_u16_le().ok()?);
        let name = header_name(std::str::from_utf8(rest.get(..name_bytes)?).ok()?);
        rest.advance(name_bytes);
        let value_bytes = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
        if rest.len() < value_bytes {
            return None;
        }
        let value = rest.split_to(value_bytes);
        match name.as_ref() {
            STAMP => stamp_ms = Some(std::str::from_utf8(&value).ok()?.parse().ok()?),
            _ => headers.push((name, value)),
        }
    }
    Some((headers, stamp_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_in_order_with_repeated_names_and_empty_values() {
        let headers: Headers = [("rows", "20"), ("rows", ""), ("content-type", "application/x")]
            .map(|(name, value)| (header_name(name), Bytes::from(value)))
            .to_vec();
        for stamp in [None, Some(-7), Some(i64::MAX)] {
            assert_eq!(decode(encode(&headers, stamp).as_deref()), Some((headers.clone(), stamp)));
            assert_eq!(decode(encode(&[], stamp).as_deref()), Some((Vec::new(), stamp)));
        }
    }

    #[test]
    fn a_cut_blob_is_refused() {
        let blob = encode(&[(header_name("final"), Bytes::from_static(b"true"))], None).unwrap();
        for cut in 1..blob.len() {
            assert_eq!(decode(Some(&blob[..cut])), None, "cut at {cut}");
        }
    }
}
