//! Damaged JSON bodies: all rows, or a problem that names one; never a panic, and never rows that are not in the body.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::decode::{BodyFormat, DecodeError, Decoder, EventTimeRule};
use super::decode_tests::{batch, every_type, reactions, receipt_ns};

#[path = "../../tests/it/support/damage.rs"]
mod damage;

/// Bodies of both tables, good ones for one of them: every type, nulls, escapes, defaults, large numbers, times.
fn bodies() -> Vec<String> {
    let rows = [
        json!({"user_id": "ada", "emoji_type": "😀", "room": "main", "timestamp": "2026-11-21T11:59:59.5Z"}),
        json!({"user_id": "b\"o\\b\n\u{7f}", "emoji_type": "👩‍👩‍👧", "timestamp": 1_795_262_400_000_000_000_i64}),
        json!({"emoji_type": "", "user_id": "", "room": "side"}),
        json!({"timestamp": "2026-11-21 12:00:00", "t": "x", "i": -7, "b": i64::MIN, "iu": u32::MAX, "bu": u64::MAX}),
        json!({"f": 1.5e-3, "d": -0.0, "o": true, "t": null, "i": null, "b": 0}),
        json!({"o": false, "d": 1e300, "f": 3, "iu": 0, "t": "日本語"}),
    ];
    let mut bodies: Vec<String> = rows.iter().map(Value::to_string).collect();
    for of in [&rows[..3], &rows[3..]] {
        bodies.push(Value::from(of.to_vec()).to_string());
        bodies.push(of.iter().map(|row| format!("{row}\n")).collect());
        bodies.push(serde_json::to_string_pretty(of).unwrap());
    }
    bodies.push("[]".into());
    bodies
}

/// How many rows a body has, by a reader that knows nothing of tables; None when it is no such body.
fn rows_of(format: BodyFormat, body: &[u8]) -> Option<usize> {
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text).ok();
    match format {
        BodyFormat::Ndjson => {
            let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            let mut lines = lines.filter(|line| !line.is_empty());
            lines.try_fold(0, |count, line| read(line)?.is_object().then_some(count + 1))
        }
        _ => match read(body)? {
            Value::Object(_) => Some(1),
            Value::Array(rows) => rows.iter().all(Value::is_object).then_some(rows.len()),
            _ => None,
        },
    }
}

fn check(table: &Decoder, format: BodyFormat, body: &[u8], rule: EventTimeRule) -> bool {
    let shown = String::from_utf8_lossy(body);
    match table.decode(format, body, receipt_ns(), rule) {
        Ok(decoded) => {
            assert_eq!(Some(decoded.rows.count), rows_of(format, body), "{shown}");
            let count = decoded.rows.count;
            assert_eq!(batch(table, decoded.rows).num_rows(), count, "{shown}");
            true
        }
        Err(DecodeError::Row { row, column, detail }) => {
            assert!(detail.starts_with(&format!("row {row}")), "{detail}\n{shown}");
            assert!(
                column.is_none_or(|column| !column.is_empty() || shown.contains("\"\"")),
                "{detail}\n{shown}"
            );
            assert!(row <= body.iter().filter(|byte| **byte == b'{').count(), "{detail}\n{shown}");
            false
        }
        Err(DecodeError::Syntax { detail, .. } | DecodeError::TooLarge(detail)) => {
            assert!(!detail.is_empty() && detail.len() < 1000, "{detail}\n{shown}");
            false
        }
    }
}

/// `EMOSTREAM_FUZZ_CASES=N` tries more; `EMOSTREAM_SEED=N` that one alone.
#[test]
fn a_damaged_json_body_gives_all_its_rows_or_a_problem_that_names_one() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("EMOSTREAM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("EMOSTREAM_FUZZ_CASES").unwrap_or(20_000),
    };
    let (tables, bodies) = ([reactions(), every_type()], bodies());
    let (mut taken, mut refused) = (0, 0);
    for seed in seeds {
        let mut random = StdRng::seed_from_u64(seed);
        let pick = |random: &mut StdRng| bodies[random.random_range(0..bodies.len())].as_str();
        let mut body = pick(&mut random).to_owned();
        for _ in 0..random.random_range(0..3) {
            body = damage::text(&body, pick(&mut random), &mut random);
        }
        let mut body = body.into_bytes();
        if random.random_bool(0.3) {
            body = damage::bytes(&body, pick(&mut random).as_bytes(), &mut random);
        }
        let rule = match random.random_bool(0.8) {
            true => EventTimeRule::Client { future_tolerance_ns: 5_000_000_000 },
            false => EventTimeRule::Receipt,
        };
        let format = if random.random_bool(0.5) { BodyFormat::Json } else { BodyFormat::Ndjson };
        let table = &tables[random.random_range(0..2)];
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(table, format, &body, rule)));
        match outcome {
            Ok(true) => taken += 1,
            Ok(false) => refused += 1,
            Err(panic) => {
                eprintln!("this was seed {seed}; EMOSTREAM_SEED={seed} runs it alone");
                std::panic::resume_unwind(panic);
            }
        }
    }
    if taken + refused > 10_000 {
        assert!(taken > 1000 && refused > 1000, "{taken} taken, {refused} refused");
    }
}
