//! What a guest's console says of the tests that ran there.

use std::collections::BTreeSet;

/// Lines of a console that are repeated where a guest failed: libtest's list of failures and what they said, mostly.
const LAST: usize = 100;

/// Options of libtest whose value is a word of its own, and no name of a test.
const WITH_VALUE: [&str; 7] =
    ["--skip", "--test-threads", "--color", "--format", "--logfile", "--shuffle-seed", "-Z"];

/// What was to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Names of tests, or parts of them.
    names: Vec<String>,
    /// They are whole names (`--exact`).
    are_whole: bool,
}

impl Wanted {
    /// Reads the arguments of a test binary.
    pub(super) fn by(arguments: &[&str]) -> Self {
        let mut wanted = Self::default();
        let mut words = arguments.iter();
        while let Some(&word) = words.next() {
            if WITH_VALUE.contains(&word) {
                words.next();
            } else if word == "--exact" {
                wanted.are_whole = true;
            } else if !word.starts_with('-') {
                wanted.names.push(word.to_owned());
            }
        }
        wanted
    }

    fn is(&self, name: &str, test: &str) -> bool {
        if self.are_whole { test == name } else { test.contains(name) }
    }
}

/// Returns what was to run and didn't, by libtest's own account: it takes a name that no test has for success.
pub(super) fn not_run(console: &str, wanted: &Wanted) -> Option<String> {
    if console.lines().any(|line| line.starts_with("test result: ok. 0 passed")) {
        return Some("no test ran".to_owned());
    }
    let tests = || console.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
    let is_listed = |name: &str| tests().any(|(test, _)| wanted.is(name, test));
    // Where libtest is to be quiet it lists none.
    let is_quiet = tests().next().is_none();
    let unknown: Vec<&str> =
        wanted.names.iter().map(String::as_str).filter(|name| !is_quiet && !is_listed(name)).collect();
    (!unknown.is_empty()).then(|| format!("no test ran that is called {}", unknown.join(" or ")))
}

/// Returns the skips: the test, what it lacks, and why.
pub(super) fn skips(console: &str) -> BTreeSet<String> {
    let skips = console.lines().filter_map(|line| line.trim_end().split_once("skipped "));
    skips.map(|(_, skip)| skip.to_owned()).collect()
}

/// Returns what of a skip is the same on every kernel: the test and what it wants, without what this kernel is. `None`
/// for a skip that is not the kernel's: `cargo xtask test` sets up what it wants.
pub(super) fn what_lacks(skip: &str) -> Option<&str> {
    skip.split(" (requires").next().filter(|lack| !lack.contains("(cargo xtask"))
}

/// Returns the end of a console.
pub(super) fn end(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(LAST)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::{Wanted, end, not_run, skips, what_lacks};

    #[test]
    fn names_are_what_no_option_takes() {
        let arguments = ["attach::", "--skip", "slow", "a::b", "-Z", "unstable-options", "--test-threads=1"];
        let names = ["attach::", "a::b"].map(str::to_owned).to_vec();
        assert_eq!(Wanted::by(&arguments), Wanted { names, are_whole: false });
    }

    #[test]
    fn names_that_no_test_has_are_no_success() {
        let none = "running 0 tests\r\n\r\ntest result: ok. 0 passed; 0 failed; 0 ignored\r\n";
        assert_eq!(not_run(none, &Wanted::default()), Some("no test ran".to_owned()));
        let one = "running 1 test\r\ntest a::b ... skipped a::b: TCX\r\nok\r\n\r\ntest result: ok. 1 passed; 0 failed\r\n";
        assert_eq!(not_run(one, &Wanted::default()), None);
        assert_eq!(not_run(one, &Wanted::by(&["a::"])), None);
        let said = not_run(one, &Wanted::by(&["a::", "b::c", "skipped", "passed"]));
        assert_eq!(said, Some("no test ran that is called b::c or skipped or passed".to_owned()));
        assert_eq!(not_run(one, &Wanted::by(&["--exact", "a::b"])), None);
        let said = not_run(one, &Wanted::by(&["--exact", "a::b", "a::"]));
        assert_eq!(said, Some("no test ran that is called a::".to_owned()));
        let quiet = "running 1 test\r\n.\r\ntest result: ok. 1 passed";
        assert_eq!(not_run(quiet, &Wanted::by(&["a::"])), None);
    }

    #[test]
    fn skips_are_found_in_the_midst_of_a_line() {
        let console = "test a ... skipped a: missing: TCX\r\nok\r\nskipped b: missing: vlan\r\n";
        let expected = ["a: missing: TCX", "b: missing: vlan"].map(str::to_owned);
        assert_eq!(skips(console), expected.into());
    }

    #[test]
    fn the_same_skip_on_two_kernels_is_one() {
        let on = |release: &str| format!("a::test: missing: TCX (requires Linux >= 6.6, this is {release})");
        assert_eq!(what_lacks(&on("5.10.0")), what_lacks(&on("6.1.0")));
        assert_eq!(
            what_lacks("a::test: missing: a kernel with vlan"),
            Some("a::test: missing: a kernel with vlan")
        );
        assert_eq!(what_lacks("a::test: missing: prometheus (cargo xtask setup)"), None);
    }

    #[test]
    fn the_end_is_the_last_lines() {
        let console: String = (0..250).map(|n| format!("{n}\r\n")).collect();
        assert_eq!(end(&console).lines().next(), Some("150"));
        assert_eq!(end("one\ntwo\n"), "one\ntwo");
    }
}
