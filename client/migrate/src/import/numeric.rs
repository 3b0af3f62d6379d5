//! PostgreSQL's binary `numeric`, and its order-preserving key.
//!
//! On the wire (all big-endian, 16 bits each): number of digits, weight, sign, display scale, then the digits, each
//! 0..=9999. The value is Σ digit[i] × 10000^(weight − i).

use std::fmt::Write;

const SIGN_POSITIVE: u16 = 0x0000;
const SIGN_NEGATIVE: u16 = 0x4000;
const SIGN_NAN: u16 = 0xc000;
const SIGN_INFINITY: u16 = 0xd000;
const SIGN_MINUS_INFINITY: u16 = 0xf000;

/// A decoded number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Numeric {
    NaN,
    Infinity,
    MinusInfinity,
    /// Base-10000 digits; the first stands for 10000^weight.
    Finite {
        negative: bool,
        weight: i32,
        scale: usize,
        digits: Vec<u16>,
    },
}

impl Numeric {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Numeric, String> {
        let words: Vec<u16> = bytes
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect();
        let [count, weight, sign, scale, digits @ ..] = words.as_slice() else {
            return Err(format!("a numeric of {} bytes", bytes.len()));
        };
        if !bytes.len().is_multiple_of(2)
            || usize::from(*count) != digits.len()
            || digits.iter().any(|&digit| digit > 9999)
        {
            return Err(format!(
                "a numeric of {} bytes that names {count} digits",
                bytes.len()
            ));
        }
        match *sign {
            SIGN_NAN => Ok(Numeric::NaN),
            SIGN_INFINITY => Ok(Numeric::Infinity),
            SIGN_MINUS_INFINITY => Ok(Numeric::MinusInfinity),
            SIGN_POSITIVE | SIGN_NEGATIVE => Ok(Numeric::Finite {
                negative: *sign == SIGN_NEGATIVE,
                weight: i32::from(*weight as i16),
                scale: usize::from(*scale),
                digits: digits.to_vec(),
            }),
            other => Err(format!("a numeric of sign {other:#06x}")),
        }
    }

    /// As PostgreSQL prints it: every digit of the scale, no exponent.
    pub(crate) fn print(&self) -> String {
        let (negative, weight, scale, digits) = match self {
            Numeric::NaN => return "NaN".to_owned(),
            Numeric::Infinity => return "Infinity".to_owned(),
            Numeric::MinusInfinity => return "-Infinity".to_owned(),
            Numeric::Finite {
                negative,
                weight,
                scale,
                digits,
            } => (*negative, *weight, *scale, digits),
        };
        let digit = |place: i32| {
            usize::try_from(place)
                .ok()
                .and_then(|place| digits.get(place))
                .copied()
                .unwrap_or(0)
        };
        let mut text = String::new();
        if negative {
            text.push('-');
        }
        match weight {
            ..0 => text.push('0'),
            0.. => {
                // Writing to a string cannot fail.
                let _ = write!(text, "{}", digit(0));
                for place in 1..=weight {
                    let _ = write!(text, "{:04}", digit(place));
                }
            }
        }
        if scale > 0 {
            text.push('.');
            let end = text.len() + scale;
            for place in (weight + 1).. {
                if text.len() >= end {
                    break;
                }
                let _ = write!(text, "{:04}", digit(place));
            }
            text.truncate(end);
        }
        text
    }

    /// Appends the key form described in [`super::key`].
    pub(crate) fn encode_key(&self, out: &mut Vec<u8>) {
        let (negative, weight, digits) = match self {
            Numeric::MinusInfinity => return out.push(class::MINUS_INFINITY),
            Numeric::Infinity => return out.push(class::INFINITY),
            Numeric::NaN => return out.push(class::NAN),
            Numeric::Finite {
                negative,
                weight,
                digits,
                ..
            } => (*negative, *weight, digits),
        };
        let decimal: String = digits.iter().map(|digit| format!("{digit:04}")).collect();
        let significant = decimal.trim_start_matches('0');
        let exponent = 4 * (weight + 1) - (decimal.len() - significant.len()) as i32;
        let significant = significant.trim_end_matches('0').as_bytes();
        if significant.is_empty() {
            return out.push(class::ZERO);
        }
        out.push(if negative {
            class::NEGATIVE
        } else {
            class::POSITIVE
        });
        let start = out.len();
        // Flipping the sign bit makes signed integers sort as bytes.
        out.extend_from_slice(&(exponent as u32 ^ 0x8000_0000).to_be_bytes());
        for pair in significant.chunks(2) {
            let units = pair.get(1).map_or(0, |digit| digit - b'0');
            out.push((pair[0] - b'0') * 10 + units + 1);
        }
        out.push(0);
        if negative {
            out[start..].iter_mut().for_each(|byte| *byte = !*byte);
        }
    }
}

/// The byte after the type code, in PostgreSQL's order.
mod class {
    pub(super) const MINUS_INFINITY: u8 = 0;
    pub(super) const NEGATIVE: u8 = 1;
    pub(super) const ZERO: u8 = 2;
    pub(super) const POSITIVE: u8 = 3;
    pub(super) const INFINITY: u8 = 4;
    pub(super) const NAN: u8 = 5;
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    /// A number as the server would send it.
    fn wire(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
        let head = [digits.len() as u16, weight as u16, sign, scale];
        head.iter()
            .chain(digits)
            .flat_map(|word| word.to_be_bytes())
            .collect()
    }

    fn print(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> String {
        Numeric::decode(&wire(weight, sign, scale, digits))
            .unwrap()
            .print()
    }

    #[test]
    fn prints_zero_fractions_huge_scales_and_the_specials() {
        assert_eq!(print(0, 0, 0, &[]), "0");
        assert_eq!(print(0, 0, 3, &[]), "0.000");
        assert_eq!(print(0, 0, 2, &[12, 5000]), "12.50");
        assert_eq!(print(-1, SIGN_NEGATIVE, 4, &[1]), "-0.0001");
        assert_eq!(print(-2, 0, 8, &[1]), "0.00000001");
        assert_eq!(print(1, 0, 0, &[1]), "10000");
        assert_eq!(print(2, 0, 1, &[123, 4567, 8901, 2000]), "12345678901.2");
        assert_eq!(print(-4096, 0, 16383, &[10]), format!("0.{}1", "0".repeat(16382)));
        assert_eq!(print(32767, 0, 0, &[9]), format!("9{}", "0000".repeat(32767)));
        assert_eq!(print(0, SIGN_NAN, 0, &[]), "NaN");
        assert_eq!(print(0, SIGN_INFINITY, 0, &[]), "Infinity");
        assert_eq!(print(0, SIGN_MINUS_INFINITY, 0, &[]), "-Infinity");
    }

    #[test]
    fn refuses_what_is_not_a_numeric() {
        for bytes in [
            &[][..],
            &[0; 7],
            &[0, 1, 0, 0, 0, 0, 0, 0],
            &wire(0, 0x1234, 0, &[]),
            &wire(0, 0, 0, &[10000]),
        ] {
            assert!(Numeric::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    fn key(number: &Numeric) -> Vec<u8> {
        let mut out = Vec::new();
        number.encode_key(&mut out);
        out
    }

    #[test]
    fn equal_numbers_have_equal_keys() {
        let one = Numeric::decode(&wire(0, 0, 0, &[1])).unwrap();
        let one_point_zero = Numeric::decode(&wire(0, 0, 1, &[1, 0])).unwrap();
        assert_eq!(key(&one), key(&one_point_zero));
        assert_eq!(key(&Numeric::decode(&wire(0, 0, 5, &[])).unwrap()), [class::ZERO]);
    }

    /// The number mantissa × 10^−scale.
    fn number(mantissa: i64, scale: u32) -> Numeric {
        let digits = format!("{:0>1$}", mantissa.unsigned_abs(), 80 + scale as usize % 4);
        let padding = "0".repeat((4 - scale % 4) as usize % 4);
        let digits = format!("{digits}{padding}");
        let groups = digits.len() as i32 / 4;
        Numeric::Finite {
            negative: mantissa < 0,
            weight: groups - 1 - (scale + 3) as i32 / 4,
            scale: scale as usize,
            digits: digits
                .as_bytes()
                .chunks(4)
                .map(|c| std::str::from_utf8(c).unwrap().parse().unwrap())
                .collect(),
        }
    }

    #[test]
    fn specials_sort_as_in_postgres_with_nan_last() {
        let sorted = [
            Numeric::MinusInfinity,
            number(i64::MIN, 0),
            number(-10, 1),
            number(-1, 18),
            number(0, 0),
            number(1, 18),
            number(1, 0),
            number(i64::MAX, 0),
            Numeric::Infinity,
            Numeric::NaN,
        ];
        assert!(sorted.is_sorted_by(|a, b| key(a) < key(b)));
    }

    proptest! {
        #[test]
        fn keys_sort_as_numbers(a in any::<i64>(), b in any::<i64>(), s in 0u32..19, t in 0u32..19, near in -3i64..4) {
            for (b, t) in [(b, t), (a.saturating_add(near), s), (a / 10, s.saturating_sub(1))] {
                let scaled = |mantissa: i64, scale: u32| i128::from(mantissa) * 10i128.pow(18 - scale);
                let expected = scaled(a, s).cmp(&scaled(b, t));
                let (left, right) = (key(&number(a, s)), key(&number(b, t)));
                prop_assert_eq!(left.cmp(&right), expected, "{} e-{} against {} e-{}", a, s, b, t);
                // What follows in a tuple must not change the order.
                if expected != Ordering::Equal {
                    prop_assert_eq!([&left[..], &[0xff]].concat().cmp(&[&right[..], &[0]].concat()), expected);
                }
            }
        }
    }
}
