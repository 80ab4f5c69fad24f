//! What the encoder writes, line by line, made into the format that was asked for.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::Format;

/// When the counter began whose sample is written next: nanoseconds since the Unix epoch, 0 where nobody knows.
///
/// The way around the encoder, which has no word for it. Both ends are used by one thread, one after the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Created(Arc<AtomicU64>);

impl Created {
    pub(super) fn set(&self, nanoseconds: u64) {
        self.0.store(nanoseconds, Ordering::Relaxed);
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// The end of an exposition, as a sink of the library's encoder.
///
/// The library writes OpenMetrics, and of a counter only `_total`. Two things are added here. For OpenMetrics each
/// counter that has a time in [`Created`] gets its `_created` sample, which must stand next to it. For text 0.0.4,
/// which has no such sample, a counter is declared under its full name and an info as a gauge, and `# UNIT` is left
/// out. What the library wrote of a sample is never touched, so it is the same bytes in both formats.
#[derive(Debug)]
pub(super) struct Lines {
    format: Format,
    created: Created,
    out: String,
    /// Where the line that is being written begins.
    start: usize,
    /// The help of text 0.0.4, which waits for the type: it decides the name that goes before it.
    help: String,
}

impl Lines {
    pub(super) fn new(format: Format, created: Created, capacity: usize) -> Self {
        Self { format, created, out: String::with_capacity(capacity), start: 0, help: String::new() }
    }

    /// Returns what has been written, to add lines that are in the format already.
    pub(super) fn raw(&mut self) -> &mut String {
        &mut self.out
    }

    /// Returns the exposition.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn end_line(&mut self) {
        let is_sample = !self.out[self.start..].starts_with('#');
        match self.format {
            Format::OpenMetrics if is_sample => match self.created.take() {
                0 => {}
                nanoseconds => self.add_created(nanoseconds),
            },
            Format::Text if !is_sample => self.translate(),
            Format::OpenMetrics | Format::Text => {}
        }
        self.start = self.out.len();
    }

    /// Adds the `_created` sample of the counter whose sample has just ended.
    fn add_created(&mut self, nanoseconds: u64) {
        const NANOSECONDS: u64 = 1_000_000_000;
        let line = &self.out[self.start..];
        let (Some(name), Some(series)) = (line.find(['{', ' ']), line.rfind(' ')) else { return };
        let Some(stem) = line[..name].strip_suffix("_total").map(str::len) else { return };
        let start = self.start;
        self.out.extend_from_within(start..start + stem);
        self.out.push_str("_created");
        self.out.extend_from_within(start + name..start + series);
        let (seconds, rest) = (nanoseconds / NANOSECONDS, nanoseconds % NANOSECONDS);
        writeln!(self.out, " {seconds}.{rest:09}").expect("a string takes everything");
    }

    /// Translates a line of a descriptor, which is `# HELP`, `# TYPE` and `# UNIT`, in this order.
    fn translate(&mut self) {
        let mut words = self.out[self.start..].trim_end_matches('\n').splitn(4, ' ').skip(1);
        let [keyword, family, rest] = [(); 3].map(|()| words.next().unwrap_or_default());
        let declared = match keyword {
            "HELP" => {
                rest.clone_into(&mut self.help);
                String::new()
            }
            "TYPE" => declare(family, rest, &self.help),
            _ => String::new(),
        };
        self.out.truncate(self.start);
        self.out.push_str(&declared);
    }
}

/// Returns the descriptor of text 0.0.4 for a family of OpenMetrics.
fn declare(family: &str, kind: &str, help: &str) -> String {
    let (suffix, kind) = match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        other => ("", other),
    };
    format!("# HELP {family}{suffix} {help}\n# TYPE {family}{suffix} {kind}\n")
}

impl fmt::Write for Lines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !text.as_bytes().contains(&b'\n') {
            self.out.push_str(text);
            return Ok(());
        }
        for piece in text.split_inclusive('\n') {
            self.out.push_str(piece);
            if piece.ends_with('\n') {
                self.end_line();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::{Created, Format, Lines};

    const DESCRIPTOR: &str = "# HELP a_bytes Bytes of a.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n";
    const SAMPLES: [&str; 2] = ["a_bytes_total{x=\"# HELP _total 1\"} 1\n", "a_bytes_total 2\n"];
    const OTHERS: &str =
        "# HELP b One b.\n# TYPE b gauge\nb -1\n# HELP c What c is.\n# TYPE c info\nc_info{d=\"e\"} 1\n";

    /// Writes one counter that began at some time, another one of which nobody knows, and others, by these pieces.
    fn written(format: Format, write: fn(&mut Lines, &str)) -> String {
        let created = Created::default();
        let mut lines = Lines::new(format, created.clone(), 0);
        write(&mut lines, DESCRIPTOR);
        for (sample, nanoseconds) in SAMPLES.into_iter().zip([1_789_000_000_000_000_020, 0]) {
            if format == Format::OpenMetrics {
                created.set(nanoseconds);
            }
            write(&mut lines, sample);
        }
        write(&mut lines, OTHERS);
        lines.finish()
    }

    #[test]
    fn created_stands_next_to_its_counter_in_openmetrics() {
        let [first, second] = SAMPLES;
        let created = "a_bytes_created{x=\"# HELP _total 1\"} 1789000000.000000020\n";
        let expected = format!("{DESCRIPTOR}{first}{created}{second}{OTHERS}# EOF\n");
        assert_eq!(written(Format::OpenMetrics, |lines, text| lines.write_str(text).unwrap()), expected);
        let by_characters =
            |lines: &mut Lines, text: &str| text.chars().for_each(|c| lines.write_char(c).unwrap());
        assert_eq!(written(Format::OpenMetrics, by_characters), expected);
    }

    #[test]
    fn text_declares_each_family_under_the_name_of_its_samples() {
        let [first, second] = SAMPLES;
        let expected = format!(
            "# HELP a_bytes_total Bytes of a.\n# TYPE a_bytes_total counter\n{first}{second}\
             # HELP b One b.\n# TYPE b gauge\nb -1\n\
             # HELP c_info What c is.\n# TYPE c_info gauge\nc_info{{d=\"e\"}} 1\n"
        );
        assert_eq!(written(Format::Text, |lines, text| lines.write_str(text).unwrap()), expected);
    }
}
