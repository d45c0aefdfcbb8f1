//! Durations and sizes as people write them: `90s`, `1h30m`, `24MB`, `1GiB`.
//!
//! A number never goes without its unit where two units are plausible: a duration must name one (only `0` may go bare),
//! a bare size is bytes. Decimal and binary prefixes are kept apart as IEC 80000-13 has them: `MB` is 10^6, `MiB` 2^20.

use gradus_error::{Error, Result};
use std::time::Duration;

/// Nanoseconds of each unit of time, longest names first where one begins another.
const TIME_UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Bytes of each unit of size; compared without regard to case.
const SIZE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// A duration such as `150s`, `2m`, `1.5h`, `1h30m`, `250ms`; `0` needs no unit.
///
/// # Errors
/// `Invalid`, with the text and the units that are known, if it is anything else or does not fit a [`Duration`].
pub fn parse_duration(text: &str) -> Result<Duration> {
    let refuse = || Error::invalid(format!("`{text}` is no duration: write 90s, 2m, 1h30m or 250ms"));
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(refuse());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_number(rest).ok_or_else(refuse)?;
        let unit_bytes = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_bytes);
        let scale = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?.1;
        let nanoseconds = scaled(number, scale).ok_or_else(refuse)?;
        total = total.checked_add(Duration::from_nanos(nanoseconds)).ok_or_else(refuse)?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// A duration as [`parse_duration`] reads it: in the largest unit of which it is a whole number.
pub fn show_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let whole = |(_, scale): &&(&str, u64)| nanoseconds.is_multiple_of(u128::from(*scale));
    match TIME_UNITS.iter().rev().find(whole) {
        Some((unit, scale)) if nanoseconds > 0 => format!("{}{unit}", nanoseconds / u128::from(*scale)),
        _ => "0".to_owned(),
    }
}

/// A size in bytes such as `24MB`, `1GiB`, `1.5 GB` or `4096`.
///
/// # Errors
/// `Invalid`, with the text and examples, if it is anything else or exceeds 2^64 - 1 bytes.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let refuse = || Error::invalid(format!("`{text}` is no size: write 24MB (10^6), 1GiB (2^30) or 4096"));
    let (number, unit) = split_number(text.trim()).ok_or_else(refuse)?;
    let unit = unit.trim().to_ascii_lowercase();
    let scale = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?.1;
    scaled(number, scale).ok_or_else(refuse)
}

/// Parts the digits, with at most one point among them, from what follows.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let plain = number.bytes().filter(|byte| *byte == b'.').count() <= 1;
    (plain && number.bytes().any(|byte| byte.is_ascii_digit())).then_some((number, rest))
}

/// `number * scale`: exact for whole numbers, rounded to the nearest for fractions, `None` beyond 64 bits.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let value = number.parse::<f64>().ok()? * scale as f64;
    // 2^64 as f64: from there on the cast would saturate silently.
    (value < 18_446_744_073_709_551_616.0).then_some(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_written() {
        let cases = [
            ("150s", 150_000),
            ("2m", 120_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("1d", 86_400_000),
            ("0", 0),
            (" 3s ", 3_000),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
    }

    #[test]
    fn durations_are_shown_as_they_are_read() {
        let cases =
            [("0", 0), ("250ms", 250), ("10s", 10_000), ("90s", 90_000), ("2m", 120_000), ("1h", 3_600_000)];
        for (text, milliseconds) in cases {
            assert_eq!(show_duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn sizes_read_as_written() {
        let cases = [
            ("24MB", 24_000_000),
            ("1GiB", 1 << 30),
            ("1.5 GB", 1_500_000_000),
            ("4096", 4096),
            ("512kib", 512 << 10),
            ("0.5KiB", 512),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "s", "10", "1x", "-1s", "1..5s", "1e3s", "99999999999999999999d", ".", "1 s x", "1minute"]
        {
            assert_eq!(*parse_duration(text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
        for text in ["", "MB", "1XB", "-1", "18446744073709551616", "20000000TiB", "1.2.3MB", "1MB2"] {
            assert_eq!(*parse_bytes(text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = parse_duration(&text);
            let _ = parse_bytes(&text);
        }

        #[test]
        fn what_is_shown_reads_the_same(nanoseconds: u64) {
            let duration = Duration::from_nanos(nanoseconds);
            prop_assert_eq!(parse_duration(&show_duration(duration)).unwrap(), duration);
        }

        #[test]
        fn whole_seconds_and_bytes_are_exact(number in 0u64..1 << 32) {
            prop_assert_eq!(parse_duration(&format!("{number}s")).unwrap(), Duration::from_secs(number));
            prop_assert_eq!(parse_bytes(&format!("{number}KiB")).unwrap(), number << 10);
        }
    }
}
