//! Headers that list what a client takes, with weights (RFC 9110, section 12.4).

/// One thing that a client takes, such as `text/plain;version=0.0.4;q=0.5` or `gzip;q=0.5`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Item<'a> {
    /// What stands before the first semicolon.
    pub(super) name: &'a str,
    /// From 0 to 1; 0 where it can't be read.
    pub(super) quality: f32,
    parameters: &'a str,
}

/// Reads the items of one header's value.
pub(super) fn items(value: &str) -> impl Iterator<Item = Item<'_>> {
    value.split(',').map(Item::read)
}

impl<'a> Item<'a> {
    fn read(text: &'a str) -> Self {
        let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
        let item = Self { name: name.trim(), quality: 1.0, parameters };
        let Some(quality) = item.parameter("q") else { return item };
        let quality: f32 = quality.parse().unwrap_or_default();
        Self { quality: if (0.0..=1.0).contains(&quality) { quality } else { 0.0 }, ..item }
    }

    /// Returns a parameter's value without quotes, the last one where it is there twice.
    pub(super) fn parameter(&self, name: &str) -> Option<&'a str> {
        let pairs = self.parameters.split(';').filter_map(|part| part.split_once('='));
        let mut values = pairs.filter(|(other, _)| other.trim().eq_ignore_ascii_case(name));
        values.next_back().map(|(_, value)| value.trim().trim_matches('"'))
    }
}
