//! Binary column values of PostgreSQL → CBOR. Each arm reads what the type's `send` function wrote; all integers are
//! big-endian.

use crate::import::cbor;
use crate::import::numeric::Numeric;
use crate::kind::{Kind, tag};

/// Appends the CBOR of one column's value.
pub(crate) fn encode(kind: &Kind, value: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), String> {
    let Some(bytes) = value else {
        cbor::null(out);
        return Ok(());
    };
    match kind {
        Kind::Bool => cbor::bool(out, bool(bytes)?),
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid => cbor::int(out, int(kind, bytes)?),
        Kind::Float4 => cbor::float(out, f32::from_be_bytes(exactly(bytes)?).into()),
        Kind::Float8 => cbor::float(out, f64::from_be_bytes(exactly(bytes)?)),
        Kind::Text | Kind::Char | Kind::Enum => cbor::text(out, utf8(bytes)?),
        Kind::Bytea => cbor::bytes(out, bytes),
        Kind::Uuid => {
            cbor::tag(out, tag::UUID);
            cbor::bytes(out, &exactly::<16>(bytes)?);
        }
        Kind::Numeric => tagged_text(out, tag::NUMERIC, &Numeric::decode(bytes)?.print()),
        Kind::Date => tagged_int(out, tag::DATE, int(kind, bytes)?),
        Kind::Timestamp => tagged_int(out, tag::TIMESTAMP, int(kind, bytes)?),
        Kind::TimestampTz => tagged_int(out, tag::TIMESTAMPTZ, int(kind, bytes)?),
        Kind::Time => tagged_int(out, tag::TIME, int(kind, bytes)?),
        Kind::TimeTz => {
            let (micros, west) = split::<8, 4>(bytes)?;
            cbor::tag(out, tag::TIMETZ);
            cbor::array(out, 2);
            cbor::int(out, i64::from_be_bytes(micros));
            cbor::int(out, -i64::from(i32::from_be_bytes(west)));
        }
        Kind::Interval => interval(bytes, out)?,
        Kind::Json => tagged_text(out, tag::JSON, utf8(bytes)?),
        Kind::Jsonb => match bytes.split_first() {
            Some((1, text)) => tagged_text(out, tag::JSONB, utf8(text)?),
            _ => return Err("a jsonb of unknown version".to_owned()),
        },
        Kind::AsText => tagged_text(out, tag::AS_TEXT, utf8(bytes)?),
        Kind::Array(element) => array(element, bytes, out)?,
    }
    Ok(())
}

/// The value of a type that is an integer on the wire.
pub(crate) fn int(kind: &Kind, bytes: &[u8]) -> Result<i64, String> {
    Ok(match kind {
        Kind::Int2 => i16::from_be_bytes(exactly(bytes)?).into(),
        Kind::Int4 | Kind::Date => i32::from_be_bytes(exactly(bytes)?).into(),
        Kind::Oid => u32::from_be_bytes(exactly(bytes)?).into(),
        _ => i64::from_be_bytes(exactly(bytes)?),
    })
}

pub(crate) fn bool(bytes: &[u8]) -> Result<bool, String> {
    Ok(exactly::<1>(bytes)?[0] != 0)
}

pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("text that is not UTF-8: {error}"))
}

pub(crate) fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes
        .try_into()
        .map_err(|_| format!("{} bytes where {N} belong", bytes.len()))
}

fn split<const A: usize, const B: usize>(bytes: &[u8]) -> Result<([u8; A], [u8; B]), String> {
    match bytes.split_first_chunk() {
        Some((first, rest)) => Ok((*first, exactly(rest)?)),
        None => Err(format!("{} bytes where {} belong", bytes.len(), A + B)),
    }
}

fn tagged_int(out: &mut Vec<u8>, tag: u64, value: i64) {
    cbor::tag(out, tag);
    cbor::int(out, value);
}

fn tagged_text(out: &mut Vec<u8>, tag: u64, value: &str) {
    cbor::tag(out, tag);
    cbor::text(out, value);
}

/// Microseconds (8 bytes), days (4), months (4).
fn interval(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let (micros, rest) = split::<8, 8>(bytes)?;
    let (days, months) = split::<4, 4>(&rest)?;
    cbor::tag(out, tag::INTERVAL);
    cbor::array(out, 3);
    cbor::int(out, i32::from_be_bytes(months).into());
    cbor::int(out, i32::from_be_bytes(days).into());
    cbor::int(out, i64::from_be_bytes(micros));
    Ok(())
}

/// 4 bytes each: number of dimensions, whether there are NULLs, the element type; per dimension its length and lower
/// bound; then the elements in row-major order, each with its length or -1.
fn array(element: &Kind, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let mut rest = bytes;
    let dimensions = next_i32(&mut rest)?;
    next_i32(&mut rest)?;
    next_i32(&mut rest)?;
    // PostgreSQL's own limit is 6.
    if !(0..=64).contains(&dimensions) {
        return Err(format!("an array of {dimensions} dimensions"));
    }
    let (mut lengths, mut lowers) = (Vec::new(), Vec::new());
    for _ in 0..dimensions {
        lengths.push(
            usize::try_from(next_i32(&mut rest)?).map_err(|_| "an array of negative length".to_owned())?,
        );
        lowers.push(next_i32(&mut rest)?);
    }
    let count = match lengths.as_slice() {
        [] => 0,
        lengths => lengths
            .iter()
            .try_fold(1usize, |n, l| n.checked_mul(*l))
            .ok_or("an array too large")?,
    };
    let plain = count == 0 || lowers == [1];
    if !plain {
        cbor::tag(out, tag::ARRAY);
        cbor::array(out, 3);
        cbor::array(out, lengths.len());
        lengths.iter().for_each(|&length| cbor::int(out, length as i64));
        cbor::array(out, lowers.len());
        lowers.iter().for_each(|&lower| cbor::int(out, lower.into()));
    }
    cbor::array(out, count);
    for _ in 0..count {
        let value = match next_i32(&mut rest)? {
            -1 => None,
            length => {
                let length =
                    usize::try_from(length).map_err(|_| "an element of negative length".to_owned())?;
                let (value, tail) = rest
                    .split_at_checked(length)
                    .ok_or("an array that ends too early")?;
                rest = tail;
                Some(value)
            }
        };
        encode(element, value, out)?;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err("bytes after the last element of an array".to_owned())
    }
}

fn next_i32(bytes: &mut &[u8]) -> Result<i32, String> {
    let (value, rest) = bytes.split_first_chunk().ok_or("an array that ends too early")?;
    *bytes = rest;
    Ok(i32::from_be_bytes(*value))
}

#[cfg(test)]
mod tests {
    use ciborium::Value;
    use ciborium::Value::{Array, Bytes, Null, Tag, Text};

    use super::*;

    fn value(kind: &Kind, bytes: &[u8]) -> Result<Value, String> {
        let mut out = Vec::new();
        encode(kind, Some(bytes), &mut out)?;
        let value: Value = ciborium::from_reader(out.as_slice()).map_err(|error| error.to_string())?;
        let mut again = Vec::new();
        ciborium::into_writer(&value, &mut again).map_err(|error| error.to_string())?;
        assert_eq!(out, again, "shortest forms");
        Ok(value)
    }

    fn ints(values: &[i64]) -> Value {
        Array(values.iter().map(|&value| Value::from(value)).collect())
    }

    fn tagged(tag: u64, value: impl Into<Value>) -> Value {
        Tag(tag, Box::new(value.into()))
    }

    #[test]
    fn dates_and_times_with_infinities_and_bc() {
        assert_eq!(
            value(&Kind::Date, &8081i32.to_be_bytes()).unwrap(),
            tagged(tag::DATE, 8081)
        );
        assert_eq!(
            value(&Kind::Date, &i32::MAX.to_be_bytes()).unwrap(),
            tagged(tag::DATE, i32::MAX)
        );
        assert_eq!(
            value(&Kind::Date, &(-746_000i32).to_be_bytes()).unwrap(),
            tagged(tag::DATE, -746_000)
        );
        for (kind, tag) in [
            (Kind::Timestamp, tag::TIMESTAMP),
            (Kind::TimestampTz, tag::TIMESTAMPTZ),
        ] {
            for micros in [0, -1, i64::MIN, i64::MAX] {
                assert_eq!(value(&kind, &micros.to_be_bytes()).unwrap(), tagged(tag, micros));
            }
        }
        assert_eq!(
            value(&Kind::Time, &86_400_000_000i64.to_be_bytes()).unwrap(),
            tagged(tag::TIME, 86_400_000_000i64)
        );
        let timetz = [&3_600_000_000i64.to_be_bytes()[..], &(-19_800i32).to_be_bytes()].concat();
        assert_eq!(
            value(&Kind::TimeTz, &timetz).unwrap(),
            tagged(tag::TIMETZ, ints(&[3_600_000_000, 19_800]))
        );
        let interval = [
            &(-5i64).to_be_bytes()[..],
            &3i32.to_be_bytes(),
            &(-14i32).to_be_bytes(),
        ]
        .concat();
        assert_eq!(
            value(&Kind::Interval, &interval).unwrap(),
            tagged(tag::INTERVAL, ints(&[-14, 3, -5]))
        );
    }

    fn array_bytes(dimensions: &[(i32, i32)], elements: &[Option<i32>]) -> Vec<u8> {
        let mut words = vec![dimensions.len() as i32, 1, 23];
        words.extend(dimensions.iter().flat_map(|&(length, lower)| [length, lower]));
        for element in elements {
            words.extend(element.map_or(vec![-1], |value| vec![4, value]));
        }
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn arrays_empty_with_nulls_with_bounds_and_of_two_dimensions() {
        let kind = Kind::Array(Box::new(Kind::Int4));
        assert_eq!(value(&kind, &array_bytes(&[], &[])).unwrap(), ints(&[]));
        let with_null = array_bytes(&[(3, 1)], &[Some(1), None, Some(-3)]);
        assert_eq!(
            value(&kind, &with_null).unwrap(),
            Array(vec![1.into(), Null, (-3).into()])
        );
        let bounds = Array(vec![ints(&[2]), ints(&[0]), ints(&[7, 8])]);
        assert_eq!(
            value(&kind, &array_bytes(&[(2, 0)], &[Some(7), Some(8)])).unwrap(),
            tagged(tag::ARRAY, bounds)
        );
        let square = Array(vec![ints(&[2, 1]), ints(&[1, 1]), ints(&[7, 8])]);
        assert_eq!(
            value(&kind, &array_bytes(&[(2, 1), (1, 1)], &[Some(7), Some(8)])).unwrap(),
            tagged(tag::ARRAY, square)
        );
        let whole = array_bytes(&[(2, 1)], &[Some(7), Some(8)]);
        for end in 0..whole.len() {
            assert!(value(&kind, &whole[..end]).is_err(), "cut at {end}");
        }
        assert!(value(&kind, &[&whole[..], &[0]].concat()).is_err());
        assert!(
            value(
                &kind,
                &array_bytes(&[(i32::MAX, 1), (i32::MAX, 1), (i32::MAX, 1)], &[])
            )
            .is_err()
        );
    }

    #[test]
    fn scalars_and_wrong_lengths() {
        assert_eq!(value(&Kind::Int2, &[0xff, 0xfe]).unwrap(), Value::from(-2));
        assert_eq!(value(&Kind::Oid, &[0xff; 4]).unwrap(), Value::from(u32::MAX));
        assert_eq!(
            value(&Kind::Float4, &1.1f32.to_be_bytes()).unwrap(),
            Value::Float(f64::from(1.1f32))
        );
        assert_eq!(value(&Kind::Char, b"x  ").unwrap(), Text("x  ".to_owned()));
        assert_eq!(value(&Kind::Bytea, b"\0\xff").unwrap(), Bytes(vec![0, 255]));
        assert_eq!(
            value(&Kind::Uuid, &[7; 16]).unwrap(),
            tagged(tag::UUID, Bytes(vec![7; 16]))
        );
        assert_eq!(value(&Kind::Jsonb, b"\x01{}").unwrap(), tagged(tag::JSONB, "{}"));
        for (kind, bytes) in [
            (Kind::Int4, &b"abc"[..]),
            (Kind::Uuid, b"abc"),
            (Kind::Text, b"\xff"),
            (Kind::Jsonb, b"\x02{}"),
            (Kind::Interval, b"abc"),
            (Kind::Bool, b""),
            (Kind::Numeric, b"ab"),
        ] {
            assert!(value(&kind, bytes).is_err(), "{kind:?}");
        }
    }
}
