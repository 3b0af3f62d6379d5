//! Writes CBOR in the core deterministic encoding: every head in its shortest form, floats as short as keeps the value.

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;
const NULL: u8 = 0xf6;
const FLOAT_16: u8 = 0xf9;
const FLOAT_32: u8 = 0xfa;
const FLOAT_64: u8 = 0xfb;
const NAN_16: u16 = 0x7e00;

fn head(out: &mut Vec<u8>, major: u8, n: u64) {
    let major = major << 5;
    if n < 24 {
        out.push(major | n as u8);
    } else if let Ok(n) = u8::try_from(n) {
        out.extend_from_slice(&[major | 24, n]);
    } else if let Ok(n) = u16::try_from(n) {
        out.push(major | 25);
        out.extend_from_slice(&n.to_be_bytes());
    } else if let Ok(n) = u32::try_from(n) {
        out.push(major | 26);
        out.extend_from_slice(&n.to_be_bytes());
    } else {
        out.push(major | 27);
        out.extend_from_slice(&n.to_be_bytes());
    }
}

pub(crate) fn null(out: &mut Vec<u8>) {
    out.push(NULL);
}

pub(crate) fn bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { TRUE } else { FALSE });
}

pub(crate) fn int(out: &mut Vec<u8>, value: i64) {
    // A negative number n is written as -1 - n, which is its complement.
    if value >= 0 {
        head(out, UNSIGNED, value as u64)
    } else {
        head(out, NEGATIVE, !value as u64)
    }
}

pub(crate) fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    head(out, BYTES, value.len() as u64);
    out.extend_from_slice(value);
}

pub(crate) fn text(out: &mut Vec<u8>, value: &str) {
    head(out, TEXT, value.len() as u64);
    out.extend_from_slice(value.as_bytes());
}

/// The head of an array; its elements follow.
pub(crate) fn array(out: &mut Vec<u8>, elements: usize) {
    head(out, ARRAY, elements as u64);
}

/// The head of a map; its pairs follow, in the order of their encoded keys.
pub(crate) fn map(out: &mut Vec<u8>, pairs: usize) {
    head(out, MAP, pairs as u64);
}

/// A tag; what it tags follows.
pub(crate) fn tag(out: &mut Vec<u8>, tag: u64) {
    head(out, TAG, tag);
}

pub(crate) fn float(out: &mut Vec<u8>, value: f64) {
    if value.is_nan() {
        out.push(FLOAT_16);
        out.extend_from_slice(&NAN_16.to_be_bytes());
        return;
    }
    let narrow = value as f32;
    if f64::from(narrow).to_bits() != value.to_bits() {
        out.push(FLOAT_64);
        out.extend_from_slice(&value.to_bits().to_be_bytes());
    } else if let Some(half) = half(narrow) {
        out.push(FLOAT_16);
        out.extend_from_slice(&half.to_be_bytes());
    } else {
        out.push(FLOAT_32);
        out.extend_from_slice(&narrow.to_bits().to_be_bytes());
    }
}

/// The 16-bit float that has exactly this value, if there is one. Not for NaN.
fn half(value: f32) -> Option<u16> {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let mantissa = bits & 0x007f_ffff;
    if value == 0.0 {
        return Some(sign);
    }
    if value.is_infinite() {
        return Some(sign | 0x7c00);
    }
    match ((bits >> 23) & 0xff) as i32 - 127 {
        exponent @ -14..=15 if mantissa & 0x1fff == 0 => {
            Some(sign | ((exponent + 15) as u16) << 10 | (mantissa >> 13) as u16)
        }
        exponent @ -24..=-15 => {
            // Subnormal in 16 bits: the implied leading one becomes a digit.
            let digits = mantissa | 0x0080_0000;
            let shift = -1 - exponent;
            (digits & ((1 << shift) - 1) == 0).then_some(sign | (digits >> shift) as u16)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ciborium::Value;
    use proptest::prelude::*;

    use super::*;

    fn written(f: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        f(&mut out);
        out
    }

    fn read(bytes: &[u8]) -> Value {
        ciborium::from_reader(bytes).unwrap()
    }

    #[test]
    fn examples_of_the_rfc() {
        for (value, expected) in [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (255, "18ff"),
            (256, "190100"),
            (65536, "1a00010000"),
            (1_000_000_000_000, "1b000000e8d4a51000"),
            (-1, "20"),
            (-100, "3863"),
            (i64::MIN, "3b7fffffffffffffff"),
        ] {
            assert_eq!(hex(&written(|out| int(out, value))), expected, "{value}");
        }
        for (value, expected) in [
            (0.0, "f90000"),
            (-0.0, "f98000"),
            (1.0, "f93c00"),
            (1.5, "f93e00"),
            (65504.0, "f97bff"),
            (100000.0, "fa47c35000"),
            (3.4028234663852886e+38, "fa7f7fffff"),
            (1.0e+300, "fb7e37e43c8800759c"),
            (5.960464477539063e-8, "f90001"),
            (0.00006103515625, "f90400"),
            (-4.0, "f9c400"),
            (-4.1, "fbc010666666666666"),
            (f64::INFINITY, "f97c00"),
            (f64::NAN, "f97e00"),
            (-f64::NAN, "f97e00"),
            (f64::NEG_INFINITY, "f9fc00"),
        ] {
            assert_eq!(hex(&written(|out| float(out, value))), expected, "{value}");
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn floats_keep_their_value(bits in any::<u64>(), narrow in any::<u32>(), half in any::<u16>()) {
            let half = f64::from(f32::from_bits(u32::from(half) << 13)) * 2f64.powi(112);
            for value in [f64::from_bits(bits), f64::from(f32::from_bits(narrow)), half] {
                let Value::Float(back) = read(&written(|out| float(out, value))) else { panic!("not a float") };
                prop_assert!(back.to_bits() == value.to_bits() || back.is_nan() && value.is_nan());
            }
        }

        #[test]
        fn integers_keep_their_value(value in any::<i64>()) {
            prop_assert_eq!(read(&written(|out| int(out, value))), Value::Integer(value.into()));
        }
    }
}
