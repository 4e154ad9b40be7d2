//! Seeded cases: how many, which one failed, and how to run that one again.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Runs a case for each seed from 0 on, `default` of them or as many as the environment variable `count` says. A panic
/// names its seed; `EMOSTREAM_SEED=N` runs that seed alone, `EMOSTREAM_TRACE=1` names each one before it runs.
pub(crate) fn each(count: &str, default: u64, mut case: impl FnMut(u64, StdRng)) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    let seeds = match number("EMOSTREAM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number(count).unwrap_or(default),
    };
    for seed in seeds {
        // A stack that is used up ends the process before anything is said.
        if std::env::var_os("EMOSTREAM_TRACE").is_some() {
            eprintln!("seed {seed}");
        }
        let named = Named(seed);
        case(seed, StdRng::seed_from_u64(seed));
        drop(named);
    }
}

/// Says which seed it was when the case panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was seed {0}; EMOSTREAM_SEED={0} runs it alone", self.0);
        }
    }
}
