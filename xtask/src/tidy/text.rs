//! Lines of any text file, and the names of files.

use super::Finding;

/// Lines beyond which a source file is pointed out.
pub(crate) const LONG: usize = 400;

/// Words of notes to oneself; written in two halves, so that this file has none.
const NOTES: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];

/// Directories of one machine, likewise.
const PLACES: [&str; 3] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

/// What a conflict leaves behind, at the beginning of a line.
const CONFLICTS: [&str; 3] = [concat!("<<<", "<<<<"), concat!("===", "===="), concat!(">>>", ">>>>")];

/// Names of modules that say nothing: what is in them lacks a noun.
const EMPTY_NAMES: [&str; 5] = ["common", "helpers", "misc", "types", "utils"];

/// Directories whose files are recorded, or copied from elsewhere, and stay as they are.
const AS_RECORDED: [&str; 3] = ["Cargo.lock", "LICENSE", "tests/fixtures/"];

/// Checks the lines of a file. `subcommands` are those of `cargo xtask`.
pub(crate) fn check(file: &str, content: &str, subcommands: &[String]) -> Vec<Finding> {
    if AS_RECORDED.iter().any(|recorded| file.starts_with(recorded)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(content.lines()) {
        let mut find = |message: String| {
            findings.push(Finding { file: file.to_owned(), line: number, message });
        };
        for note in NOTES {
            if words(line).any(|word| word == note) {
                find(format!("{note}: do it, or say in a sentence what does not work"));
            }
        }
        for place in PLACES {
            if line.contains(place) {
                find(format!("{place} is a directory of somebody's machine"));
            }
        }
        if CONFLICTS.iter().any(|mark| line.strip_prefix(mark).is_some_and(|rest| !rest.starts_with('='))) {
            find("a conflict of a merge".to_owned());
        }
        if line.ends_with([' ', '\t', '\r']) && !file.ends_with(".patch") {
            find("white space at the end of the line".to_owned());
        }
        if line.contains('\t') && file.ends_with(".rs") {
            find("a tab: write it as \\t".to_owned());
        }
        // Test programs of xtask itself spell wrong ones.
        if !file.starts_with("xtask/") {
            for name in named_subcommands(line) {
                if !subcommands.iter().any(|subcommand| subcommand == name) {
                    find(format!("there is no cargo xtask {name}"));
                }
            }
        }
    }
    if !content.is_empty() && !content.ends_with('\n') {
        let line = content.lines().count();
        findings.push(Finding {
            file: file.to_owned(),
            line,
            message: "no end of line at the end of the file".to_owned(),
        });
    }
    findings
}

/// Checks how source files are called.
pub(crate) fn check_names(files: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        let mut find = |message: String| findings.push(Finding { file: file.clone(), line: 1, message });
        let (directory, name) = file.rsplit_once('/').unwrap_or(("", file));
        let stem = name.trim_end_matches(".rs");
        // A test target's shared modules have no file beside their directory to be declared in.
        if stem == "mod" && !file.starts_with("tests/") {
            find(format!("a module is {directory}.rs beside its directory, not {name}"));
        }
        if EMPTY_NAMES.contains(&stem) {
            find(format!("{stem} says nothing: which noun is missing?"));
        }
    }
    findings
}

/// Finds what a line calls by `cargo xtask`.
fn named_subcommands(line: &str) -> impl Iterator<Item = &str> {
    line.split("cargo xtask ").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| c != '-' && !c.is_ascii_lowercase()).unwrap_or(rest.len());
        // A sentence may go on behind `cargo xtask`; a command is followed by what ends or goes on in code.
        let behind = rest[end..].chars().next();
        let is_code = behind.is_none_or(|c| "`'\" \\);,#".contains(c));
        rest.get(..end).filter(|name| !name.is_empty() && !name.starts_with('-') && is_code)
    })
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| c != '_' && !c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_what_breaks_it_and_nothing_else() {
        let subcommands = ["run".to_owned(), "build-ebpf".to_owned()];
        let note = NOTES[0];
        let place = PLACES[0];
        for (file, content, expected) in [
            ("a.rs", "fn a() {}\n".to_owned(), None),
            ("a.rs", format!("// {note}: later\n"), Some("do it, or say")),
            ("a.rs", format!("let {note}S = 1;\n"), None),
            ("a.md", format!("see {place}me/x\n"), Some("somebody's machine")),
            ("a.md", format!("{} main\n", CONFLICTS[0]), Some("a conflict")),
            ("a.md", "Title\n==========\n".to_owned(), None),
            ("a.toml", "a = 1 \n".to_owned(), Some("white space")),
            ("a.rs", "\tlet a;\n".to_owned(), Some("a tab")),
            ("a.sh", "\techo\n".to_owned(), None),
            ("a.rs", "fn a() {}".to_owned(), Some("no end of line")),
            ("a.rs", String::new(), None),
            ("README.md", "`cargo xtask run --lab`, then cargo xtask build-ebpf\n".to_owned(), None),
            ("README.md", "`cargo xtask dist`\n".to_owned(), Some("there is no cargo xtask dist")),
            ("LICENSE", format!("{note} \n"), None),
        ] {
            let messages: Vec<String> =
                check(file, &content, &subcommands).into_iter().map(|finding| finding.message).collect();
            match expected {
                None => assert_eq!(messages, [""; 0], "{file}: {content}"),
                Some(part) => {
                    assert_eq!(messages.len(), 1, "{file}: {content}: {messages:?}");
                    assert!(messages[0].contains(part), "{file}: {content}: {messages:?}");
                }
            }
        }
    }

    #[test]
    fn names_are_nouns_beside_their_directories() {
        let files =
            ["a/src/http.rs", "a/src/http/mod.rs", "a/src/utils.rs", "tests/support/mod.rs", "utils.md"];
        let findings = check_names(&files.map(ToOwned::to_owned));
        let found: Vec<_> = findings.iter().map(|finding| finding.file.as_str()).collect();
        assert_eq!(found, ["a/src/http/mod.rs", "a/src/utils.rs"]);
    }
}
