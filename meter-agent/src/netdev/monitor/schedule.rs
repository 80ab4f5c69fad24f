//! When the next complete dump is due.
//!
//! Pure: the caller tells the time.

use std::time::{Duration, Instant};

/// A dump waits until nothing has raised a doubt for this long …
const QUIET: Duration = Duration::from_millis(50);
/// … but after the first doubt not longer than this.
const LONGEST: Duration = Duration::from_millis(500);
/// Without any doubt: an insurance against what the kernel doesn't announce.
const REFRESH: Duration = Duration::from_secs(300);
/// The first wait after a dump that failed; doubled at each further one …
const RETRY: Duration = Duration::from_millis(100);
/// … up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// When the next complete dump is due.
#[derive(Debug)]
pub(super) struct Schedule {
    at: Instant,
    doubted: Option<Instant>,
    failures: u32,
}

impl Schedule {
    /// The first dump is due at once.
    pub(super) const fn new(now: Instant) -> Self {
        Self { at: now, doubted: None, failures: 0 }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.at <= now
    }

    /// How long the caller may sleep.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }

    /// Something has changed that only a dump can tell.
    pub(super) fn doubt(&mut self, now: Instant) {
        // A dump that failed is taken again anyway, and not sooner for a doubt.
        if self.failures > 0 {
            return;
        }
        let first = *self.doubted.get_or_insert(now);
        self.at = (now + QUIET).min(first + LONGEST);
    }

    /// A dump was taken. Returns how many had failed before it.
    pub(super) fn succeeded(&mut self, now: Instant) -> u32 {
        self.at = now + REFRESH;
        self.doubted = None;
        std::mem::take(&mut self.failures)
    }

    /// A dump has failed. Returns how many have in a row, this one included.
    pub(super) fn failed(&mut self, now: Instant) -> u32 {
        let wait = RETRY.saturating_mul(1 << self.failures.min(16)).min(LONGEST_RETRY);
        self.at = now + wait;
        self.doubted = None;
        self.failures = self.failures.saturating_add(1);
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_of_doubts_causes_one_dump_soon_after_it() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        assert!(schedule.is_due(start));
        assert_eq!(schedule.succeeded(start), 0);
        assert_eq!(schedule.wait(start), REFRESH);
        for ms in [0, 40, 80] {
            schedule.doubt(start + Duration::from_millis(ms));
        }
        assert_eq!(schedule.wait(start), Duration::from_millis(80) + QUIET);
        assert!(!schedule.is_due(start + Duration::from_millis(129)));
        assert!(schedule.is_due(start + Duration::from_millis(130)));
    }

    #[test]
    fn endless_doubts_do_not_put_off_the_dump_for_ever() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.succeeded(start);
        for ms in (0..1000).step_by(10) {
            schedule.doubt(start + Duration::from_millis(ms));
        }
        assert_eq!(schedule.wait(start), LONGEST);
    }

    #[test]
    fn failures_wait_longer_each_time_and_no_doubt_hurries_them() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let waits: Vec<u64> = (1..=10)
            .map(|n| {
                assert_eq!(schedule.failed(start), n);
                schedule.doubt(start);
                u64::try_from(schedule.wait(start).as_millis()).unwrap()
            })
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000]);
        assert_eq!(schedule.succeeded(start), 10);
        assert_eq!(schedule.wait(start), REFRESH);
    }
}
