//! A stored value as JSON.

use ciborium::Value as Cbor;
use serde_json::{Map, Value as Json};

use crate::FORMAT_CBOR;
use crate::decode::{float, hex, uuid};
use crate::error::MigrateError;
use crate::kind::tag;

const MICROS_PER_DAY: i64 = 86_400_000_000;
const DAYS_1970_TO_2000: i64 = 10_957;

/// An imported value as a JSON object, column → value.
///
/// Numbers of any precision and what JSON has no form for become strings: `numeric` and dates as PostgreSQL prints
/// them (ISO 8601, UTC), `bytea` as `\x…` in hexadecimal, intervals as ISO 8601, NaN and infinities by name. `json`
/// becomes the JSON it is (numbers beyond 64 bits lose digits).
///
/// # Errors
///
/// [`MigrateError::Decode`] if the bytes are not a value that an import wrote.
pub fn decode_row(value: &[u8]) -> Result<Json, MigrateError> {
    let error = |reason: String| MigrateError::Decode {
        context: "an imported value".to_owned(),
        reason,
    };
    let Some((&FORMAT_CBOR, map)) = value.split_first() else {
        return Err(error(format!("format {:?} is not {FORMAT_CBOR}", value.first())));
    };
    match ciborium::from_reader(map) {
        Ok(Cbor::Map(pairs)) => Ok(object(pairs)),
        Ok(_) => Err(error("it is not a map".to_owned())),
        Err(cause) => Err(error(cause.to_string())),
    }
}

fn object(pairs: Vec<(Cbor, Cbor)>) -> Json {
    let pairs = pairs.into_iter().map(|(name, value)| {
        let name = name.as_text().map_or_else(|| format!("{name:?}"), str::to_owned);
        (name, json(value))
    });
    Json::Object(pairs.collect::<Map<_, _>>())
}

fn json(value: Cbor) -> Json {
    match value {
        Cbor::Null => Json::Null,
        Cbor::Bool(value) => value.into(),
        Cbor::Integer(value) => {
            i64::try_from(value).map_or_else(|_| i128::from(value).to_string().into(), Json::from)
        }
        Cbor::Float(value) => float(value),
        Cbor::Text(value) => value.into(),
        Cbor::Bytes(value) => format!("\\x{}", hex(&value)).into(),
        Cbor::Array(values) => values.into_iter().map(json).collect(),
        Cbor::Map(pairs) => object(pairs),
        Cbor::Tag(tag, value) => tagged(tag, *value),
        other => format!("{other:?}").into(),
    }
}

fn tagged(tag: u64, value: Cbor) -> Json {
    let int = value.as_integer().and_then(|value| i64::try_from(value).ok());
    let ints: Option<Vec<i64>> = value.as_array().and_then(|values| {
        values
            .iter()
            .map(|value| value.as_integer().and_then(|value| i64::try_from(value).ok()))
            .collect()
    });
    match (tag, &value, int, ints.as_deref()) {
        (tag::UUID, Cbor::Bytes(bytes), ..) if bytes.len() == 16 => uuid(bytes).into(),
        (tag::JSON | tag::JSONB, Cbor::Text(text), ..) => {
            serde_json::from_str(text).unwrap_or_else(|_| Json::from(text.as_str()))
        }
        (tag::DATE, _, Some(days), _) => date_or_infinity(days).into(),
        (tag::TIMESTAMP, _, Some(micros), _) => timestamp(micros, "").into(),
        (tag::TIMESTAMPTZ, _, Some(micros), _) => timestamp(micros, "Z").into(),
        (tag::TIME, _, Some(micros), _) => clock(micros).into(),
        (tag::TIMETZ, _, _, Some(&[micros, east])) => format!("{}{}", clock(micros), offset(east)).into(),
        (tag::INTERVAL, _, _, Some(&[months, days, micros])) => interval(months, days, micros).into(),
        (tag::ARRAY, Cbor::Array(parts), ..) if parts.len() == 3 => {
            let mut parts = parts.iter().cloned().map(json);
            let mut object = Map::new();
            for name in ["lengths", "lower_bounds", "elements"] {
                object.insert(name.to_owned(), parts.next().unwrap_or_default());
            }
            Json::Object(object)
        }
        // Text and whatever a later release may tag.
        _ => json(value),
    }
}

fn date_or_infinity(days: i64) -> String {
    match i32::try_from(days) {
        Ok(i32::MAX) => "infinity".to_owned(),
        Ok(i32::MIN) => "-infinity".to_owned(),
        _ => date(days),
    }
}

/// Days since 2000-01-01 as ISO 8601, the year 1 BC being 0000.
fn date(days: i64) -> String {
    // Counting years from March puts the leap day last; 400 years are 146,097 days.
    let days = i128::from(days) + i128::from(DAYS_1970_TO_2000) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + i128::from(month <= 2);
    let sign = if year < 0 { "-" } else { "" };
    format!("{sign}{:04}-{month:02}-{day:02}", year.unsigned_abs())
}

fn timestamp(micros: i64, zone: &str) -> String {
    match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        _ => {
            let (days, rest) = (
                micros.div_euclid(MICROS_PER_DAY),
                micros.rem_euclid(MICROS_PER_DAY),
            );
            format!("{}T{}{zone}", date(days), clock(rest))
        }
    }
}

fn clock(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, (micros % 1_000_000).abs());
    let whole = format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    if fraction == 0 {
        whole
    } else {
        format!("{whole}.{fraction:06}").trim_end_matches('0').to_owned()
    }
}

fn offset(east: i64) -> String {
    let sign = if east < 0 { '-' } else { '+' };
    let east = east.unsigned_abs();
    let seconds = if east.is_multiple_of(60) {
        String::new()
    } else {
        format!(":{:02}", east % 60)
    };
    format!("{sign}{:02}:{:02}{seconds}", east / 3600, east / 60 % 60)
}

fn interval(months: i64, days: i64, micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let fraction = format!("{:06}", micros.unsigned_abs() % 1_000_000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!(
        "P{months}M{days}DT{sign}{}{dot}{fraction}S",
        micros.unsigned_abs() / 1_000_000
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_show_dates_intervals_and_specials() {
        let tagged = |tag: u64, value: Cbor| Cbor::Tag(tag, Box::new(value));
        let ints = |values: &[i64]| Cbor::Array(values.iter().map(|&value| value.into()).collect());
        for (value, expected) in [
            (tagged(tag::DATE, 8081.into()), json!("2022-02-15")),
            (tagged(tag::DATE, i32::MAX.into()), json!("infinity")),
            (tagged(tag::DATE, (-730_503).into()), json!("-0001-12-14")),
            (tagged(tag::TIMESTAMPTZ, 0.into()), json!("2000-01-01T00:00:00Z")),
            (
                tagged(tag::TIMESTAMP, (-1).into()),
                json!("1999-12-31T23:59:59.999999"),
            ),
            (tagged(tag::TIMESTAMP, i64::MIN.into()), json!("-infinity")),
            (
                tagged(tag::TIMETZ, ints(&[3_600_000_000, -19_800])),
                json!("01:00:00-05:30"),
            ),
            (
                tagged(tag::INTERVAL, ints(&[-14, 3, -1_500_000])),
                json!("P-14M3DT-1.5S"),
            ),
            (tagged(tag::NUMERIC, "1.50".into()), json!("1.50")),
            (tagged(tag::JSONB, r#"{"a": [1]}"#.into()), json!({"a": [1]})),
            (Cbor::Float(f64::NAN), json!("NaN")),
            (Cbor::Bytes(vec![0, 255]), json!("\\x00ff")),
            (Cbor::Null, Json::Null),
        ] {
            let mut bytes = vec![FORMAT_CBOR];
            ciborium::into_writer(&Cbor::Map(vec![("c".into(), value)]), &mut bytes).unwrap();
            assert_eq!(decode_row(&bytes).unwrap(), json!({"c": expected}));
        }
        for bytes in [&b""[..], b"\x02\xa0", b"\x01", b"\x01\x05", b"\x01\xa1\x61"] {
            assert!(decode_row(bytes).is_err());
        }
    }
}
