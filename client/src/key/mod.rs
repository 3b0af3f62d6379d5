//! Tuple keys: several typed parts in one key, ordered part by part.
//!
//! The encoding is the FoundationDB tuple layer's, so that other languages have libraries for it.
//!
//! ```
//! use reelkv_client::key;
//!
//! let packed = key::pack(&("rental", 42, true));
//! assert_eq!(key::to_text(&packed), r#"("rental", 42, true)"#);
//! assert_eq!(key::from_text(r#"("rental", 42, true)"#).unwrap(), packed);
//! let (table, id, open): (String, i64, bool) = key::unpack(&packed).unwrap();
//! assert_eq!((table.as_str(), id, open), ("rental", 42, true));
//! ```
//!
//! # As text
//!
//! | written | means |
//! |---|---|
//! | `()` , `(1, "a")` , `("a", (1, 2))` | a tuple; tuples nest |
//! | `1` , `-42` | an integer of 64 bits |
//! | `1.5` , `-2e10` , `inf` , `-inf` | a double |
//! | `1.5f32` , `inff32` | a single |
//! | `f64'7ff8000000000001'` , `f32'7fc00001'` | a float by its bits, for NaNs |
//! | `"a\n\u{1F3AC}"` | a string; escapes `\" \\ \n \r \t \0 \u{..}` |
//! | `b'00ff'` | bytes |
//! | `true` , `false` , `null` | |
//! | `123e4567-e89b-12d3-a456-426614174000` | a UUID |
//! | `versionstamp'00112233445566778899aabb'` | a versionstamp of 12 bytes |
//! | `x'00ff'` | outside any tuple: a key that is no tuple, as bytes |

mod text;

use bytes::Bytes;
use foundationdb_tuple::{PackError, TuplePack, TupleUnpack};

/// A part of a tuple whose type is known only at run time.
pub use foundationdb_tuple::Element;
/// A part of a tuple that is a UUID.
pub use foundationdb_tuple::Uuid;
pub use text::TextError;

/// Tuples nest at most this deep, so that no key can exhaust the stack of its reader.
pub const NESTING_MAX: usize = 32;

/// Packs a tuple such as `("rental", 42)` into a key.
pub fn pack(tuple: &impl TuplePack) -> Bytes {
    foundationdb_tuple::pack(tuple).into()
}

/// Takes a key apart again; `InvalidArgument` when it is not such a tuple.
///
/// With `Vec<Element>` as the type any tuple is taken apart.
pub fn unpack<'key, T: TupleUnpack<'key>>(key: &'key [u8]) -> crate::Result<T> {
    let not_so = |error: PackError| crate::Error::invalid("key", format!("not the expected tuple: {error}"));
    check_nesting(key).map_err(not_so)?;
    foundationdb_tuple::unpack(key).map_err(not_so)
}

/// Reads a key written as text; see the module for what can be written.
pub fn from_text(text: &str) -> Result<Bytes, TextError> {
    text::parse(text)
}

/// Writes a key as text that [`from_text`] reads back to the same bytes.
///
/// A tuple in its one canonical encoding is written as a tuple, anything else as `x'..'`.
pub fn to_text(key: &[u8]) -> String {
    match unpack::<Vec<Element<'_>>>(key) {
        Ok(elements) if text::can_write(&elements) && pack(&elements) == key => text::write(&elements),
        _ => text::write_raw(key),
    }
}

/// Walks over an encoded tuple without recursion. Where the encoding is wrong it stops: the decoder,
/// which goes no deeper than that, will say so.
fn check_nesting(key: &[u8]) -> Result<(), PackError> {
    let (mut rest, mut depth) = (key, 0);
    while let Some((&code, after)) = rest.split_first() {
        let skipped = match code {
            0x00 if depth > 0 && after.first() != Some(&0xff) => {
                depth -= 1;
                Some(0)
            }
            0x00 => Some(usize::from(depth > 0)),
            0x01 | 0x02 => after_escaped(after),
            0x05 => {
                depth += 1;
                Some(0)
            }
            0x0c..=0x1c => Some(usize::from(code.abs_diff(0x14))),
            0x0b => after.first().map(|length| 1 + usize::from(length ^ 0xff)),
            0x1d => after.first().map(|length| 1 + usize::from(*length)),
            0x20 => Some(4),
            0x21 => Some(8),
            0x26 | 0x27 => Some(0),
            0x30 => Some(16),
            0x33 => Some(12),
            _ => None,
        };
        if depth > NESTING_MAX {
            return Err(PackError::Message("nested too deep".into()));
        }
        match skipped.and_then(|skipped| after.get(skipped..)) {
            Some(next) => rest = next,
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Length of a string or bytes with its end: `00` ends it, `00 ff` is a zero inside.
fn after_escaped(encoded: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += encoded.get(at..)?.iter().position(|&byte| byte == 0)? + 1;
        if encoded.get(at) != Some(&0xff) {
            return Some(at);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodings that `fdb.tuple.pack` of Python prints.
    const VECTORS: &[(&str, &str)] = &[
        ("()", ""),
        ("(0)", "14"),
        ("(1)", "1501"),
        ("(-1)", "13fe"),
        ("(255)", "15ff"),
        ("(256)", "160100"),
        ("(-255)", "1300"),
        ("(-256)", "12feff"),
        ("(-5551212)", "11ab4b93"),
        ("(9223372036854775807)", "1c7fffffffffffffff"),
        (r#"("a\0b")"#, "026100ff6200"),
        (r#"(("n", null))"#, "05026e0000ff00"),
        ("(null)", "00"),
        ("((null))", "0500ff00"),
        ("(b'')", "0100"),
        ("(false, true)", "2627"),
        ("(-42.0f32)", "203dd7ffff"),
        (r#"("rental", 42)"#, "0272656e74616c00152a"),
    ];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn encodings_are_those_of_other_languages() {
        for (text, encoded) in VECTORS {
            let key = from_text(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(hex(&key), *encoded, "{text}");
            assert_eq!(to_text(&key), *text);
        }
        assert_eq!(hex(&pack(&(1_u64 << 63,))), "1c8000000000000000");
    }

    #[test]
    fn what_is_no_canonical_tuple_is_written_raw_and_comes_back() {
        // Plain text; an integer with a leading zero; 2^63, beyond 64 signed bits; a cut string; deep nesting.
        let deep = vec![0x05; 4096];
        let keys: [&[u8]; 5] = [
            b"alien",
            b"\x16\x00\x01",
            b"\x1c\x80\0\0\0\0\0\0\0",
            b"\x02ab",
            &deep,
        ];
        for key in keys {
            let text = to_text(key);
            assert!(text.starts_with("x'"), "{text}");
            assert_eq!(from_text(&text).unwrap(), key);
        }
    }

    #[test]
    fn nesting_is_bounded_both_ways() {
        let nested = |depth: usize| [vec![0x05; depth], vec![0x00; depth]].concat();
        assert!(unpack::<Vec<Element<'_>>>(&nested(NESTING_MAX)).is_ok());
        let error = unpack::<Vec<Element<'_>>>(&nested(NESTING_MAX + 1)).unwrap_err();
        assert!(error.to_string().contains("nested too deep"), "{error}");
        // Strings full of the code of nesting are not nested.
        assert!(unpack::<(Vec<u8>,)>(&pack(&(vec![5_u8; 1000],))).is_ok());
    }

    #[test]
    fn order_of_keys_is_order_of_parts() {
        let ascending = [
            "(null)",
            "(b'00')",
            "(b'ff')",
            r#"("a")"#,
            r#"("a", 1)"#,
            r#"("b")"#,
            "((1))",
            "(-300)",
            "(-2)",
            "(-1)",
            "(0)",
            "(1)",
            "(300)",
            "(-inf)",
            "(-1.5)",
            "(0.0)",
            "(1.5)",
            "(inf)",
            "(false)",
            "(true)",
        ];
        let keys = ascending.map(|text| from_text(text).unwrap());
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    }
}
