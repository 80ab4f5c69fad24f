//! The page of faults: each row names tests that are there.

use super::Finding;

/// The page.
pub(super) const PAGE: &str = "docs/faults.md";

/// Where its tests are: of the kernel ring, and of the agent's own logic.
const TESTS: [&str; 2] = ["tests/kernel/", "meter-agent/src/"];

/// What a row says that has the tests of the one above it.
const AS_ABOVE: &str = "the same";

/// Returns whether tests that the page names may be in this file.
pub(super) fn has_tests(file: &str) -> bool {
    file.ends_with(".rs") && TESTS.iter().any(|directory| file.starts_with(directory))
}

/// Checks the page against the text of all files that may have its tests.
pub(super) fn check(page: &str, sources: &str) -> Vec<Finding> {
    let find = |line, message| Finding { file: PAGE.to_owned(), line, message };
    let mut findings = Vec::new();
    let mut named = 0;
    for (line, row) in (1..).zip(page.lines()) {
        if !row.starts_with("| ") || row.contains("| test |") {
            continue;
        }
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        for test in tests.split(", ").filter(|test| *test != AS_ABOVE) {
            let name = test.trim_matches('`');
            if !sources.contains(&format!("#[test]\nfn {name}()")) {
                findings.push(find(line, format!("no test {name}")));
            }
            named += 1;
        }
    }
    if named == 0 {
        findings.push(find(1, "no row names a test".to_owned()));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_tests_that_are_there() {
        let sources = "#[test]\nfn first() {}\n\n#[test]\nfn second() {}\nfn third() {}\n";
        let page =
            "| what | test |\n|---|---|\n| a | `first`, `second` |\n| b | the same |\n| c | `third` |\n";
        let found = check(page, sources);
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["docs/faults.md:5: no test third"]
        );
        assert_eq!(check("nothing\n", sources).len(), 1);
        assert!(
            has_tests("tests/kernel/attach.rs")
                && !has_tests("docs/faults.md")
                && !has_tests("xtask/src/a.rs")
        );
    }
}
