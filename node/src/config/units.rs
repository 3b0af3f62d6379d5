//! Sizes and durations as people write them.

use std::ops::RangeInclusive;

/// Longest spelling first where one ends with another: `KiB` and `KB` both end with `B`.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

const DURATIONS: [(&str, u64); 5] = [
    ("ms", 1),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
];

/// A size in bytes: `64MiB`, `500KB`, `4096`.
pub(super) fn size_bytes(text: &str, limits: &RangeInclusive<u64>) -> Result<u64, String> {
    let bytes = match whole_number(text.trim()) {
        Some(bytes) => bytes,
        None => with_unit(text, &SIZES).ok_or_else(|| {
            format!("{text:?} is not a size; write a whole number of bytes or one with a unit, as in 64MiB, 1GiB or 500KB")
        })?,
    };
    within(bytes, limits, show_size)
}

/// A duration in milliseconds: `30s`, `500ms`, `2h`. A plain number has no meaning: it lacks the unit.
pub(crate) fn duration_ms(text: &str, limits: &RangeInclusive<u64>) -> Result<u64, String> {
    let ms = with_unit(text, &DURATIONS).ok_or_else(|| {
        format!("{text:?} is not a duration; write a whole number and ms, s, m, h or d, as in 30s")
    })?;
    within(ms, limits, show_duration)
}

/// A plain number of milliseconds.
pub(super) fn plain_ms(text: &str, limits: &RangeInclusive<u64>) -> Result<u64, String> {
    let ms = whole_number(text.trim());
    let ms = ms.ok_or_else(|| format!("{text:?} is not a whole number (of milliseconds)"))?;
    within(ms, limits, |ms| ms.to_string())
}

fn within(value: u64, limits: &RangeInclusive<u64>, show: fn(u64) -> String) -> Result<u64, String> {
    if limits.contains(&value) {
        return Ok(value);
    }
    Err(format!(
        "{} is not between {} and {}",
        show(value),
        show(*limits.start()),
        show(*limits.end())
    ))
}

/// Digits only: the standard library would let a plus sign pass.
fn whole_number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// Case does not matter: a "mib" that means a thousandth of a bit is not a size of anything here.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let split =
        |(unit, factor): &(&str, u64)| Some((text.strip_suffix(&unit.to_ascii_lowercase())?, *factor));
    let (number, factor) = units.iter().find_map(split)?;
    whole_number(number.trim_end())?.checked_mul(factor)
}

pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, &SIZES)
}

fn show_duration(ms: u64) -> String {
    show(ms, &DURATIONS)
}

/// In the largest unit that leaves a whole number.
fn show(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units
        .iter()
        .filter(|(_, factor)| value > 0 && value.is_multiple_of(*factor));
    match whole.max_by_key(|(_, factor)| *factor) {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => value.to_string(),
    }
}
