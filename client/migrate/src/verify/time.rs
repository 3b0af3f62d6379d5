//! Dates, times and intervals as PostgreSQL prints them (`DateStyle` ISO, `IntervalStyle` iso_8601, UTC), back to numbers.

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// Days from 0000-03-01 to 2000-01-01.
const DAYS_TO_2000: i64 = 730_425;

/// `2022-02-15`, `0044-03-15 BC`, `infinity` → days since 2000-01-01.
pub(crate) fn date(text: &str) -> Option<i64> {
    match text {
        "infinity" => Some(i32::MAX.into()),
        "-infinity" => Some(i32::MIN.into()),
        _ => {
            let (text, bc) = era(text);
            days(text, bc)
        }
    }
}

/// `2022-02-15 10:00:00.5`, with an offset if `zoned`, perhaps with ` BC` → microseconds since 2000-01-01 (UTC).
pub(crate) fn timestamp(text: &str, zoned: bool) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, bc) = era(text);
    let (date, time) = text.split_once(' ')?;
    let (time, east) = if zoned { split_offset(time)? } else { (time, 0) };
    let whole_days = i128::from(days(date, bc)?) * i128::from(MICROS_PER_DAY);
    let micros = whole_days + i128::from(clock(time)?) - i128::from(east) * i128::from(MICROS_PER_SECOND);
    i64::try_from(micros).ok()
}

/// `10:00:00+05:30` → microseconds since local midnight, seconds east of UTC.
pub(crate) fn time_with_zone(text: &str) -> Option<(i64, i64)> {
    let (time, east) = split_offset(text)?;
    Some((clock(time)?, east))
}

/// `23:59:59.999999`, `24:00:00` → microseconds.
pub(crate) fn clock(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, ':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let whole: i64 = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
    Some(whole * MICROS_PER_SECOND + decimal_seconds(seconds)?)
}

/// `P1Y2M3DT4H5M6.5S`, each number with its own sign → months, days, microseconds.
pub(crate) fn interval(text: &str) -> Option<(i64, i64, i64)> {
    let rest = text.strip_prefix('P')?;
    let (dates, times) = rest.split_once('T').unwrap_or((rest, ""));
    let (mut months, mut days, mut micros) = (0i64, 0i64, 0i64);
    for (number, unit) in parts(dates)? {
        let number: i64 = number.parse().ok()?;
        match unit {
            'Y' => months = months.checked_add(number.checked_mul(12)?)?,
            'M' => months = months.checked_add(number)?,
            'W' => days = days.checked_add(number.checked_mul(7)?)?,
            'D' => days = days.checked_add(number)?,
            _ => return None,
        }
    }
    // The least interval's parts only fit together.
    let mut sum = 0i128;
    for (number, unit) in parts(times)? {
        sum += match unit {
            'H' => i128::from(number.parse::<i64>().ok()?) * 3_600_000_000,
            'M' => i128::from(number.parse::<i64>().ok()?) * 60_000_000,
            'S' => i128::from(decimal_seconds(number)?),
            _ => return None,
        };
    }
    micros += i64::try_from(sum).ok()?;
    Some((months, days, micros))
}

fn parts(text: &str) -> Option<Vec<(&str, char)>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        parts.push((&rest[..end], char::from(rest.as_bytes()[end])));
        rest = &rest[end + 1..];
    }
    Some(parts)
}

fn decimal_seconds(text: &str) -> Option<i64> {
    let (negative, digits) = text
        .strip_prefix('-')
        .map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > 6 {
        return None;
    }
    let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
    let micros = whole
        .parse::<i64>()
        .ok()?
        .checked_mul(MICROS_PER_SECOND)?
        .checked_add(fraction)?;
    Some(if negative { -micros } else { micros })
}

fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC")
        .map_or((text, false), |text| (text, true))
}

/// The offset begins at the last sign: a time has none.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    let at = text.rfind(['+', '-'])?;
    let mut seconds = 0;
    for (part, unit) in text[at + 1..].split(':').zip([3600, 60, 1]) {
        seconds += part.parse::<i64>().ok()? * unit;
    }
    Some((
        &text[..at],
        if text.as_bytes()[at] == b'-' {
            -seconds
        } else {
            seconds
        },
    ))
}

/// Days from 2000-01-01 to a day of the proleptic Gregorian calendar.
fn days(text: &str, bc: bool) -> Option<i64> {
    let mut parts = text.splitn(3, '-');
    let year: i64 = parts.next()?.parse().ok()?;
    let month: i64 = parts.next()?.parse().ok()?;
    let day: i64 = parts.next()?.parse().ok()?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if bc { 1 - year } else { year };
    // Years that begin in March: January and February belong to the one before.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - DAYS_TO_2000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_with_bc_infinity_and_the_extremes() {
        // Right sides: SELECT date 'x' - date '2000-01-01' in PostgreSQL.
        for (text, expected) in [
            ("2000-01-01", 0),
            ("1999-12-31", -1),
            ("2000-02-29", 59),
            ("2000-03-01", 60),
            ("2022-02-15", 8081),
            ("1970-01-01", -10_957),
            ("0001-01-01", -730_119),
            ("0001-12-31 BC", -730_120),
            ("4713-01-01 BC", -2_451_507),
            ("5874897-12-31", 2_145_031_948),
            ("infinity", i64::from(i32::MAX)),
            ("-infinity", i64::from(i32::MIN)),
        ] {
            assert_eq!(date(text), Some(expected), "{text}");
        }
        for text in ["", "2000", "2000-13-01", "2000-01-xx", "yesterday"] {
            assert_eq!(date(text), None, "{text}");
        }
    }

    #[test]
    fn timestamps_and_times() {
        assert_eq!(timestamp("2000-01-01 00:00:00.000001", false), Some(1));
        assert_eq!(timestamp("1999-12-31 23:59:59.5", false), Some(-500_000));
        assert_eq!(timestamp("2000-01-01 01:00:00+01", true), Some(0));
        assert_eq!(timestamp("2000-01-01 00:00:00+00", true), Some(0));
        assert_eq!(
            timestamp("0001-12-31 00:00:00+00 BC", true),
            Some(-730_120 * MICROS_PER_DAY)
        );
        assert_eq!(
            timestamp("294276-12-31 23:59:59.999999+00", true),
            Some(9_223_371_331_199_999_999)
        );
        assert_eq!(timestamp("infinity", true), Some(i64::MAX));
        assert_eq!(timestamp("-infinity", false), Some(i64::MIN));
        assert_eq!(clock("24:00:00"), Some(MICROS_PER_DAY));
        assert_eq!(
            time_with_zone("10:00:00-05:30"),
            Some((36_000 * MICROS_PER_SECOND, -19_800))
        );
        assert_eq!(
            time_with_zone("10:00:00.25+15:59:59"),
            Some((36_000_250_000, 57_599))
        );
    }

    #[test]
    fn intervals_with_mixed_signs() {
        assert_eq!(interval("PT0S"), Some((0, 0, 0)));
        assert_eq!(interval("P1Y2M3DT4H5M6.5S"), Some((14, 3, 14_706_500_000)));
        assert_eq!(interval("P-1Y-2M3DT-4H-5M-0.5S"), Some((-14, 3, -14_700_500_000)));
        assert_eq!(
            interval("PT-2562047788H-54.775808S"),
            Some((0, 0, -9_223_372_036_854_775_808))
        );
        assert_eq!(interval("1 day"), None);
        assert_eq!(interval("P1X"), None);
    }
}
