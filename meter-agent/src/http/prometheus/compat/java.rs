//! Numbers as Java prints them.

use std::fmt;

/// A number that is neither negative nor infinite, by `Double.toString`: `213486.0`, and `4.215888475E9` from ten
/// million on and below a thousandth. The digits are the fewest that read back as the same number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Double(pub(super) f64);

impl fmt::Display for Double {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0.0 || (1e-3..1e7).contains(&self.0) {
            return write!(f, "{:?}", self.0);
        }
        // Rust writes `1e7` where Java writes `1.0E7`.
        struct Exponent<'a, 'f> {
            out: &'a mut fmt::Formatter<'f>,
            has_point: bool,
        }
        impl fmt::Write for Exponent<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for c in text.chars() {
                    match c {
                        'e' if self.has_point => self.out.write_str("E")?,
                        'e' => self.out.write_str(".0E")?,
                        other => {
                            self.has_point |= other == '.';
                            self.out.write_str(other.encode_utf8(&mut [0; 4]))?;
                        }
                    }
                }
                Ok(())
            }
        }
        fmt::Write::write_fmt(&mut Exponent { out: f, has_point: false }, format_args!("{:e}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::Double;

    #[test]
    fn numbers_are_written_as_java_writes_them() {
        for (number, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (213_486.0, "213486.0"),
            (5834.0, "5834.0"),
            (9_999_999.0, "9999999.0"),
            (1e7, "1.0E7"),
            (1.2e7, "1.2E7"),
            (12_345_678.0, "1.2345678E7"),
            (4_215_888_475.0, "4.215888475E9"),
            (9_007_199_254_740_992.0, "9.007199254740992E15"),
            (1.844_674_407_370_955_2e19, "1.8446744073709552E19"),
            (3.4, "3.4"),
            (0.001, "0.001"),
            (0.000_25, "2.5E-4"),
            (0.000_999, "9.99E-4"),
        ] {
            assert_eq!(Double(number).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn every_number_reads_back(number in any::<u64>()) {
            #[expect(clippy::cast_precision_loss, reason = "that is what is looked at")]
            let number = number as f64;
            let text = Double(number).to_string();
            prop_assert!(text.contains('.'));
            prop_assert_eq!(text.parse::<f64>().unwrap(), number);
        }
    }
}
