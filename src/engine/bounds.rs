//! How much a query may hold in open windows, and what is said when it is too much.
//!
//! It is looked at after every batch, so that a query holds at most what one adds more than it may.

use std::iter::Sum;
use std::ops::Add;

use super::Settings;
use super::failure::Failure;

/// Where the machine does not say how much memory it has.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// What is held in open windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Groups, each pane's counted apart.
    pub groups: usize,
    /// Their keys and aggregates in memory, about.
    pub bytes: usize,
}

impl Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { groups: self.groups + other.groups, bytes: self.bytes + other.bytes }
    }
}

impl Sum for Size {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// What one query may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    groups: u64,
    bytes: u64,
}

impl Bounds {
    /// From the settings; without a figure of its own, a quarter of the machine's memory.
    pub(super) fn new(settings: &Settings) -> Self {
        let quarter = || memory().unwrap_or(UNKNOWN_MEMORY) / 4;
        Self { groups: settings.max_groups, bytes: settings.max_state_bytes.unwrap_or_else(quarter) }
    }

    /// How many bytes of memory.
    pub(super) fn bytes(self) -> u64 {
        self.bytes
    }

    /// Whether it is more than half of what may be.
    pub(super) fn is_half_of(self, held: Size) -> bool {
        held.groups as u64 > self.groups / 2 || held.bytes as u64 > self.bytes / 2
    }

    /// What of it is too much, if anything is.
    pub(super) fn exceeded_by(self, held: Size) -> Option<Excess> {
        let Size { groups, bytes } = held;
        if groups as u64 > self.groups {
            Some(Excess { held: format!("{groups} groups"), setting: "max_groups", limit: self.groups })
        } else if bytes as u64 > self.bytes {
            Some(Excess { held: format!("{bytes} bytes"), setting: "max_state_bytes", limit: self.bytes })
        } else {
            None
        }
    }
}

/// What is held is more than may be.
#[derive(Debug)]
pub(super) struct Excess {
    held: String,
    setting: &'static str,
    limit: u64,
}

impl Excess {
    /// Nothing is put aside.
    pub(super) fn stop(self) -> Failure {
        let Self { held, setting, limit } = self;
        Failure::Stop(format!(
            "{held} in open windows; [engine] {setting} allows {limit}. What is committed stays, and the query goes on \
             from there: raise it and start again, let on_full = 'spill' put them on disk, or change the query (fewer keys, \
             shorter windows)"
        ))
    }

    /// What could be put aside is.
    pub(super) fn stop_although_spilled(self) -> Failure {
        let Self { held, setting, limit } = self;
        Failure::Stop(format!(
            "{held} that cannot be put on disk: sessions, rows without a window, or what each open window takes by itself; \
             [engine] {setting} allows {limit}. What is committed stays, and the query goes on from there: raise it and start \
             again, or change the query"
        ))
    }
}

/// The bytes of memory that this process can use: the machine's, or its container's where that is less.
fn memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(of_machine);
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    // `max` where there is no limit.
    let container = container.and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(container).min()
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_named_with_the_setting_that_bounds_it() {
        let bounds =
            Bounds::new(&Settings { max_groups: 5, max_state_bytes: Some(100), ..Settings::default() });
        let said = |groups, bytes| match bounds.exceeded_by(Size { groups, bytes }).map(Excess::stop) {
            Some(Failure::Stop(reason)) => reason,
            _ => String::new(),
        };
        assert_eq!(said(5, 100), "");
        assert!(said(6, 0).starts_with("6 groups in open windows; [engine] max_groups allows 5."));
        assert!(said(1, 101).starts_with("101 bytes in open windows; [engine] max_state_bytes allows 100."));
    }

    #[test]
    fn the_machine_says_how_much_memory_it_has() {
        let meminfo = "MemTotal:       24682416 kB\nMemFree:         2374608 kB\n";
        assert_eq!((of_machine(meminfo), of_machine("MemFree: 1 kB")), (Some(24_682_416 * 1024), None));
        assert!(memory().is_none_or(|bytes| bytes > 1 << 20));
    }
}
