//! A stored key as JSON.

use serde_json::Value as Json;

use crate::decode::{float, hex, uuid};

/// A tuple key as a JSON array. What cannot be read as an element ends the array as `\x…` in hexadecimal.
pub fn decode_key(key: &[u8]) -> Json {
    let mut rest = key;
    let mut elements = Vec::new();
    while !rest.is_empty() {
        match element(rest) {
            Some((value, after)) => {
                elements.push(value);
                rest = after;
            }
            None => {
                elements.push(format!("\\x{}", hex(rest)).into());
                break;
            }
        }
    }
    Json::Array(elements)
}

/// The first element of a tuple and what follows it.
fn element(bytes: &[u8]) -> Option<(Json, &[u8])> {
    let (&code, rest) = bytes.split_first()?;
    match code {
        0x00 => Some((Json::Null, rest)),
        0x01 => terminated(rest).map(|(bytes, rest)| (format!("\\x{}", hex(&bytes)).into(), rest)),
        0x02 => {
            terminated(rest).map(|(bytes, rest)| (String::from_utf8_lossy(&bytes).into_owned().into(), rest))
        }
        0x0c..=0x1c => {
            let (digits, rest) = rest.split_at_checked(code.abs_diff(0x14).into())?;
            let magnitude = |mask: u8| {
                digits
                    .iter()
                    .fold(0i128, |n, byte| n << 8 | i128::from(byte ^ mask))
            };
            let number = if code < 0x14 {
                -magnitude(0xff)
            } else {
                magnitude(0)
            };
            Some((
                i64::try_from(number).map_or_else(|_| number.to_string().into(), Json::from),
                rest,
            ))
        }
        0x20 => {
            let (bits, rest) = rest.split_first_chunk()?;
            let bits = u32::from_be_bytes(*bits);
            let bits = if bits >> 31 == 1 { bits ^ (1 << 31) } else { !bits };
            Some((float(f32::from_bits(bits).into()), rest))
        }
        0x21 => {
            let (bits, rest) = rest.split_first_chunk()?;
            let bits = u64::from_be_bytes(*bits);
            Some((
                float(f64::from_bits(if bits >> 63 == 1 {
                    bits ^ (1 << 63)
                } else {
                    !bits
                })),
                rest,
            ))
        }
        0x26 => Some((false.into(), rest)),
        0x27 => Some((true.into(), rest)),
        0x30 => rest
            .split_first_chunk::<16>()
            .map(|(bytes, rest)| (uuid(bytes).into(), rest)),
        0x40 => numeric(rest),
        _ => None,
    }
}

/// Bytes up to a zero that no `0xff` follows; `00 ff` stands for a zero.
fn terminated(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut out = Vec::new();
    let mut rest = bytes;
    loop {
        match rest {
            [0, 0xff, tail @ ..] => {
                out.push(0);
                rest = tail;
            }
            [0, tail @ ..] => return Some((out, tail)),
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
            [] => return None,
        }
    }
}

/// A numeric as a string: plain digits, or with an exponent if it has more than 40.
fn numeric(bytes: &[u8]) -> Option<(Json, &[u8])> {
    let (&class, rest) = bytes.split_first()?;
    let (mask, sign) = match class {
        0 => return Some(("-Infinity".into(), rest)),
        2 => return Some(("0".into(), rest)),
        4 => return Some(("Infinity".into(), rest)),
        5 => return Some(("NaN".into(), rest)),
        1 => (0xff, "-"),
        3 => (0, ""),
        _ => return None,
    };
    let (exponent, rest) = rest.split_first_chunk::<4>()?;
    let exponent = u32::from_be_bytes(exponent.map(|byte| byte ^ mask)) ^ 0x8000_0000;
    let exponent = i64::from(exponent as i32);
    let end = rest.iter().position(|byte| byte ^ mask == 0)?;
    let pairs = rest[..end]
        .iter()
        .map(|byte| format!("{:02}", (byte ^ mask).wrapping_sub(1)));
    let digits = pairs.collect::<String>();
    let digits = digits.trim_end_matches('0');
    let count = digits.len() as i64;
    let text = match exponent {
        1..=40 if exponent >= count => format!("{digits}{}", "0".repeat((exponent - count) as usize)),
        1..=40 => format!(
            "{}.{}",
            &digits[..exponent as usize],
            &digits[exponent as usize..]
        ),
        -40..=0 => format!("0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize)),
        _ => format!("0.{digits}e{exponent}"),
    };
    Some((format!("{sign}{text}").into(), &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use foundationdb_tuple::{Bytes, pack};
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_of_the_tuple_layer() {
        let key = pack(&(
            1i64,
            -300i64,
            "a\0é",
            Bytes::from(&b"\0\xff"[..]),
            1.5f64,
            -2.5f32,
            true,
            i64::MIN,
            0i64,
        ));
        let expected = json!([1, -300, "a\0é", "\\x00ff", 1.5, -2.5, true, i64::MIN, 0]);
        assert_eq!(decode_key(&key), expected);
        assert_eq!(decode_key(&[0x15, 7, 0x77, 1]), json!([7, "\\x7701"]));
        assert_eq!(decode_key(b"\x02ab"), json!(["\\x026162"]));
    }
}
