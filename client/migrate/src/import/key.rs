//! Binary column values → tuple elements.
//!
//! Element types are those of the FoundationDB tuple layer, and one of ours. `numeric` is user type code `0x40`:
//!
//! ```text
//! 0x40, class: 0 −Infinity, 1 negative, 2 zero, 3 positive, 4 Infinity, 5 NaN (PostgreSQL's order)
//! and for 1 and 3, where the number is ±0.d₁d₂d₃… × 10^e with d₁ ≠ 0 and no trailing zeros:
//!   e     4 bytes, big-endian, sign bit flipped
//!   pairs of decimal digits, one byte each, 1 + pair (1..=100); a last single digit is paired with 0
//!   0x00
//! ```
//!
//! and for negative numbers all bytes after the class are complemented. The form ends itself, so anything may follow.
//! Numbers that are equal have one form, whatever their scale.

use foundationdb_tuple::{Bytes, TuplePack, pack_into};

use crate::import::numeric::Numeric;
use crate::import::value;
use crate::kind::Kind;

/// Type code of a `numeric` in a tuple.
const NUMERIC: u8 = 0x40;

/// Type code of a UUID in a tuple.
const UUID: u8 = 0x30;

/// The one NaN of each width: positive and quiet, so that it sorts above infinity, as in PostgreSQL.
const NAN_32: f32 = f32::from_bits(0x7fc0_0000);
const NAN_64: f64 = f64::from_bits(0x7ff8_0000_0000_0000);

/// Appends one element. The kind has an order expression; a key is never NULL.
pub(crate) fn encode_element(kind: &Kind, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    match kind {
        Kind::Bool => pack(&value::bool(bytes)?, out),
        Kind::Int2
        | Kind::Int4
        | Kind::Int8
        | Kind::Oid
        | Kind::Date
        | Kind::Time
        | Kind::Timestamp
        | Kind::TimestampTz => pack(&value::int(kind, bytes)?, out),
        Kind::Float4 => {
            let number = f32::from_be_bytes(value::exactly(bytes)?);
            // Adding 0.0 turns -0.0 into 0.0, which PostgreSQL holds equal; so are all NaNs.
            pack(&if number.is_nan() { NAN_32 } else { number + 0.0 }, out);
        }
        Kind::Float8 => {
            let number = f64::from_be_bytes(value::exactly(bytes)?);
            pack(&if number.is_nan() { NAN_64 } else { number + 0.0 }, out);
        }
        Kind::Numeric => {
            out.push(NUMERIC);
            Numeric::decode(bytes)?.encode_key(out);
        }
        Kind::Text | Kind::Enum => pack(&value::utf8(bytes)?, out),
        Kind::Char => pack(&value::utf8(bytes)?.trim_end_matches(' '), out),
        Kind::Bytea => pack(&Bytes::from(bytes), out),
        Kind::Uuid => {
            // The layer's own element, without its dependency: the code, then the bytes.
            out.push(UUID);
            out.extend_from_slice(&value::exactly::<16>(bytes)?);
        }
        Kind::TimeTz | Kind::Interval | Kind::Json | Kind::Jsonb | Kind::AsText | Kind::Array(_) => {
            return Err(format!("a {kind:?} cannot be part of a key"));
        }
    }
    Ok(())
}

fn pack(element: &impl TuplePack, out: &mut Vec<u8>) {
    // What is returned concerns versionstamps, which we do not use.
    let _ = pack_into(element, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &Kind, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_element(kind, bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn elements_are_those_of_the_tuple_layer() {
        assert_eq!(key(&Kind::Int4, &1i32.to_be_bytes()), [0x15, 1]);
        assert_eq!(key(&Kind::Int8, &(-1i64).to_be_bytes()), [0x13, 0xfe]);
        assert_eq!(key(&Kind::Text, b"ab"), *b"\x02ab\0");
        assert_eq!(key(&Kind::Char, b"ab \t  "), *b"\x02ab \t\0");
        assert_eq!(key(&Kind::Bytea, b"a\0b"), *b"\x01a\0\xffb\0");
        assert_eq!(key(&Kind::Bool, &[1]), [0x27]);
        assert_eq!(key(&Kind::Numeric, &[0; 8]), [0x40, 2]);
    }

    #[test]
    fn floats_sort_with_nan_last_and_one_zero() {
        let float = |value: f64| key(&Kind::Float8, &value.to_be_bytes());
        assert_eq!(float(0.0), float(-0.0));
        assert_eq!(float(f64::NAN), float(-f64::NAN));
        let sorted = [
            f64::NEG_INFINITY,
            -1.5,
            -1e-300,
            0.0,
            1e-300,
            1.5,
            f64::INFINITY,
            f64::NAN,
        ];
        assert!(sorted.is_sorted_by(|a, b| float(*a) < float(*b)));
    }

    #[test]
    fn times_sort_between_their_infinities() {
        let stamp = |value: i64| key(&Kind::TimestampTz, &value.to_be_bytes());
        let sorted = [
            i64::MIN,
            i64::MIN + 1,
            -257,
            -256,
            -255,
            -1,
            0,
            1,
            255,
            256,
            i64::MAX - 1,
            i64::MAX,
        ];
        assert!(sorted.is_sorted_by(|a, b| stamp(*a) < stamp(*b)));
    }
}
