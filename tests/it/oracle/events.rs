//! Random events for the source of [`super::query`], and how they come to the engine.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use crate::support::rows::Row;
use crate::support::stage::MS;

/// The event time's place in the source.
const TIMESTAMP: usize = 3;
/// Between the event times of one set and the next.
const APART_MS: i64 = 1_000_000_000;

/// Events in the order in which they come, none of them late.
#[derive(Clone, Debug)]
pub(super) struct Events {
    /// Event times lie from here on, in milliseconds.
    pub(super) from_ms: i64,
    pub(super) rows: Vec<Row>,
    pub(super) partitions: usize,
    /// Of what remains to be decided: records, partitions, order of reading, restarts.
    pub(super) seed: u64,
    pub(super) restarts: usize,
}

impl Events {
    /// The `index`th set; sets of one case do not overlap in time. The first one begins before 1970.
    pub(super) fn random(index: usize, random: &mut StdRng) -> Self {
        let from_ms = index as i64 * APART_MS - 7_500;
        let count = random.random_range(1..120);
        let span = *[1, 2_000, 20_000, 60_000].choose(random).unwrap();
        let mut arriving: Vec<(i64, Row)> = (0..count)
            .map(|_| {
                let ms = from_ms + random.random_range(0..span);
                // Within the delay of 500 ms out of order.
                (ms + random.random_range(0..500), row(ms, random))
            })
            .collect();
        arriving.sort_by_key(|(arrival, _)| *arrival);
        Self {
            from_ms,
            rows: arriving.into_iter().map(|(_, row)| row).collect(),
            partitions: random.random_range(1..5),
            seed: random.random(),
            restarts: *[0, 0, 1, 3].choose(random).unwrap(),
        }
    }

    /// Whether an event time, in nanoseconds, is of this set.
    pub(super) fn holds(&self, ns: i64) -> bool {
        let ms = ns.div_euclid(MS);
        (self.from_ms - APART_MS / 2..self.from_ms + APART_MS / 2).contains(&ms)
    }

    /// The same with fewer rows, fewer partitions or fewer restarts.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        let rows = self.rows.len();
        let mut part = rows.div_ceil(2);
        while part > 0 && rows > 1 {
            for from in (0..rows).step_by(part).take(8) {
                let mut less = self.clone();
                less.rows.drain(from..(from + part).min(rows));
                if !less.rows.is_empty() {
                    smaller.push(less);
                }
            }
            part /= 2;
        }
        if self.partitions > 1 {
            smaller.push(Self { partitions: 1, ..self.clone() });
        }
        if self.restarts > 0 {
            smaller.push(Self { restarts: 0, ..self.clone() });
        }
        smaller
    }

    /// The latest event time among `rows`, in milliseconds.
    pub(super) fn latest_ms(rows: &[Row]) -> i64 {
        rows.iter().filter_map(|row| row[TIMESTAMP].as_i64()).max().unwrap_or_default() / MS
    }
}

fn row(ms: i64, random: &mut StdRng) -> Row {
    let nullable =
        |value: Value, random: &mut StdRng| if random.random_ratio(1, 5) { Value::Null } else { value };
    let n = random.random_range(0..8);
    let at = 1_767_225_600_000 + random.random_range(0..180_000);
    let mut row = vec![
        json!(format!("user{}", random.random_range(0..12))),
        json!(["a😀", "b🎉", "c🔥", "ab", "d"][random.random_range(0..5)]),
        json!(format!("room{}", random.random_range(0..3))),
        json!(ms * MS + random.random_range(0..MS)),
    ];
    for value in [
        json!(["de", "br", "jp"][random.random_range(0..3)]),
        json!(n),
        json!(random.random_range(-5_000_000..5_000_000_i64)),
        json!(random.random_range(0..5)),
        // Sums of these are exact in any order only now and then, as in life.
        json!(random.random_range(0..60) as f64 / 7.0),
        json!(random.random_bool(0.5)),
        json!(at * MS),
    ] {
        let value = nullable(value, random);
        row.push(value);
    }
    row
}
