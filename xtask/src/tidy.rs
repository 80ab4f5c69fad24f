//! `cargo xtask tidy`: house rules that neither rustc nor clippy checks.
//!
//! [`rules`] says what holds, as tables; [`source`] reads Rust well enough to ask them; [`text`] looks at lines of any
//! file, [`links`] at what pages lead to, [`faults`] at one of them.

mod faults;
mod links;
mod rules;
mod source;
mod text;

use std::{collections::BTreeMap, fmt, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use self::source::Source;
use crate::{console::say, executable, workspace};

/// A line that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// Checks every file that git knows or would add.
pub(crate) fn run() -> Result<()> {
    let files = files()?;
    let mut findings = Vec::new();
    let mut long = Vec::new();
    let (mut pages, mut tests) = (BTreeMap::new(), String::new());
    for file in &files {
        let path = workspace::root().join(file);
        // What is not text (a recorded capture, an image) has no lines to check.
        let Ok(content) = fs::read_to_string(&path) else { continue };
        findings.extend(text::check(file, &content, &crate::subcommands()));
        if faults::has_tests(file) {
            tests.push_str(&content);
        }
        if file.ends_with(".rs") {
            findings.extend(rules::check(file, &Source::read(&content)));
            let lines = content.lines().count();
            if lines > text::LONG {
                long.push(format!("{file}: {lines} lines: has it two jobs?"));
            }
        }
        if links::is_page(file) {
            pages.insert(file.clone(), content);
        }
    }
    findings.extend(text::check_names(&files));
    findings.extend(links::check(&pages, &files));
    findings.extend(faults::check(pages.get(faults::PAGE).map_or("", String::as_str), &tests));
    findings.sort();
    for note in &long {
        say(format_args!("note: {note}"));
    }
    for finding in &findings {
        say(finding);
    }
    match findings.len() {
        0 => {
            say(format_args!("{} files are tidy", files.len()));
            Ok(())
        }
        count => bail!("{count} finding{}", if count == 1 { "" } else { "s" }),
    }
}

fn files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(workspace::root());
    let list = executable::read(&mut git).context("tidy asks git which files are the project's")?;
    let is_there = |file: &&str| !file.is_empty() && workspace::root().join(Path::new(file)).is_file();
    Ok(list.split('\0').filter(is_there).map(ToOwned::to_owned).collect())
}
