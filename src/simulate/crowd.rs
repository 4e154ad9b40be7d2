//! How a crowd reacts: when, how much and with which emojis. Pure and, by its seed, repeatable.
//!
//! The rate over time is a curve tabulated once, so that "how many by then" and "when is the n-th due" are exact
//! inverses of each other, and the average over the whole duration is the asked rate whatever the shape.

use std::time::Duration;

use rand::distr::Distribution;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::weighted::WeightedAliasIndex;

use crate::reaction::emoji;

/// What a crowd sends when something has just happened, with weights.
const CELEBRATION: &[(&str, u32)] = &[
    ("🎉", 22),
    ("👏", 18),
    ("🔥", 16),
    ("🙌", 12),
    ("😍", 8),
    ("❤", 7),
    ("😱", 6),
    ("💪", 5),
    ("🏆", 3),
    ("🎊", 3),
];

/// Of what a burst adds to the hum, how much is celebration.
const CELEBRATION_SHARE: f64 = 0.9;

/// A match shorter than this is played in compressed time, so that a minute's try has its goals too.
const MATCH_S: f64 = 600.0;
/// In match time: a small wave about this often (an over, a corner), and a goal or wicket in each such span.
const WAVE_EVERY_S: f64 = 120.0;
const GOAL_EVERY_S: f64 = 300.0;
/// In match time: how long the crowd takes from the goal to its peak.
const RISE_S: f64 = 2.0;

/// How the rate changes over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// The same all the time.
    #[default]
    Steady,
    /// A live event: a hum, small waves, and goals at 10 to 30 times the hum that fade within a minute.
    Match,
}

/// A crowd: its rate over time and its emojis.
#[derive(Debug)]
pub struct Crowd {
    step_s: f64,
    /// Reactions due by `i * step_s`; rises from 0 to the total.
    due: Vec<f64>,
    /// Reactions a second of the hum alone, without waves and goals.
    hum: f64,
    emojis: Vec<&'static str>,
    everyday: WeightedAliasIndex<u32>,
    celebration: WeightedAliasIndex<u32>,
}

/// One thing that stirs the crowd, in seconds from the start and in multiples of the hum.
#[derive(Clone, Copy, Debug)]
enum Stir {
    Wave { at: f64, width: f64, height: f64 },
    Goal { at: f64, rise: f64, fade: f64, height: f64 },
}

impl Stir {
    /// What it adds at `t`, in multiples of the hum.
    fn at(&self, t: f64) -> f64 {
        match *self {
            Self::Wave { at, width, height } if t >= at && t < at + width => {
                height * 0.5 * (1.0 - (std::f64::consts::TAU * (t - at) / width).cos())
            }
            Self::Goal { at, rise, height, .. } if t >= at && t < at + rise => height * (t - at) / rise,
            Self::Goal { at, rise, fade, height } if t >= at + rise => {
                height * (-(t - at - rise) / fade).exp()
            }
            _ => 0.0,
        }
    }
}

impl Crowd {
    /// A crowd that sends `rate` reactions a second on average over `duration`.
    ///
    /// # Errors
    /// Says what is wrong when rate or duration are not above zero, or the data of the emojis cannot be read.
    pub fn new(shape: Shape, rate: f64, duration: Duration, seed: u64) -> Result<Self, String> {
        let duration_s = duration.as_secs_f64();
        if !(rate > 0.0 && rate.is_finite()) || duration_s <= 0.0 {
            return Err("rate and duration must be above zero".to_owned());
        }
        let stirs = match shape {
            Shape::Steady => Vec::new(),
            Shape::Match => stirs(duration_s, &mut StdRng::seed_from_u64(seed)),
        };
        let (due, hum) = tabulate(&stirs, rate, duration_s);
        let frequencies = emoji::ranking();
        let everyday = WeightedAliasIndex::new(frequencies.iter().map(|ranked| ranked.occurrences).collect())
            .map_err(|error| error.to_string())?;
        let of = |emoji: &str| {
            CELEBRATION.iter().find(|(name, _)| *name == emoji).map_or(0, |(_, weight)| *weight)
        };
        let celebration =
            WeightedAliasIndex::new(frequencies.iter().map(|ranked| of(ranked.emoji)).collect())
                .map_err(|error| error.to_string())?;
        let emojis = frequencies.iter().map(|ranked| ranked.emoji).collect();
        Ok(Self { step_s: duration_s / (due.len() - 1) as f64, due, hum, emojis, everyday, celebration })
    }

    /// All reactions it sends.
    pub fn total(&self) -> u64 {
        self.due.last().map_or(0, |total| total.round() as u64)
    }

    /// Reactions due by `at` since the start.
    pub fn due_by(&self, at: Duration) -> f64 {
        let place = at.as_secs_f64() / self.step_s;
        let below = place as usize;
        match (self.due.get(below), self.due.get(below + 1)) {
            (Some(low), Some(high)) => low + (high - low) * place.fract(),
            _ => self.due.last().copied().unwrap_or_default(),
        }
    }

    /// When `count` reactions are due, at the latest at the end.
    pub fn when_due(&self, count: f64) -> Duration {
        let above = self.due.partition_point(|due| *due < count).clamp(1, self.due.len() - 1);
        let (low, high) = (self.due[above - 1], self.due[above]);
        let part = if high > low { ((count - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 };
        Duration::from_secs_f64((above as f64 - 1.0 + part) * self.step_s)
    }

    /// Reactions a second at `at`.
    pub fn rate_at(&self, at: Duration) -> f64 {
        let below = ((at.as_secs_f64() / self.step_s) as usize).min(self.due.len() - 2);
        (self.due[below + 1] - self.due[below]) / self.step_s
    }

    /// How much of what is sent at `at` is celebration, from 0 to 1. The same for all reactions of one request.
    pub fn celebration_at(&self, at: Duration) -> f64 {
        CELEBRATION_SHARE * (1.0 - self.hum / self.rate_at(at)).max(0.0)
    }

    /// One emoji, where `celebration` of the crowd celebrates and the others send what people send on any day.
    pub fn emoji(&self, celebration: f64, rng: &mut impl Rng) -> &'static str {
        let celebrates = celebration > 0.0 && rng.random::<f64>() < celebration;
        let from = if celebrates { &self.celebration } else { &self.everyday };
        self.emojis[from.sample(rng)]
    }

    /// When sender `sender` of `senders` should send its next `batch` reactions, until it has sent its share.
    /// The senders' shares differ by one at most and add up to [`Crowd::total`]; their times interleave evenly.
    pub fn schedule(&self, sender: u64, senders: u64, batch: u64) -> impl Iterator<Item = Intent> + '_ {
        let total = u128::from(self.total());
        let by = |first: u64| (total * u128::from(first) / u128::from(senders)) as u64;
        let mut left = by(sender + 1) - by(sender);
        let phase = (sender + 1) as f64 / senders as f64;
        let mut number = 0_u64;
        std::iter::from_fn(move || {
            let rows = left.min(batch);
            left -= rows;
            let at = self.when_due((number as f64 + phase) * batch as f64 * senders as f64);
            number += 1;
            (rows > 0).then_some(Intent { at, rows })
        })
    }
}

/// What an open loop is made of: so many reactions should leave at that time, whether the server keeps up or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Since the start.
    pub at: Duration,
    /// How many reactions.
    pub rows: u64,
}

/// The waves and goals of a match of that length.
fn stirs(duration_s: f64, rng: &mut StdRng) -> Vec<Stir> {
    let pace = (duration_s / MATCH_S).min(1.0);
    let each = |every_s: f64| {
        let slots = (duration_s / (every_s * pace)).round().max(1.0);
        (0..slots as u64).map(move |slot| (slot as f64 * duration_s / slots, duration_s / slots))
    };
    let mut stirs = Vec::new();
    for (slot, length) in each(WAVE_EVERY_S) {
        let width = rng.random_range(20.0..40.0) * pace;
        stirs.push(Stir::Wave {
            at: slot + rng.random_range(0.0..0.6) * length,
            width,
            height: rng.random_range(0.5..1.5),
        });
    }
    for (slot, length) in each(GOAL_EVERY_S) {
        stirs.push(Stir::Goal {
            at: slot + rng.random_range(0.1..0.6) * length,
            rise: RISE_S * pace,
            fade: rng.random_range(20.0..40.0) * pace,
            // With the hum itself the peak is 10 to 30 times the hum.
            height: rng.random_range(9.0..29.0),
        });
    }
    stirs
}

/// The table of reactions due over time, and the rate of the hum.
fn tabulate(stirs: &[Stir], rate: f64, duration_s: f64) -> (Vec<f64>, f64) {
    let steps = if stirs.is_empty() { 1 } else { (duration_s / 0.01).clamp(2_000.0, 200_000.0) as usize };
    let step_s = duration_s / steps as f64;
    let mut due = Vec::with_capacity(steps + 1);
    let mut sum = 0.0;
    due.push(0.0);
    for step in 0..steps {
        let middle = (step as f64 + 0.5) * step_s;
        sum += (1.0 + stirs.iter().map(|stir| stir.at(middle)).sum::<f64>()) * step_s;
        due.push(sum);
    }
    let hum = rate * duration_s / sum;
    for value in &mut due {
        *value *= hum;
    }
    (due, hum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn crowd(shape: Shape, duration_s: u64, seed: u64) -> Crowd {
        Crowd::new(shape, 1000.0, Duration::from_secs(duration_s), seed).unwrap()
    }

    #[test]
    fn the_average_is_the_asked_rate_whatever_the_shape() {
        for shape in [Shape::Steady, Shape::Match] {
            for duration_s in [1, 60, 600, 5400] {
                let crowd = crowd(shape, duration_s, 7);
                assert_eq!(crowd.total(), 1000 * duration_s, "{shape:?} over {duration_s} s");
            }
        }
    }

    #[test]
    fn a_match_peaks_at_ten_to_thirty_times_its_hum_quickly_and_fades_slowly() {
        for seed in 0..20 {
            let crowd = crowd(Shape::Match, 1200, seed);
            let rates: Vec<f64> = (0..1200).map(|s| crowd.rate_at(Duration::from_secs(s))).collect();
            let (peak_s, peak) = rates.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
            assert!(
                (9.0..=33.0).contains(&(peak / crowd.hum)),
                "seed {seed}: {} times the hum",
                peak / crowd.hum
            );
            assert!(rates[peak_s - 3] < peak / 2.0, "seed {seed}: the peak comes within seconds");
            assert!(rates[peak_s + 5] > peak / 2.0, "seed {seed}: it does not vanish at once");
            assert!(rates[(peak_s + 80).min(1199)] < peak / 2.0, "seed {seed}: it fades");
            let mut sorted = rates.clone();
            sorted.sort_by(f64::total_cmp);
            assert!(sorted[600] < peak / 4.0, "seed {seed}: half of the match is far below the peak");
        }
    }

    #[test]
    fn a_short_match_has_its_goals_too() {
        let crowd = crowd(Shape::Match, 10, 3);
        let peak = (0..1000).map(|ms| crowd.rate_at(Duration::from_millis(10 * ms))).fold(0.0, f64::max);
        assert!(peak > 9.0 * crowd.hum);
    }

    #[test]
    fn the_same_seed_gives_the_same_match_and_another_seed_another() {
        let emojis = |crowd: &Crowd| {
            let mut rng = StdRng::seed_from_u64(1);
            (0..100).map(|_| crowd.emoji(0.3, &mut rng)).collect::<String>()
        };
        let (one, again, other) =
            (crowd(Shape::Match, 60, 1), crowd(Shape::Match, 60, 1), crowd(Shape::Match, 60, 2));
        assert_eq!(one.due, again.due);
        assert_eq!(emojis(&one), emojis(&again));
        assert_ne!(one.due, other.due);
    }

    #[test]
    fn when_and_how_many_are_inverses() {
        for shape in [Shape::Steady, Shape::Match] {
            let crowd = crowd(shape, 60, 5);
            for count in [0.0, 1.0, 777.5, 30_000.0, 59_999.0, 60_000.0] {
                assert!((crowd.due_by(crowd.when_due(count)) - count).abs() < 0.01, "{shape:?}: {count}");
            }
            assert_eq!(crowd.when_due(1e9), Duration::from_secs(60));
        }
    }

    #[test]
    fn all_senders_together_send_the_total_in_time_order_and_interleaved() {
        let crowd = crowd(Shape::Match, 10, 9);
        let mut all = Vec::new();
        for sender in 0..7 {
            let intents: Vec<Intent> = crowd.schedule(sender, 7, 13).collect();
            assert!(intents.is_sorted_by_key(|intent| intent.at), "sender {sender}");
            assert!(intents.iter().all(|intent| (1..=13).contains(&intent.rows)));
            all.extend(intents);
        }
        assert_eq!(all.iter().map(|intent| intent.rows).sum::<u64>(), crowd.total());
        all.sort_by_key(|intent| intent.at);
        let mut sent = 0;
        for intent in all {
            sent += intent.rows;
            let due = crowd.due_by(intent.at);
            assert!((sent as f64 - due).abs() <= 2.0 * 13.0, "{sent} sent, {due:.0} due at {:?}", intent.at);
        }
    }

    #[test]
    fn emojis_come_as_often_as_in_the_data_and_a_goal_is_celebrated() {
        let crowd = crowd(Shape::Steady, 10, 1);
        let mut rng = StdRng::seed_from_u64(11);
        let mut count = |celebration: f64| {
            let mut counts: HashMap<&str, u32> = HashMap::new();
            for _ in 0..100_000 {
                *counts.entry(crowd.emoji(celebration, &mut rng)).or_default() += 1;
            }
            counts
        };
        let share_of = |emoji: &str| {
            let all = emoji::ranking();
            let total: u32 = all.iter().map(|ranked| ranked.occurrences).sum();
            f64::from(all.iter().find(|ranked| ranked.emoji == emoji).unwrap().occurrences) / f64::from(total)
        };
        let everyday = count(0.0);
        for emoji in ["😂", "❤", "🙏"] {
            let share = f64::from(everyday[emoji]) / 100_000.0;
            assert!((share - share_of(emoji)).abs() < 0.005, "{emoji}: {share}");
        }
        let goal = count(CELEBRATION_SHARE);
        let celebrated: u32 = CELEBRATION.iter().map(|(emoji, _)| goal[emoji]).sum();
        assert!(celebrated > 85_000, "{celebrated} of 100000");
    }

    #[test]
    fn a_crowd_that_sends_nothing_is_refused() {
        for (rate, duration) in [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (1.0, 0)] {
            assert!(Crowd::new(Shape::Steady, rate, Duration::from_secs(duration), 0).is_err());
        }
    }
}
