//! How long something took, the last thousand times.

use std::time::Duration;

/// Durations that are kept: as many as dropwizard's reservoirs hold, for 99.9 % confidence with a 5 % margin.
const ROOM: usize = 1028;

/// The last durations.
#[derive(Debug, Clone, Default)]
pub struct Durations {
    kept: Vec<Duration>,
    next: usize,
}

impl Durations {
    /// Adds one, in the place of the oldest where there are many.
    pub fn add(&mut self, took: Duration) {
        if self.kept.len() < ROOM {
            self.kept.push(took);
        } else {
            self.kept[self.next] = took;
            self.next = (self.next + 1) % ROOM;
        }
    }

    /// Returns them as they are distributed.
    #[must_use]
    pub fn distribution(&self) -> Distribution {
        let mut sorted: Vec<f64> = self.kept.iter().map(|took| took.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        Distribution { sorted }
    }

    /// Returns them in nanoseconds, in order.
    #[must_use]
    pub fn nanoseconds(&self) -> Vec<i64> {
        let mut all: Vec<i64> =
            self.kept.iter().map(|took| i64::try_from(took.as_nanos()).unwrap_or(i64::MAX)).collect();
        all.sort_unstable();
        all
    }
}

/// How durations are distributed, in milliseconds. Of none, everything is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    sorted: Vec<f64>,
}

#[expect(clippy::cast_precision_loss, reason = "never more than a thousand")]
impl Distribution {
    /// Returns the shortest.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.sorted.first().copied().unwrap_or_default()
    }

    /// Returns the longest.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.sorted.last().copied().unwrap_or_default()
    }

    /// Returns the mean.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.sorted.is_empty() { 0.0 } else { self.sorted.iter().sum::<f64>() / self.sorted.len() as f64 }
    }

    /// Returns the standard deviation of the sample.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        if self.sorted.len() < 2 {
            return 0.0;
        }
        let mean = self.mean();
        let squares: f64 = self.sorted.iter().map(|value| (value - mean).powi(2)).sum();
        (squares / (self.sorted.len() - 1) as f64).sqrt()
    }

    /// Returns what this share (0 to 1000 thousandths) is not longer than, between two durations in proportion.
    #[must_use]
    pub fn quantile(&self, thousandths: usize) -> f64 {
        let position = thousandths * (self.sorted.len() + 1);
        let (index, rest) = (position / 1000, position % 1000);
        if index == 0 {
            return self.min();
        }
        match (self.sorted.get(index - 1), self.sorted.get(index)) {
            (Some(lower), Some(upper)) => lower + (upper - lower) * rest as f64 / 1000.0,
            _ => self.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Durations, ROOM};

    #[test]
    fn of_none_everything_is_0() {
        let none = Durations::default().distribution();
        assert_eq!(
            [none.min(), none.max(), none.mean(), none.deviation(), none.quantile(500), none.quantile(999)],
            [0.0; 6]
        );
    }

    #[test]
    fn distribution_is_as_dropwizards_tests_have_it() {
        let mut durations = Durations::default();
        for milliseconds in [5, 1, 2, 3, 4] {
            durations.add(Duration::from_millis(milliseconds));
        }
        let got = durations.distribution();
        assert_eq!((got.min(), got.max(), got.mean()), (1.0, 5.0, 3.0));
        assert!((got.deviation() - 1.581_138_8).abs() < 1e-6);
        for (thousandths, expected) in [(500, 3.0), (750, 4.5), (950, 5.0), (980, 5.0), (999, 5.0), (0, 1.0)]
        {
            assert!((got.quantile(thousandths) - expected).abs() < 1e-9, "{thousandths}");
        }
        assert_eq!(durations.nanoseconds(), [1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000]);
    }

    #[test]
    fn only_the_last_are_kept() {
        let mut durations = Durations::default();
        for milliseconds in 1..=2000 {
            durations.add(Duration::from_millis(milliseconds));
        }
        let got = durations.distribution();
        assert_eq!((durations.nanoseconds().len(), got.min(), got.max()), (ROOM, 973.0, 2000.0));
    }
}
