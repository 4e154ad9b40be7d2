//! What a simulation found, for people and as JSON.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;

use super::Plan;
use super::account::{QueryAccount, Verdict};
use super::crowd::Crowd;
use super::tally::{Percentiles, Tally};

/// The outcome of one simulation.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing that was answered 202 is missing, and nothing reached a viewer twice or out of order.
    pub verified: bool,
    /// What keeps it from being so.
    pub problems: Vec<String>,
    /// The seed that repeats it.
    pub seed: u64,
    /// How long reactions were sent, in seconds.
    pub duration_s: f64,
    /// The senders' side. None when nobody sent.
    pub sent: Option<Sent>,
    /// The viewers' side.
    pub watched: Watched,
    /// Each query over the table.
    pub queries: Vec<QueryAccount>,
    /// What went wrong on the way, in the words of whoever said it, and how often.
    pub troubles: Vec<Trouble>,
}

/// The senders' side, in reactions unless the name says otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Sent {
    /// What should have been sent.
    pub target: u64,
    /// Answered 202.
    pub accepted: u64,
    /// In requests whose outcome is not known.
    pub unknown: u64,
    /// Refused for good.
    pub refused: u64,
    /// Not sent in time.
    pub unsent: u64,
    /// Accepted a second.
    pub rate: f64,
    /// Accepted, of what should have been.
    pub achieved_percent: f64,
    /// Requests that got an answer.
    pub requests: u64,
    /// Answers 429 or 503 that asked to come back later.
    pub busy: u64,
    /// Connections that could not be made.
    pub unreachable: u64,
    /// From when a request should have left to its answer. None when there was none.
    pub latency_ms: Option<Percentiles>,
    /// Accepted by each sender.
    pub per_sender: PerSender,
}

/// Reactions accepted by each sender.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PerSender {
    /// The fewest.
    pub min: u64,
    /// The median.
    pub p50: u64,
    /// The most.
    pub max: u64,
}

/// The viewers' side.
#[derive(Clone, Debug, Serialize)]
pub struct Watched {
    /// Viewers asked for.
    pub viewers: u64,
    /// Viewers that were connected at least once.
    pub joined: u64,
    /// Joins that failed.
    pub failed_joins: u64,
    /// Connections that ended and were made again.
    pub reconnects: u64,
    /// Windows received, over all viewers.
    pub deliveries: u64,
    /// The same in a second, on average from the first join to the end.
    pub deliveries_per_s: f64,
    /// CPU-seconds that the viewers took for a million of them, joining included. None where the system does not tell.
    pub cpu_s_per_million: Option<f64>,
    /// Windows left out for viewers that fell behind.
    pub skipped: u64,
    /// Windows received twice.
    pub duplicates: u64,
    /// Windows received below an id received before.
    pub out_of_order: u64,
    /// Times a viewer was told that it missed something for good.
    pub gaps: u64,
    /// From a window's end to its receipt. None when there was none.
    pub latency_ms: Option<Percentiles>,
}

/// Something that went wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Trouble {
    /// What was said.
    pub text: String,
    /// How often.
    pub times: u64,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        crowd: &Crowd,
        tally: &Tally,
        verdict: Option<Verdict>,
        watched_for: Duration,
        viewers_cpu: Option<Duration>,
    ) -> Self {
        let duration_s = tally.elapsed().unwrap_or_default().as_secs_f64();
        let watched = Watched::new(plan, tally, watched_for, viewers_cpu);
        let sent = (plan.senders > 0).then(|| Sent::new(crowd, tally));
        let Verdict { queries, mut problems } = verdict.unwrap_or_default();
        let mut must_be_zero = |count: u64, what: &str| {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        };
        must_be_zero(watched.duplicates, "windows reached a viewer twice");
        must_be_zero(watched.out_of_order, "windows reached a viewer out of order");
        must_be_zero(sent.as_ref().map_or(0, |sent| sent.refused), "reactions were refused");
        if sent.as_ref().is_some_and(|sent| sent.accepted == 0) {
            problems.push("no reaction was accepted".to_owned());
        }
        if plan.viewers > 0 && watched.joined == 0 {
            problems.push("no viewer could join".to_owned());
        }
        let troubles = tally.troubles().into_iter().map(|(text, times)| Trouble { text, times }).collect();
        let verified = problems.is_empty();
        Self { verified, problems, seed: plan.seed, duration_s, sent, watched, queries, troubles }
    }
}

impl Sent {
    fn new(crowd: &Crowd, tally: &Tally) -> Self {
        let (target, accepted, unknown) = (crowd.total(), tally.accepted(), tally.unknown());
        let refused = tally.refused.load(Relaxed);
        let [min, p50, max] = tally.per_sender();
        let seconds = tally.elapsed().unwrap_or_default().as_secs_f64();
        Self {
            target,
            accepted,
            unknown,
            refused,
            unsent: target.saturating_sub(accepted + unknown + refused),
            rate: if seconds > 0.0 { accepted as f64 / seconds } else { 0.0 },
            achieved_percent: percent(accepted, target as f64),
            requests: tally.requests.load(Relaxed),
            busy: tally.busy.load(Relaxed),
            unreachable: tally.unreachable.load(Relaxed),
            latency_ms: tally.send_latency(),
            per_sender: PerSender { min, p50, max },
        }
    }
}

impl Watched {
    fn new(plan: &Plan, tally: &Tally, watched_for: Duration, cpu: Option<Duration>) -> Self {
        let deliveries = tally.deliveries();
        let cpu_s = cpu.filter(|_| deliveries > 0).map(|cpu| cpu.as_secs_f64());
        Self {
            viewers: plan.viewers,
            joined: tally.joined.load(Relaxed),
            failed_joins: tally.failed_joins.load(Relaxed),
            reconnects: tally.reconnects.load(Relaxed),
            deliveries,
            deliveries_per_s: deliveries as f64 / watched_for.as_secs_f64().max(0.001),
            cpu_s_per_million: cpu_s.map(|cpu_s| cpu_s * 1e6 / deliveries as f64),
            skipped: tally.skipped.load(Relaxed),
            duplicates: tally.duplicates.load(Relaxed),
            out_of_order: tally.disordered.load(Relaxed),
            gaps: tally.gaps.load(Relaxed),
            latency_ms: tally.delivery_latency(),
        }
    }
}

/// `part` of `whole` in percent, 100 of nothing.
fn percent(part: u64, whole: f64) -> f64 {
    if whole > 0.0 { 100.0 * part as f64 / whole } else { 100.0 }
}

/// The state of a running simulation, in a few lines.
pub fn progress(crowd: &Crowd, tally: &Tally, since_last: Duration, last: (u64, u64)) -> String {
    let elapsed = tally.elapsed().unwrap_or_default();
    let (accepted, deliveries) = (tally.accepted(), tally.deliveries());
    let per_s =
        |now: u64, before: u64| now.saturating_sub(before) as f64 / since_last.as_secs_f64().max(0.001);
    let (send, delivery) = (in_words(tally.send_latency()), in_words(tally.delivery_latency()));
    let watched = format!(
        "{} watching, {:.0} deliveries/s, {deliveries} delivered; {delivery}",
        tally.watching(),
        per_s(deliveries, last.1),
    );
    if !tally.has_senders() {
        return format!("{:>5.1} s  {watched}", elapsed.as_secs_f64());
    }
    let [fewest, median, most] = tally.per_sender();
    format!(
        "{:>5.1} s  {:.0} reactions/s, {:.1}% of the rate, {accepted} accepted (per sender {fewest} / {median} / {most}), \
         {} busy, {} unknown; answers {send}\n         {watched}",
        elapsed.as_secs_f64(),
        per_s(accepted, last.0),
        percent(accepted, crowd.due_by(elapsed)),
        tally.busy(),
        tally.unknown(),
    )
}

fn in_words(latency_ms: Option<Percentiles>) -> String {
    match latency_ms {
        Some(Percentiles { p50, p90, p99, max }) => {
            format!("p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
        }
        None => "none measured".to_owned(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(sent) = &self.sent {
            sent.write(f, self.duration_s, self.seed)?;
        }
        self.watched.write(f)?;
        for query in &self.queries {
            let QueryAccount { name, figures, grown, by_others, .. } = query;
            writeln!(
                f,
                "query     {name}: grew by {grown}{}; in all {} accepted = {} counted + {} filtered + {} late + {} future + {} bad + {} open",
                if *by_others > 0 { format!(" ({by_others} of them by others)") } else { String::new() },
                figures.accepted,
                figures.counted,
                figures.filtered,
                figures.late,
                figures.future,
                figures.bad,
                figures.open
            )?;
        }
        for Trouble { text, times } in &self.troubles {
            writeln!(f, "trouble   {text} ({times}×)")?;
        }
        for problem in &self.problems {
            writeln!(f, "PROBLEM   {problem}")?;
        }
        let verdict = match (self.verified, &self.sent) {
            (true, Some(_)) => "verified: every accepted reaction is accounted for",
            (true, None) => "verified: no window came twice or out of order",
            (false, _) => "NOT verified: see the problems above",
        };
        writeln!(f, "{verdict}")
    }
}

impl Sent {
    fn write(&self, f: &mut fmt::Formatter<'_>, duration_s: f64, seed: u64) -> fmt::Result {
        writeln!(
            f,
            "sent      {} of {} reactions in {duration_s:.1} s: {:.0}/s, {:.1}% of the rate, in {} requests (seed {seed})",
            self.accepted, self.target, self.rate, self.achieved_percent, self.requests,
        )?;
        writeln!(
            f,
            "          unknown {}, refused {}, not sent {}; asked to wait {} times, not reached {} times",
            self.unknown, self.refused, self.unsent, self.busy, self.unreachable
        )?;
        let PerSender { min, p50, max } = self.per_sender;
        writeln!(f, "          per sender: fewest {min}, median {p50}, most {max}")?;
        writeln!(f, "          answered after: {} (from when each was due)", in_words(self.latency_ms))
    }
}

impl Watched {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "watched   {} of {} viewers, {} windows delivered, {:.0}/s, {} skipped, {} gaps, {} reconnects, {} failed joins",
            self.joined,
            self.viewers,
            self.deliveries,
            self.deliveries_per_s,
            self.skipped,
            self.gaps,
            self.reconnects,
            self.failed_joins
        )?;
        writeln!(f, "          received after the window's end: {}", in_words(self.latency_ms))?;
        match self.cpu_s_per_million {
            Some(cpu_s) => writeln!(
                f,
                "          at {cpu_s:.1} CPU-seconds of this client per million windows delivered"
            ),
            None => Ok(()),
        }
    }
}
