//! The page of faults names tests that are there.

use std::{fs, path::Path};

/// Appends every source file below a directory.
fn read_sources(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, text);
        } else {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_fault_has_the_tests_that_its_row_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = String::new();
    read_sources(&root.join("tests/kernel"), &mut sources);
    // What is the agent's own logic is tried beside it.
    read_sources(&root.join("meter-agent/src"), &mut sources);
    let page = fs::read_to_string(root.join("docs/faults.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.contains("| test |"));
    let mut named = 0;
    for row in rows {
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        for test in tests.split(", ").filter(|test| *test != "the same") {
            let name = test.trim_matches('`');
            assert!(sources.contains(&format!("#[test]\nfn {name}()")), "{row}: no test {name}");
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
}
