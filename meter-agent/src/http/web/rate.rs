//! How many requests are answered in a time: a bucket of tokens, one for each request.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// `rate_limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// The time in which a token comes.
    pub(super) interval: Duration,
    /// Tokens that the bucket holds, and has at the beginning.
    pub(super) burst: u32,
}

/// A bucket.
#[derive(Debug)]
pub(super) struct Limiter {
    rate: Rate,
    /// When the bucket would be full; the further ahead the fewer tokens it has.
    full: Mutex<Instant>,
}

impl Limiter {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, full: Mutex::new(Instant::now()) }
    }

    /// Takes a token, if there is one.
    pub(super) fn allow(&self) -> bool {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> bool {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*full).max(now).checked_add(self.rate.interval);
        let most = self.rate.interval.checked_mul(self.rate.burst).and_then(|most| now.checked_add(most));
        // Beyond what a clock can say it is as good as for ever.
        let is_there = next.is_some_and(|next| most.is_none_or(|most| next <= most));
        if let (true, Some(next)) = (is_there, next) {
            *full = next;
        }
        is_there
    }
}

/// Reads a duration as Go writes it: numbers with units, such as `1m30s` or `0.5s`, or `0`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let units = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(units);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::{Duration, Instant, Limiter, Rate, duration};

    #[test]
    fn burst_is_answered_and_then_one_for_each_interval() {
        let limiter = Limiter::new(Rate { interval: Duration::from_secs(2), burst: 3 });
        let start = Instant::now();
        let at = |seconds: u64| limiter.allow_at(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(0), at(0), at(0)], [true, true, true, false]);
        assert_eq!([at(2), at(2), at(3), at(4)], [true, false, false, true]);
        assert_eq!([at(100), at(100), at(100), at(100)], [true, true, true, false], "no more than the burst");
        let none = Limiter::new(Rate { interval: Duration::from_secs(1), burst: 0 });
        assert!(!none.allow_at(start + Duration::from_secs(9)));
        let never = Limiter::new(Rate { interval: Duration::MAX, burst: u32::MAX });
        assert!(!never.allow_at(start));
    }

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1s", Some(1000)),
            ("1m30s", Some(90_000)),
            ("0.5s", Some(500)),
            ("250ms", Some(250)),
            ("1h", Some(3_600_000)),
            ("", None),
            ("1", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1..5s", None),
        ] {
            assert_eq!(duration(text), expected.map(Duration::from_millis), "{text}");
        }
    }
}
