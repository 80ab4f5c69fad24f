//! Rates of events as dropwizard's meters have them: moving averages, weighted exponentially.

use std::time::Duration;

/// How often the averages move on.
pub const TICK: Duration = Duration::from_secs(5);

/// Minutes after which an event weighs a third (1/e) of a new one.
const MINUTES: [f64; 3] = [1.0, 5.0, 15.0];

/// The rates of one kind of event, in events per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Events before the first tick, and its time since the Unix epoch.
    origin: Option<(u64, Duration)>,
    /// Events before the last tick.
    last: u64,
    /// Over one, five and fifteen minutes; none before the second tick.
    averages: Option<[f64; 3]>,
}

impl Rates {
    /// Moves on by [`TICK`]. `count` is how many events there have been.
    pub fn tick(&mut self, count: u64, now: Duration) {
        if self.origin.is_none() {
            // What counts on in pinned maps has a past that is no rate of this agent.
            self.origin = Some((count, now));
            self.last = count;
            return;
        }
        let new = events(count.saturating_sub(self.last)) / TICK.as_secs_f64();
        self.last = count;
        self.averages = Some(match self.averages {
            None => [new; 3],
            Some(mut averages) => {
                for (average, minutes) in averages.iter_mut().zip(MINUTES) {
                    let weight = 1.0 - (-TICK.as_secs_f64() / 60.0 / minutes).exp();
                    *average += weight * (new - *average);
                }
                averages
            }
        });
    }

    /// Returns the rates over one, five and fifteen minutes.
    #[must_use]
    pub fn averages(&self) -> [f64; 3] {
        self.averages.unwrap_or_default()
    }

    /// Returns the rate since the first tick.
    #[must_use]
    pub fn mean(&self, count: u64, now: Duration) -> f64 {
        let Some((first, since)) = self.origin else { return 0.0 };
        let elapsed = now.saturating_sub(since).as_secs_f64();
        if elapsed > 0.0 { events(count.saturating_sub(first)) / elapsed } else { 0.0 }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate of more than 2^53 events loses nothing that matters")]
fn events(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Rates;

    const START: Duration = Duration::from_secs(1_000);

    fn is_close(got: [f64; 3], expected: [f64; 3]) -> bool {
        got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6)
    }

    #[test]
    fn nothing_is_a_rate_before_the_second_tick() {
        let mut rates = Rates::default();
        assert_eq!((rates.averages(), rates.mean(7, START)), ([0.0; 3], 0.0));
        rates.tick(1_000_000, START);
        assert_eq!((rates.averages(), rates.mean(1_000_000, START)), ([0.0; 3], 0.0));
        rates.tick(1_000_050, START + Duration::from_secs(5));
        assert_eq!(rates.averages(), [10.0; 3]);
        assert!((rates.mean(1_000_050, START + Duration::from_secs(10)) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn averages_are_those_of_dropwizards_own_tests() {
        // Three events in the first five seconds, none in the minute that follows.
        let mut rates = Rates::default();
        rates.tick(0, START);
        rates.tick(3, START);
        assert!(is_close(rates.averages(), [0.6; 3]));
        for _ in 0..12 {
            rates.tick(3, START);
        }
        assert!(
            is_close(rates.averages(), [0.220_727_66, 0.491_238_45, 0.561_304_19]),
            "{:?}",
            rates.averages()
        );
    }

    #[test]
    fn count_that_falls_is_no_event() {
        let mut rates = Rates::default();
        for count in [10, 5, 4] {
            rates.tick(count, START);
        }
        assert_eq!((rates.averages(), rates.mean(4, START + Duration::from_secs(1))), ([0.0; 3], 0.0));
    }
}
