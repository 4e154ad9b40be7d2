//! What is known of an emoji: its base, name, group, and how people feel about it.
//!
//! Base, name and group are those of Unicode's emoji data (UTS #51 `emoji-test.txt` and CLDR's short names), by the crate
//! `emojis`. Frequency and feeling are those of the Emoji Sentiment Ranking 1.0 (see `NOTICE`): people judged tweets in
//! thirteen European languages as negative, neutral or positive, and the ranking counts these by the emojis in them.

use std::borrow::Cow;
use std::sync::LazyLock;

use emojis::{Emoji, Group, SkinTone};
use hashbrown::HashMap;

const RANKING: &str = include_str!("emojis.csv");

/// One emoji of the Emoji Sentiment Ranking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Without variation selectors.
    pub emoji: &'static str,
    /// How often it was seen.
    pub occurrences: u32,
    /// From −1 (all negative) to 1 (all positive): (positive − negative) / occurrences.
    pub sentiment: f64,
}

/// The ranking, most frequent first.
pub fn ranking() -> &'static [Ranked] {
    static PARSED: LazyLock<Vec<Ranked>> = LazyLock::new(|| RANKING.lines().filter_map(ranked).collect());
    &PARSED
}

/// A row of the file; `None` for its heading and remarks.
fn ranked(row: &'static str) -> Option<Ranked> {
    let mut cells = row.split(',');
    let emoji = cells.next()?;
    let mut number = || cells.next()?.parse::<u32>().ok();
    let (occurrences, negative, _, positive) = (number()?, number()?, number()?, number()?);
    let sentiment = (f64::from(positive) - f64::from(negative)) / f64::from(occurrences);
    Some(Ranked { emoji, occurrences, sentiment })
}

/// The emoji without skin tone and variation selectors: 👍🏽 → 👍, ❤️ → ❤. What is no emoji stays as it is.
pub fn base(text: &str) -> Cow<'_, str> {
    match emoji(text) {
        Some(emoji) => without_selectors(emoji.as_str()),
        None => Cow::Borrowed(text),
    }
}

/// Its English name in CLDR, the same for all skin tones: `thumbs up`. `None` for what is no emoji.
pub fn name(text: &str) -> Option<&'static str> {
    emoji(text).map(Emoji::name)
}

/// Its group in Unicode's emoji list: `Smileys & Emotion`, `Animals & Nature`, … `None` for what is no emoji.
pub fn group(text: &str) -> Option<&'static str> {
    emoji(text).map(|emoji| match emoji.group() {
        Group::SmileysAndEmotion => "Smileys & Emotion",
        Group::PeopleAndBody => "People & Body",
        Group::AnimalsAndNature => "Animals & Nature",
        Group::FoodAndDrink => "Food & Drink",
        Group::TravelAndPlaces => "Travel & Places",
        Group::Activities => "Activities",
        Group::Objects => "Objects",
        Group::Symbols => "Symbols",
        Group::Flags => "Flags",
    })
}

/// How people feel about it, from −1 to 1, the same for all skin tones. `None` for what is no emoji, and for the emojis
/// that the ranking does not have: those younger than 2015, and sequences.
pub fn sentiment(text: &str) -> Option<f64> {
    static BY_BASE: LazyLock<HashMap<&'static str, f64>> =
        LazyLock::new(|| ranking().iter().map(|ranked| (ranked.emoji, ranked.sentiment)).collect());
    BY_BASE.get(without_selectors(emoji(text)?.as_str()).as_ref()).copied()
}

/// The emoji in its default skin tone.
fn emoji(text: &str) -> Option<&'static Emoji> {
    // Letters and most of what is typed: no emoji begins with it.
    if text.as_bytes().first().is_none_or(u8::is_ascii_alphabetic) {
        return None;
    }
    let found = emojis::get(text).or_else(|| {
        // Selectors that the list does not have at this place.
        let bare = without_selectors(text);
        (bare.len() < text.len()).then(|| emojis::get(&bare)).flatten()
    })?;
    Some(found.with_skin_tone(SkinTone::Default).unwrap_or(found))
}

/// U+FE0E asks for the text's form, U+FE0F for the coloured one.
fn without_selectors(text: &str) -> Cow<'_, str> {
    const SELECTORS: [char; 2] = ['\u{fe0e}', '\u{fe0f}'];
    match text.contains(SELECTORS) {
        true => Cow::Owned(text.replace(SELECTORS, "")),
        false => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_emoji_of_unicode_has_a_base_that_is_its_own_and_shares_name_group_and_feeling() {
        let marks = ['\u{fe0e}', '\u{fe0f}', '\u{1f3fb}', '\u{1f3fc}', '\u{1f3fd}', '\u{1f3fe}', '\u{1f3ff}'];
        let mut all = 0;
        for emoji in emojis::iter() {
            let tones = emoji.skin_tones().into_iter().flatten();
            for form in tones.chain([emoji]).map(Emoji::as_str) {
                let base = base(form);
                assert!(!base.contains(marks), "{form} has the base {base}");
                assert_eq!(super::base(&base), base, "{form}");
                assert_eq!((name(form), group(form)), (name(&base), group(&base)), "{form}");
                assert_eq!(sentiment(form), sentiment(&base), "{form}");
                assert!(name(form).is_some() && group(form).is_some(), "{form}");
                all += 1;
            }
        }
        assert!(all > 3_000, "{all}");
    }

    #[test]
    fn skin_tones_and_selectors_do_not_count() {
        for (form, expected) in [
            ("👍🏽", "👍"),
            ("❤️", "❤"),
            ("❤\u{fe0e}", "❤"),
            ("❤", "❤"),
            ("👩🏿‍❤️‍👨🏼", "👩‍❤‍👨"),
            ("🫱🏻‍🫲🏿", "🤝"),
            ("#️⃣", "#⃣"),
            ("🇺🇸", "🇺🇸"),
        ] {
            assert_eq!(base(form), expected, "{form}");
        }
        assert_eq!((name("👍🏽"), group("👍🏽")), (Some("thumbs up"), Some("People & Body")));
        assert_eq!((name("❤️"), name("❤")), (Some("red heart"), Some("red heart")));
        assert_eq!(sentiment("👍🏿"), sentiment("👍"));
    }

    #[test]
    fn what_is_no_emoji_stays_itself_and_has_no_facts() {
        for text in ["", "a", "hello ❤️", "🎉🎉", "é", "♡", "7", "\u{1f3fb}", "\u{fe0f}"] {
            assert_eq!(base(text), text);
            assert_eq!((name(text), group(text), sentiment(text)), (None, None, None), "{text}");
        }
    }

    #[test]
    fn feelings_are_those_of_the_ranking() {
        assert_eq!(ranking().len(), 613, "every row is read");
        assert!(ranking().is_sorted_by(|a, b| a.occurrences >= b.occurrences));
        for ranked in ranking() {
            assert!((-1.0..=1.0).contains(&ranked.sentiment), "{ranked:?}");
            assert_eq!(sentiment(ranked.emoji), Some(ranked.sentiment), "{ranked:?}");
        }
        // 😂 was in 3614 negative and 6845 positive of 14622; 😭 in 2412 and 1900 of 5526.
        assert_eq!(sentiment("😂"), Some(3231.0 / 14622.0));
        assert_eq!(sentiment("😭"), Some(-516.0 / 5526.0));
        assert_eq!(sentiment("🥹"), None, "of 2021");
    }
}
