//! Damage to a text or a record, as a seeded generator does it.

use rand::Rng;
use rand::rngs::StdRng;

/// Bytes with one damage: an edit, a cut, a repeated or a missing part, or a part of `other`.
pub(crate) fn bytes(good: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bad = good.to_vec();
    if bad.is_empty() {
        return other.to_vec();
    }
    let at = random.random_range(0..bad.len());
    let span = |random: &mut StdRng, length: usize| {
        let from = random.random_range(0..=length);
        from..(from + random.random_range(0..64)).min(length)
    };
    match random.random_range(0..8) {
        0 => bad[at] ^= 1 << random.random_range(0..8),
        1 => bad[at] = [0, 1, 0x7f, 0x80, 0xff, random.random()][random.random_range(0..6)],
        // A length, a count or an offset: little-endian, aligned.
        2 | 3 => {
            let wide = random.random_bool(0.5);
            let width = if wide { 8 } else { 4 };
            let at = at / 4 * 4;
            let value = interesting(random).to_le_bytes();
            let end = (at + width).min(bad.len());
            bad[at..end].copy_from_slice(&value[..end - at]);
        }
        4 => bad.truncate(at),
        5 => {
            let part = bad[span(random, good.len())].to_vec();
            bad.splice(at..at, part);
        }
        6 => drop(bad.splice(span(random, good.len()), [])),
        _ => {
            let part = other[span(random, other.len())].to_vec();
            bad.splice(at.., part.into_iter().chain(other.iter().copied().skip(at)));
        }
    }
    bad
}

fn interesting(random: &mut StdRng) -> i64 {
    let near = random.random_range(-2..3);
    let base = [0, 8, 64, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 40, i64::MAX, i64::MIN, -1];
    base[random.random_range(0..base.len())].saturating_add(near)
}

/// A text with one damage to its words and signs: one is left out, doubled, moved, taken from `other`, or repeated many
/// times; or a character is exchanged, or the text is cut and goes on as the other.
pub(crate) fn text(good: &str, other: &str, random: &mut StdRng) -> String {
    let mine = words(good);
    let theirs = words(other);
    if mine.is_empty() || theirs.is_empty() {
        return other.to_owned();
    }
    let at = random.random_range(0..mine.len());
    let (from, to) = mine[at];
    let word = &good[from..to];
    let pick = |random: &mut StdRng| theirs[random.random_range(0..theirs.len())];
    match random.random_range(0..14) {
        0 => format!("{}{}", &good[..from], &good[to..]),
        1 => format!("{} {word} {}", &good[..to], &good[to..]),
        2 => {
            let (second_from, second_to) = mine[random.random_range(0..mine.len())];
            let (a, b) = ((from, to).min((second_from, second_to)), (from, to).max((second_from, second_to)));
            let (x, y) = (&good[a.0..a.1], &good[b.0..b.1]);
            if a == b {
                return good.to_owned();
            }
            format!("{}{y}{}{x}{}", &good[..a.0], &good[a.1..b.0], &good[b.1..])
        }
        3 | 4 => {
            let (a, b) = pick(random);
            format!("{}{}{}", &good[..from], &other[a..b], &good[to..])
        }
        5 => {
            let times = [3, 20, 40, 3000][random.random_range(0..4)];
            let last = (at + random.random_range(0..4)).min(mine.len() - 1);
            let piece = &good[from..mine[last].1];
            format!("{}{}{}", &good[..from], format!("{piece} ").repeat(times), &good[mine[last].1..])
        }
        6 => {
            let odd = ['\'', '"', '(', ')', ';', '\0', '😀', '\u{301}', '\\', '$', '\r', '-', '9'];
            let odd = odd[random.random_range(0..odd.len())];
            format!("{}{odd}{}", &good[..from], &good[to..])
        }
        7 => format!("{}{}", &good[..from], &other[pick(random).0..]),
        // Another of its kind: often still a query, and another one.
        8..13 => {
            let kind = |text: &str| text.chars().next().map(|c| (c.is_alphabetic(), c.is_numeric()));
            let alike: Vec<&str> =
                mine.iter().map(|(a, b)| &good[*a..*b]).filter(|other| kind(other) == kind(word)).collect();
            let instead = alike[random.random_range(0..alike.len())];
            format!("{}{instead}{}", &good[..from], &good[to..])
        }
        // A whole piece, from one word to another.
        _ => {
            let (a, b) = (pick(random), pick(random));
            let piece = &other[a.0.min(b.0)..a.1.max(b.1)];
            format!("{} {piece} {}", &good[..from], &good[to..])
        }
    }
}

/// Where each word, number or sign begins and ends.
fn words(text: &str) -> Vec<(usize, usize)> {
    let mut words: Vec<(usize, usize)> = Vec::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut before = ' ';
    for (index, c) in text.char_indices() {
        let end = index + c.len_utf8();
        match words.last_mut() {
            Some(last) if last.1 == index && is_word(c) && is_word(before) => last.1 = end,
            _ if c.is_whitespace() => {}
            _ => words.push((index, end)),
        }
        before = c;
    }
    words
}
