//! One run of a query, from a recovery to the next: its partitions side by side, and how they close together.
//!
//! Partition tasks push records under their own partition's lock and publish how far they are in atomics, so that
//! nobody waits for a partition at work except to close it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datafusion::error::DataFusionError;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::bounds::{Bounds, Size};
use super::closing::{self, Closed, Closer, Start, total};
use super::compile::CompiledQuery;
use super::decode::Decoded;
use super::early::{Look, cuts_of};
use super::failure::Failure;
use super::partition::{Partition, Pushed, TimeRules};
use super::seldom::Seldom;
use super::spill::Spill;
use super::watermark;
use crate::log::{PartitionRange, Record, failpoint};
use crate::reaction::checkpoint::{Gap, Position};
use crate::reaction::figures::Figures;
use crate::reaction::time::NS_PER_MS;
use crate::sync::lock;

/// How soon to look again when a window should be over and its partition's end is not proved yet.
pub(super) const PROOF_WAIT: Duration = Duration::from_millis(2);
/// How long a read waits when no window is open.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Positions are committed at the latest after this time, or after [`COMMIT_ROWS`], also without results.
pub(super) const COMMIT_EVERY: Duration = Duration::from_secs(5);
const COMMIT_ROWS: u64 = 1_000_000;
/// A partition this far ahead of the slowest, in event time, is paused: open panes stay bounded.
const MAX_SKEW_NS: i64 = 10_000 * NS_PER_MS;
/// Rows without a window that may wait for a commit in one partition; then it is not read on.
const MAX_PENDING: u64 = 100_000;
/// Stands for "no watermark yet" in an atomic.
const NONE: i64 = i64::MIN;

/// One run of a query.
pub(super) struct Run {
    pub(super) query: Arc<CompiledQuery>,
    pub(super) gap: Option<Gap>,
    /// Idle proofs before this are not believed.
    hold_until_ms: i64,
    /// Bad records are told.
    pub(super) bad_told: Seldom,

    lanes: Vec<Lane>,
    /// Locked before partitions, never after.
    closing: Mutex<Closing>,
    /// A partition moved.
    pub(super) progress: Notify,
    /// When the earliest open window can be over, nanoseconds of the wall clock; `i64::MAX` when none is open.
    wake_ns: AtomicI64,
    /// `wake_ns` became earlier.
    pub(super) earlier: Notify,
    /// What the closer holds.
    held: HeldHere,
    is_committing: AtomicBool,
    /// Where windows are put aside.
    spill: Option<Arc<Spill>>,
}

/// One partition, and what others may know of it without waiting for it.
struct Lane {
    partition: Mutex<Partition>,
    place: closing::Lane,
    next: AtomicI64,
    watermark: AtomicI64,
    accepted: AtomicU64,
    pending: AtomicU64,
    held: HeldHere,
}

/// What is held in one place, told without a lock.
#[derive(Default)]
struct HeldHere {
    groups: AtomicUsize,
    bytes: AtomicUsize,
}

impl HeldHere {
    fn store(&self, held: Size) {
        self.groups.store(held.groups, Ordering::Relaxed);
        self.bytes.store(held.bytes, Ordering::Relaxed);
    }

    fn load(&self) -> Size {
        let load = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        Size { groups: load(&self.groups), bytes: load(&self.bytes) }
    }
}

struct Closing {
    closer: Closer,
    /// No window that ends later is closed: another version emits those.
    stop_at: Option<i64>,
    /// Of the closer's `counted`, what is committed.
    committed: u64,
    /// By output: rows accepted in this run when its open windows were looked at last.
    looked_at: BTreeMap<usize, u64>,
    /// Why less is held than was taken in, so that nothing may be committed any more.
    lost: Option<String>,
}

/// What the last commit covered.
pub(super) struct Committed {
    pub(super) at: Instant,
    /// Rows accepted in this run.
    pub(super) rows: u64,
    pub(super) positions: BTreeMap<String, Vec<Position>>,
}

impl Committed {
    pub(super) fn is_due(&self) -> bool {
        self.at.elapsed() >= COMMIT_EVERY
    }
}

impl Run {
    pub(super) fn new(
        query: Arc<CompiledQuery>,
        closer: Closer,
        rules: TimeRules,
        start: &Start,
        hold_until_ms: i64,
        spill: Option<Arc<Spill>>,
    ) -> Result<Self, Failure> {
        let lanes = start.lanes.iter().map(|place| {
            let partition = Partition::new(Arc::clone(&query), *place, rules, start)?;
            Ok::<_, Failure>(Lane {
                partition: Mutex::new(partition),
                place: *place,
                next: AtomicI64::new(place.from.resume),
                watermark: AtomicI64::new(place.from.watermark.unwrap_or(NONE)),
                accepted: AtomicU64::new(0),
                pending: AtomicU64::new(0),
                held: HeldHere::default(),
            })
        });
        let held = HeldHere::default();
        held.store(closer.size());
        Ok(Self {
            lanes: lanes.collect::<Result<_, _>>()?,
            held,
            is_committing: AtomicBool::new(false),
            closing: Mutex::new(Closing {
                committed: closer.counted(),
                closer,
                stop_at: None,
                looked_at: BTreeMap::new(),
                lost: None,
            }),
            spill,
            gap: start.gap,
            query,
            hold_until_ms,
            bad_told: Seldom::default(),
            progress: Notify::new(),
            wake_ns: AtomicI64::new(i64::MAX),
            earlier: Notify::new(),
        })
    }

    /// Takes in decoded records of one partition; see [`Partition::take`].
    pub(super) fn take(
        &self,
        index: usize,
        records: &[Record],
        decoded: &Decoded,
        read_ms: i64,
    ) -> Result<Pushed, Failure> {
        let lane = &self.lanes[index];
        let mut partition = lock(&lane.partition);
        let pushed = partition.take(records, decoded, read_ms)?;
        lane.held.store(partition.size());
        Ok(pushed)
    }

    /// What all partitions and the closer hold in the memory of open windows.
    fn in_memory(&self) -> Size {
        self.lanes.iter().map(|lane| lane.held.load()).sum::<Size>() + self.held.load()
    }

    /// Sees to it that no more is held than may be: puts windows aside, or says why the query stops.
    pub(super) fn keep_within(&self, bounds: Bounds) -> Result<(), Failure> {
        let Some(excess) = bounds.exceeded_by(self.in_memory()) else { return Ok(()) };
        let Some(spill) = &self.spill else { return Err(excess.stop()) };
        blocking(|| {
            // Whoever finds windows closing waits for that: then there may be room.
            let mut closing = lock(&self.closing);
            if closing.lost.is_some() || bounds.exceeded_by(self.in_memory()).is_none() {
                return Ok(());
            }
            let left = self.put_aside(&mut closing, spill).map_err(|error| {
                let failure = Failure::from(error);
                if let Failure::Stop(reason) = &failure {
                    closing.lost = Some(reason.clone());
                }
                failure
            })?;
            let bytes = spill.used();
            tracing::debug!(query = self.query.name, bytes, "open windows are put on disk");
            bounds.exceeded_by(left).map_or(Ok(()), |excess| Err(excess.stop_although_spilled()))
        })
    }

    /// Returns what is left, apart from what other partitions' readers take in meanwhile: they look for themselves.
    fn put_aside(&self, closing: &mut Closing, spill: &Arc<Spill>) -> Result<Size, DataFusionError> {
        let mut left = Size::default();
        for lane in &self.lanes {
            let mut partition = lock(&lane.partition);
            partition.spill(spill)?;
            left = left + partition.size();
            lane.held.store(partition.size());
        }
        closing.closer.spill(spill)?;
        self.held.store(closing.closer.size());
        Ok(left + closing.closer.size())
    }

    /// How many bytes of open windows are on disk.
    pub(super) fn spilled_bytes(&self) -> u64 {
        self.spill.as_ref().map_or(0, |spill| spill.used())
    }

    /// What is on disk is not needed any more: the run is over.
    pub(super) fn forget_spilled(&self) {
        if let Some(spill) = &self.spill {
            lock(&self.closing).lost.get_or_insert_with(|| "the run of the query is over".to_owned());
            spill.clear();
        }
    }

    /// A read of one partition is done: it went up to `next`, and proved the end or not.
    pub(super) fn read_to(&self, index: usize, next: i64, complete_until_ms: Option<i64>) {
        let lane = &self.lanes[index];
        let earliest_end = {
            let mut partition = lock(&lane.partition);
            partition.skip_to(next);
            if let Some(complete_until_ms) = complete_until_ms.filter(|until| *until >= self.hold_until_ms) {
                partition.prove_end(complete_until_ms);
            }
            lane.next.store(partition.next(), Ordering::Release);
            lane.watermark.store(partition.watermark().unwrap_or(NONE), Ordering::Release);
            lane.accepted.store(partition.account().accepted, Ordering::Relaxed);
            lane.pending.store(partition.pending(), Ordering::Relaxed);
            partition.earliest_end()
        };
        if let Some(end) = earliest_end {
            self.wake_by(end);
        }
        self.progress.notify_one();
    }

    /// Whether everything that was accounted before the start has been read again.
    pub(super) fn is_rebuilt(&self) -> bool {
        self.lanes.iter().all(|lane| lane.next.load(Ordering::Acquire) >= lane.place.from.seen)
    }

    pub(super) fn watermark(&self) -> Option<i64> {
        watermark::minimum(self.lanes.iter().map(Lane::watermark))
    }

    /// Whether this partition has to wait: it is far ahead of the slowest in event time, or much of it waits for a
    /// commit, or what is held does.
    pub(super) fn has_to_wait(&self, index: usize, now_ns: i64, bounds: Bounds) -> bool {
        if self.lanes[index].pending.load(Ordering::Relaxed) > MAX_PENDING {
            return true;
        }
        // Windows that are over stay until the commit under way is done, which a log that stalls may hold for long.
        if self.is_committing.load(Ordering::Relaxed) && bounds.is_half_of(self.in_memory()) {
            return true;
        }
        match (self.lanes[index].watermark(), self.watermark()) {
            // Nobody is ahead because of a sender whose clock is.
            (Some(own), Some(slowest)) => own.min(now_ns).saturating_sub(slowest) > MAX_SKEW_NS,
            _ => false,
        }
    }

    /// A commit is under way until what is returned is dropped.
    pub(super) fn committing(&self) -> impl Drop + use<'_> {
        self.is_committing.store(true, Ordering::Relaxed);
        Committing(&self.is_committing)
    }

    /// Closes what is over, and looks at what is open for these outputs, whose sinks want early results now. `None` when
    /// there is nothing to commit.
    pub(super) fn close(&self, committed: &Committed, early: &[usize]) -> Result<Option<Closed>, Failure> {
        if self.spilled_bytes() == 0 {
            return self.close_now(committed, early);
        }
        blocking(|| {
            loop {
                let before = lock(&self.closing).closer.emitted();
                let closed = self.close_now(committed, early)?;
                // A window of which nothing is told is over, and the next one may be.
                if closed.is_some() || lock(&self.closing).closer.emitted() == before {
                    return Ok(closed);
                }
            }
        })
    }

    /// The end of the first window that is open.
    fn first_end(&self, closing: &Closing) -> Option<i64> {
        let of_lanes = self.lanes.iter().filter_map(|lane| lock(&lane.partition).earliest_end());
        of_lanes.chain(closing.closer.next_end()).min()
    }

    fn close_now(&self, committed: &Committed, early: &[usize]) -> Result<Option<Closed>, Failure> {
        let boundary = self.watermark().and_then(|ns| self.query.boundary_at_or_before(ns));
        let mut closing = lock(&self.closing);
        if let Some(reason) = &closing.lost {
            return Err(Failure::Stop(reason.clone()));
        }
        // What is on disk is put together window by window: all that one commit writes is in memory together.
        let first = if self.spilled_bytes() > 0 { self.first_end(&closing) } else { None };
        let boundary = boundary.map(|boundary| first.map_or(boundary, |first| boundary.min(first)));
        let stops = closing.stop_at.is_some() && boundary >= closing.stop_at;
        let boundary = if stops { closing.stop_at } else { boundary };
        let is_over = boundary > closing.closer.emitted();
        let sum = |of: fn(&Lane) -> &AtomicU64| -> u64 {
            self.lanes.iter().map(|lane| of(lane).load(Ordering::Relaxed)).sum()
        };
        let accepted = sum(|lane| &lane.accepted);
        let is_due = stops || committed.is_due() || accepted.saturating_sub(committed.rows) >= COMMIT_ROWS;
        // As long as nothing was read, open windows are what they were.
        let unseen = early.iter().filter(|output| closing.looked_at.get(output) != Some(&accepted));
        let early: Vec<usize> = unseen.copied().collect();
        if !is_over && !is_due && early.is_empty() && sum(|lane| &lane.pending) == 0 {
            return Ok(None);
        }
        let boundary = if is_over { boundary } else { closing.closer.emitted() };
        let (mut handed, mut open) = (Vec::with_capacity(self.lanes.len()), Vec::new());
        let cuts = cuts_of(&self.query, &early);
        for lane in &self.lanes {
            let mut partition = lock(&lane.partition);
            handed.push(partition.hand_over(boundary)?);
            open.extend(partition.look(&cuts)?);
            lane.pending.store(0, Ordering::Relaxed);
            lane.held.store(partition.size());
            drop(partition);
            failpoint::hit("engine.hand_over");
        }
        let mut closed = closing.closer.close(handed, boundary)?;
        if !early.is_empty() {
            let look = Look { outputs: &early, until: closing.stop_at };
            closing.closer.look(open, look, &mut closed)?;
            closing.looked_at.extend(early.into_iter().map(|output| (output, accepted)));
        }
        self.held.store(closing.closer.size());
        self.wake_at_earliest(closing.closer.next_end());
        let figures = closed.checkpoint.figures;
        if !figures.is_conserved() {
            return Err(Failure::Stop(format!("rows are not conserved, this is a defect: {figures:?}")));
        }
        let moved = closed.checkpoint.sources != committed.positions;
        Ok((stops || !closed.is_empty() || (moved && is_due)).then_some(closed))
    }

    /// Closes no window that ends after what `choose` answers, which is told the end of the last window closed. `None`
    /// takes that back.
    pub(super) fn stop_at(&self, choose: impl FnOnce(Option<i64>) -> Option<i64>) -> Option<i64> {
        let mut closing = lock(&self.closing);
        closing.stop_at = choose(closing.closer.emitted());
        self.progress.notify_one();
        closing.stop_at
    }

    /// Whether everything up to where it stops has been closed.
    pub(super) fn is_at_its_stop(&self) -> bool {
        let closing = lock(&self.closing);
        closing.stop_at.is_some() && closing.closer.emitted() >= closing.stop_at
    }

    /// Everything closed so far is in the log.
    pub(super) fn committed(&self, counted: u64) {
        lock(&self.closing).committed = counted;
    }

    /// One consistent cut: nothing is handed over while the partitions are read.
    pub(super) fn figures(&self) -> Figures {
        let closing = lock(&self.closing);
        let mut accounts = Vec::with_capacity(self.lanes.len());
        let mut open = closing.closer.counted() - closing.committed + closing.closer.open();
        for lane in &self.lanes {
            let partition = lock(&lane.partition);
            accounts.push(partition.account());
            open += partition.open();
        }
        closing.closer.figures(total(accounts), open, closing.committed)
    }

    /// Records not read yet; `ranges` are, by source, those of its topic's partitions.
    pub(super) fn lag(&self, ranges: &[Vec<PartitionRange>]) -> i64 {
        let lag = |lane: &Lane| {
            let range = ranges.get(lane.place.source)?.get(lane.place.partition as usize)?;
            Some((range.end - lane.next.load(Ordering::Acquire)).max(0))
        };
        self.lanes.iter().filter_map(lag).sum()
    }

    /// A topic that has more partitions than are read; `ranges` as for [`Run::lag`].
    pub(super) fn has_grown(&self, ranges: &[Vec<PartitionRange>]) -> Option<&str> {
        let lanes = |source| self.lanes.iter().filter(|lane| lane.place.source == source).count();
        let grown = (0..ranges.len()).find(|&source| lanes(source) < ranges[source].len())?;
        Some(&self.query.sources.get(grown)?.table.topic)
    }

    /// Ends when every partition has been read up to the end of its range.
    pub(super) async fn reach(&self, ranges: &[Vec<PartitionRange>]) {
        while self.lag(ranges) > 0 {
            tokio::time::sleep(PROOF_WAIT).await;
        }
    }

    /// A window may end earlier than the readers wait for.
    fn wake_by(&self, end_ns: i64) {
        let wake_ns = end_ns.saturating_add(self.query.delay_ns());
        if self.wake_ns.fetch_min(wake_ns, Ordering::AcqRel) > wake_ns {
            self.earlier.notify_waiters();
        }
    }

    /// Forgets the windows just closed. What a partition opens meanwhile is either seen here or told by `wake_by`
    /// after the reset.
    fn wake_at_earliest(&self, held: Option<i64>) {
        self.wake_ns.store(i64::MAX, Ordering::Release);
        if let Some(end) = held {
            self.wake_by(end);
        }
        for lane in &self.lanes {
            let end = lock(&lane.partition).earliest_end();
            if let Some(end) = end {
                self.wake_by(end);
            }
        }
    }

    /// How long a read may wait: until the earliest open window can be over.
    pub(super) fn read_wait(&self, now_ns: i64) -> Duration {
        let ahead_ns = self.wake_ns.load(Ordering::Acquire).saturating_sub(now_ns);
        let ahead = u64::try_from(ahead_ns).map_or(Duration::ZERO, Duration::from_nanos);
        // Proofs are in whole milliseconds: one more, so that the first look after the end succeeds.
        (ahead.saturating_add(Duration::from_millis(1))).clamp(PROOF_WAIT, IDLE_WAIT)
    }
}

/// Work that may take long: the thread's other tasks go elsewhere meanwhile, where there are several threads.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

struct Committing<'a>(&'a AtomicBool);

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Lane {
    fn watermark(&self) -> Option<i64> {
        Some(self.watermark.load(Ordering::Acquire)).filter(|ns| *ns != NONE)
    }
}
