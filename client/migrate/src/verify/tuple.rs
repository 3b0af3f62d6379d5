//! The key that a row must have, from the text of its key columns: a second writing of the tuple layer and of our
//! `numeric`, sharing nothing with the importer's. See the specification of the layer and `import/key.rs`.

use crate::kind::Kind;
use crate::verify::canon::Canon;
use crate::verify::text;

/// Appends the element of one key column.
pub(crate) fn append(kind: &Kind, field: &str, out: &mut Vec<u8>) -> Result<(), String> {
    match kind {
        Kind::Numeric => return numeric(field, out),
        Kind::Char => {
            terminated(0x02, field.trim_end_matches(' ').as_bytes(), out);
            return Ok(());
        }
        Kind::Float4 => {
            let value: f32 = field.parse().map_err(|_| format!("{field:?} is not a float4"))?;
            let bits = if value == 0.0 {
                0
            } else if value.is_nan() {
                0x7fc0_0000
            } else {
                value.to_bits()
            };
            let sortable = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
            out.push(0x20);
            out.extend_from_slice(&sortable.to_be_bytes());
            return Ok(());
        }
        _ => {}
    }
    match untagged(text::parse(kind, Some(field))?) {
        Canon::Bool(value) => out.push(if value { 0x27 } else { 0x26 }),
        Canon::Int(value) => integer(value, out),
        Canon::Float(bits) => {
            let value = f64::from_bits(bits);
            let bits = if value == 0.0 { 0 } else { bits };
            let sortable = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
            out.push(0x21);
            out.extend_from_slice(&sortable.to_be_bytes());
        }
        Canon::Text(value) => terminated(0x02, value.as_bytes(), out),
        Canon::Bytes(value) if *kind == Kind::Uuid => {
            out.push(0x30);
            out.extend_from_slice(&value);
        }
        Canon::Bytes(value) => terminated(0x01, &value, out),
        other => return Err(format!("{other} cannot be part of a key")),
    }
    Ok(())
}

fn untagged(value: Canon) -> Canon {
    match value {
        Canon::Tagged(_, value) => *value,
        value => value,
    }
}

fn terminated(code: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(code);
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.push(0);
}

/// As few bytes as hold the magnitude; their number is the distance of the code from 0x14; negative ones complemented.
fn integer(value: i128, out: &mut Vec<u8>) {
    let magnitude = value.unsigned_abs().to_be_bytes();
    let digits: Vec<u8> = magnitude.into_iter().skip_while(|&byte| byte == 0).collect();
    let length = digits.len() as u8;
    if value < 0 {
        out.push(0x14 - length);
        out.extend(digits.iter().map(|byte| !byte));
    } else {
        out.push(0x14 + length);
        out.extend(digits);
    }
}

fn numeric(text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    out.push(0x40);
    match text {
        "-Infinity" => out.push(0),
        "Infinity" => out.push(4),
        "NaN" => out.push(5),
        _ => {
            let (sign, unsigned) = text
                .strip_prefix('-')
                .map_or((3u8, text), |unsigned| (1, unsigned));
            let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
            let all = [whole, fraction].concat();
            if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!("{text:?} is not a numeric"));
            }
            let leading = all.bytes().take_while(|&byte| byte == b'0').count();
            let digits = all[leading..].trim_end_matches('0');
            if digits.is_empty() {
                out.push(2);
                return Ok(());
            }
            let exponent = whole.len() as i64 - leading as i64;
            let biased = u32::try_from(exponent + (1 << 31)).map_err(|_| format!("{text:?} is too large"))?;
            let mut body = biased.to_be_bytes().to_vec();
            for at in (0..digits.len()).step_by(2) {
                let pair = format!("{:0<2}", &digits[at..digits.len().min(at + 2)]);
                body.push(pair.parse::<u8>().map_err(|error| error.to_string())? + 1);
            }
            body.push(0);
            let mask = if sign == 1 { 0xff } else { 0 };
            out.push(sign);
            out.extend(body.iter().map(|byte| byte ^ mask));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &Kind, text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        append(kind, text, &mut out).unwrap();
        out
    }

    #[test]
    fn elements_of_the_specification() {
        assert_eq!(key(&Kind::Int8, "0"), [0x14]);
        assert_eq!(key(&Kind::Int8, "1"), [0x15, 1]);
        assert_eq!(key(&Kind::Int8, "-1"), [0x13, 0xfe]);
        assert_eq!(
            key(&Kind::Int8, "-9223372036854775808"),
            [0x0c, 0x7f, 255, 255, 255, 255, 255, 255, 255]
        );
        assert_eq!(key(&Kind::Text, "ab"), *b"\x02ab\0");
        assert_eq!(key(&Kind::Char, "ab  "), *b"\x02ab\0");
        assert_eq!(key(&Kind::Bytea, "\\x610062"), *b"\x01a\0\xffb\0");
    }

    #[test]
    fn numerics_sort_as_numbers_whatever_their_scale() {
        assert_eq!(key(&Kind::Numeric, "1.50"), [0x40, 3, 0x80, 0, 0, 1, 16, 0]);
        assert_eq!(key(&Kind::Numeric, "100"), key(&Kind::Numeric, "100.00"));
        assert_eq!(key(&Kind::Numeric, "-0.00"), key(&Kind::Numeric, "0"));
        let sorted = [
            "-Infinity",
            "-1000000",
            "-12.5",
            "-12.05",
            "-12",
            "-0.001",
            "0",
            "0.0000001",
            "0.1",
            "0.11",
            "1",
            "9.99",
            "10",
            "11",
            "1e",
            "Infinity",
            "NaN",
        ];
        let sorted = sorted
            .iter()
            .filter(|text| !text.ends_with('e'))
            .map(|text| key(&Kind::Numeric, text));
        assert!(sorted.collect::<Vec<_>>().is_sorted_by(|a, b| a < b));
        assert!(append(&Kind::Numeric, "1e5", &mut Vec::new()).is_err());
    }
}
