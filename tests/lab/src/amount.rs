//! How much of something a test does: more where somebody asks, by the test's own variable, and less on a machine that is
//! emulated, by [`SLOWER`].

use std::env;

/// The environment variable with what the usual amounts are divided by, on machines that are that much slower.
pub const SLOWER: &str = "METER_TEST_SLOWER";

/// Returns how many times a test does something: what the environment variable of this name says, or the usual number,
/// divided by [`SLOWER`] but not below the least that still proves something.
///
/// # Panics
///
/// When one of the two is not a number.
#[must_use]
pub fn amount(variable: &str, usual: usize, least: usize) -> usize {
    number(variable).unwrap_or_else(|| (usual / slower() as usize).max(least))
}

/// Returns how many times slower than usual this machine is, by [`SLOWER`]: what traffic's pauses are multiplied by.
///
/// # Panics
///
/// When the variable is not a number.
#[must_use]
pub fn slower() -> u32 {
    u32::try_from(number(SLOWER).unwrap_or(1).max(1)).expect(SLOWER)
}

fn number(variable: &str) -> Option<usize> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}
