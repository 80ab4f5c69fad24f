//! What `/metrics` says, as numbers by name and labels.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// The labels of one sample.
pub(super) type Labels = BTreeMap<String, String>;

/// The samples of one scrape that are whole numbers; text format 0.0.4.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    families: BTreeMap<String, BTreeMap<Labels, u64>>,
}

impl Exposition {
    /// Reads the text format.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut families: BTreeMap<String, BTreeMap<Labels, u64>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, labels, value) = sample(line).with_context(|| format!("not a sample: {line:?}"))?;
            // Gauges of times and ratios have fractions; no counter of packets or bytes does.
            let Ok(value) = value.parse() else { continue };
            if families.entry(name.to_owned()).or_default().insert(labels, value).is_some() {
                bail!("{line:?} is there twice");
            }
        }
        Ok(Self { families })
    }

    /// Returns the samples of a family.
    pub(super) fn family(&self, name: &str) -> impl Iterator<Item = (&Labels, u64)> {
        self.families.get(name).into_iter().flatten().map(|(labels, value)| (labels, *value))
    }

    /// Returns the sum over a family's samples that have these labels, 0 where there are none.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.family(name)
            .filter(|(found, _)| {
                labels.iter().all(|(key, value)| found.get(*key).is_some_and(|label| label == value))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// Returns the value of one label of the info metric that has this other label.
    pub(super) fn describe(&self, name: &str, (key, value): (&str, &str), wanted: &str) -> Option<&str> {
        self.family(name)
            .find(|(labels, _)| labels.get(key).is_some_and(|label| label == value))
            .and_then(|(labels, _)| labels.get(wanted))
            .map(String::as_str)
    }
}

fn sample(line: &str) -> Option<(&str, Labels, &str)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Labels::new(), rest),
    };
    Some((name, labels, rest.split_whitespace().next()?))
}

/// Reads `key="value",…}` and returns what follows.
fn labels(mut text: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        loop {
            match characters.next()? {
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (at, '"') => {
                    text = &rest[at + 1..];
                    break;
                }
                (_, other) => value.push(other),
            }
        }
        labels.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::Exposition;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let text = "# HELP a_total b\n# TYPE a_total counter\n\
                    a_total{port=\"p\",alias=\"one, \\\"two\\\" {x} \\\\ y\"} 12\n\
                    a_total{port=\"q\",alias=\"\"} 30\n\
                    up 1\nratio 0.5\n";
        let exposition = Exposition::parse(text).unwrap();
        assert_eq!(exposition.sum("a_total", &[]), 42);
        assert_eq!(exposition.sum("a_total", &[("port", "q")]), 30);
        assert_eq!(exposition.sum("up", &[]), 1);
        assert_eq!(exposition.sum("ratio", &[]), 0);
        assert_eq!(exposition.describe("a_total", ("port", "p"), "alias"), Some("one, \"two\" {x} \\ y"));
        assert!(Exposition::parse("a{b=\"c} 1").is_err());
        assert!(Exposition::parse("a 1\na 1").is_err());
    }
}
