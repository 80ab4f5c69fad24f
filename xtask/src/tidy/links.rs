//! Links between pages, written inline: each leads to a file of the project, and to a heading where it names one.

use std::collections::BTreeMap;

use super::Finding;

/// Returns whether a file is a page.
pub(super) fn is_page(file: &str) -> bool {
    file.ends_with(".md")
}

/// Checks the links of all pages, each with its text by its name, to `files`.
pub(super) fn check(pages: &BTreeMap<String, String>, files: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (page, content) in pages {
        for (line, text) in lines(content) {
            for link in links(text) {
                if let Some(message) = broken(page, link, pages, files) {
                    findings.push(Finding { file: page.clone(), line, message });
                }
            }
        }
    }
    findings
}

/// Returns the lines of a page, each with its number, that are no code.
fn lines(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    (1..).zip(page.lines()).filter(move |(_, line)| {
        is_code ^= line.starts_with("```");
        !is_code
    })
}

/// Finds where a line's links lead to, but for those that are not to files.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target).filter(|target| !target.contains(':'))
}

/// Returns what is wrong with a page's link.
fn broken(page: &str, link: &str, pages: &BTreeMap<String, String>, files: &[String]) -> Option<String> {
    let (path, heading) = link.split_once('#').map_or((link, None), |(path, heading)| (path, Some(heading)));
    let target = if path.is_empty() { Some(page.to_owned()) } else { beside(page, path) };
    let Some(target) = target else { return Some(format!("{link} leads out of the project")) };
    let within = format!("{target}/");
    if !files.iter().any(|file| *file == target || file.starts_with(&within)) {
        return Some(format!("{link} leads nowhere: there is no {target}"));
    }
    let heading = heading?;
    let has_it = pages.get(&target).is_some_and(|content| headings(content).any(|one| one == heading));
    (!has_it).then(|| format!("{target} has no heading for #{heading}"))
}

/// Returns where a relative path leads from a page, if not out of the project.
fn beside(page: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    Some(parts.join("/"))
}

/// Returns what links to a page's headings are called, as GitHub makes them.
fn headings(page: &str) -> impl Iterator<Item = String> {
    let titles = lines(page).map(|(_, line)| line).filter(|line| line.starts_with('#'));
    titles.map(|title| {
        let title = title.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_and_headings_that_are_there() {
        let guide = "# DHCP servers, and `ls`\n```sh\n# code [a](b)\n```\n[up](../README.md#tests)\n";
        let files = ["README.md", "docs/guide.md", "src/main.rs"].map(str::to_owned);
        for (readme, expected) in [
            ("## Tests\n[guide](docs/guide.md), [source](src), [site](https://example.org/none)\n", ""),
            ("## Tests\n[guide](docs/guide.md#dhcp-servers-and-ls) [own](#tests)\n", ""),
            ("## Tests\n[a](docs/b.md)\n", "README.md:2: docs/b.md leads nowhere: there is no docs/b.md"),
            ("## Tests\n[a](../b.md)\n", "README.md:2: ../b.md leads out of the project"),
            ("## Tests\n[a](docs/guide.md#ls)\n", "README.md:2: docs/guide.md has no heading for #ls"),
            (
                "## Tests\n[a](docs/guide.md#code-ab)\n",
                "README.md:2: docs/guide.md has no heading for #code-ab",
            ),
            ("# Another\n", "docs/guide.md:5: README.md has no heading for #tests"),
        ] {
            let pages = [("README.md", readme), ("docs/guide.md", guide)];
            let pages = pages.map(|(file, content)| (file.to_owned(), content.to_owned())).into();
            let found: Vec<String> = check(&pages, &files).iter().map(ToString::to_string).collect();
            assert_eq!(found.join("\n"), expected, "{readme}");
        }
        assert!(is_page("docs/guide.md") && !is_page("src/main.rs"));
    }
}
