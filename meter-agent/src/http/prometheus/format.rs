//! Which exposition a client wants.

use crate::http::accept::{Item, items};

/// An exposition format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Chooses by the values of a request's `Accept` headers.
    ///
    /// OpenMetrics is for clients that name it and like it at least as much as plain text; everybody else gets text,
    /// those included who accept neither: a scraper can do more with it than with status 406.
    pub fn negotiate<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let mut open_metrics = 0.0_f32;
        // By how exactly the range names text 0.0.4; the most exact one counts.
        let mut text = [None::<f32>; 3];
        for range in accept.into_iter().flat_map(items).map(Range) {
            if range.is_open_metrics() {
                open_metrics = open_metrics.max(range.0.quality);
            }
            if let Some(quality) = range.text_exactness().and_then(|exactness| text.get_mut(exactness)) {
                *quality = Some(quality.unwrap_or_default().max(range.0.quality));
            }
        }
        let text = text.into_iter().flatten().next().unwrap_or_default();
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// Returns the media type of the answer.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// One media range of `Accept` (RFC 9110, section 12.5.1).
struct Range<'a>(Item<'a>);

impl Range<'_> {
    fn is_open_metrics(&self) -> bool {
        self.0.name.eq_ignore_ascii_case("application/openmetrics-text")
            && self.0.parameter("version").is_none_or(|version| version == "1.0.0")
    }

    /// Returns 0 for text 0.0.4 itself, 1 for any text, 2 for anything; `None` where it is something else.
    fn text_exactness(&self) -> Option<usize> {
        match self.0.parameter("version") {
            None | Some("0.0.4") if self.0.name.eq_ignore_ascii_case("text/plain") => Some(0),
            None if self.0.name.eq_ignore_ascii_case("text/*") => Some(1),
            None if self.0.name == "*/*" => Some(2),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::Format::{self, OpenMetrics, Text};

    #[test]
    fn openmetrics_is_for_those_who_name_it() {
        const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,\
            application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,\
            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        const PROMETHEUS_3_TEXT: &str = "text/plain;version=0.0.4;q=0.4,*/*;q=0.3";
        const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (accept, expected) in [
            (&[][..], Text),
            (&[""], Text),
            (&["*/*"], Text),
            (&["text/plain"], Text),
            (&["application/json"], Text),
            (&["application/*"], Text),
            (&[BROWSER], Text),
            (&[PROMETHEUS_2], OpenMetrics),
            (&[PROMETHEUS_3], OpenMetrics),
            (&[PROMETHEUS_3_TEXT], Text),
            (&["application/openmetrics-text"], OpenMetrics),
            (&["Application/OpenMetrics-Text ; Version=\"1.0.0\" ; Q=0.1"], OpenMetrics),
            (&["application/openmetrics-text; version=0.0.1"], Text),
            (&["application/openmetrics-text; version=2.0.0"], Text),
            (&["application/openmetrics-text;q=0"], Text),
            (&["application/openmetrics-text;q=0.000"], Text),
            (&["application/openmetrics-text;q=nan"], Text),
            (&["application/openmetrics-text;q=7"], Text),
            (&["application/openmetrics-text, text/plain"], OpenMetrics),
            (&["text/plain, application/openmetrics-text"], OpenMetrics),
            (&["application/openmetrics-text;q=0.4, text/plain;q=0.5"], Text),
            (&["application/openmetrics-text;q=0.4, text/plain;version=1.0.0;q=0.5"], OpenMetrics),
            (&["application/openmetrics-text;q=0.4, text/*;q=0.5"], Text),
            (&["application/openmetrics-text;q=0.4, */*;q=0.5"], Text),
            (&["application/openmetrics-text;q=0.4, text/plain;q=0.3, */*"], OpenMetrics),
            (&["text/plain;q=0.5", "application/openmetrics-text"], OpenMetrics),
        ] {
            assert_eq!(Format::negotiate(accept.iter().copied()), expected, "{accept:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(accept in ".*") {
            Format::negotiate([accept.as_str()]);
        }
    }
}
