//! Keys and values as people type and read them.
//!
//! A key is written as a tuple, `(1, "abc")`, or as bytes, `x'00ff'`; what is printed can be typed again.
//! `--raw-key` takes and prints it as the text it is, `--hex-key` in hexadecimal.
//!
//! A value is shown as the first of these that it is:
//!
//! | value | on a line | in JSON |
//! |---|---|---|
//! | a row of an import (format byte and CBOR) | JSON | `"row": {…}` |
//! | UTF-8 without control characters but tab and line ends | as it is | `"text": "…"` |
//! | anything else | `x'00ff'` | `"hex": "00ff"`; of 8 bytes also `"integer"`, as `add` stores it |

use bytes::Bytes;
use clap::Args;
use reelkv_client::{Record, ScanRange, key, limits};
use reelkv_migrate::{FORMAT_CBOR, decode_key, decode_row};
use serde_json::{Value as Json, json};

use super::failure::Failure;
use super::output::{from_hex, hex};

/// How keys are written.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct KeyForm {
    /// Keys are the bytes of the text as given, not tuples
    #[arg(long, conflicts_with = "hex_key")]
    pub(crate) raw_key: bool,
    /// Keys are given and printed in hexadecimal
    #[arg(long)]
    pub(crate) hex_key: bool,
}

impl KeyForm {
    /// Reads a key; bad input when it is malformed or too long.
    pub(crate) fn parse(self, text: &str) -> Result<Bytes, Failure> {
        let key = if self.raw_key {
            Bytes::copy_from_slice(text.as_bytes())
        } else if self.hex_key {
            let key = from_hex(text).map(Bytes::from);
            key.ok_or_else(|| Failure::bad_input(format!("key {text:?} is not hexadecimal")))?
        } else {
            let hint = "or use --raw-key for a key that is plain text";
            key::from_text(text)
                .map_err(|error| Failure::bad_input(format!("key {text:?}: {error}; {hint}")))?
        };
        check_length("key", key.len(), limits::KEY_BYTES_MAX)?;
        Ok(key)
    }

    /// Writes a key as [`parse`](Self::parse) reads it; a raw key that is no plain text as `x'..'`.
    pub(crate) fn show(self, key: &[u8]) -> String {
        if self.hex_key {
            return hex(key);
        }
        match std::str::from_utf8(key) {
            Ok(text) if self.raw_key && !text.chars().any(char::is_control) => text.to_owned(),
            _ if self.raw_key => format!("x'{}'", hex(key)),
            _ => key::to_text(key),
        }
    }

    /// The keys that begin with what is written: for a tuple those whose first elements are its, itself included.
    pub(crate) fn prefix(self, text: &str) -> Result<ScanRange, Failure> {
        let prefix = self.parse(text)?;
        let is_tuple = !self.raw_key && !self.hex_key && text.trim_start().starts_with('(');
        if is_tuple && !prefix.is_empty() {
            // No element's encoding begins with ff; but a zero inside a string is 00 ff, and that string is another.
            let end = [&prefix[..], &[0xff]].concat();
            return Ok(ScanRange::between(prefix, end));
        }
        Ok(ScanRange::prefix(prefix))
    }
}

/// Bad input naming the limit when something is too long.
pub(crate) fn check_length(what: &str, length: usize, max: usize) -> Result<(), Failure> {
    match length <= max {
        true => Ok(()),
        false => Err(Failure::bad_input(format!(
            "the {what} has {length} bytes, at most {max} are allowed"
        ))),
    }
}

/// A value, as what it is shown.
#[derive(Debug, PartialEq)]
pub(crate) enum Shown<'v> {
    /// A row of an import.
    Row(Json),
    /// Plain text.
    Text(&'v str),
    /// Anything else.
    Bytes(&'v [u8]),
}

impl<'v> Shown<'v> {
    pub(crate) fn of(value: &'v [u8]) -> Self {
        if value.first() == Some(&FORMAT_CBOR)
            && let Ok(row) = decode_row(value)
        {
            return Self::Row(row);
        }
        let is_odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
        match std::str::from_utf8(value) {
            Ok(text) if !text.chars().any(is_odd) => Self::Text(text),
            _ => Self::Bytes(value),
        }
    }

    /// In one line: a line end or tab in a text is escaped.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Row(row) => row.to_string(),
            Self::Text(text) => text
                .replace('\\', r"\\")
                .replace('\n', r"\n")
                .replace('\r', r"\r")
                .replace('\t', r"\t"),
            Self::Bytes(bytes) => format!("x'{}'", hex(bytes)),
        }
    }
}

/// The integer that `add` stores as these bytes.
pub(crate) fn integer(value: &[u8]) -> Option<i64> {
    value.try_into().ok().map(i64::from_be_bytes)
}

/// A record as one JSON object. With `hex_value` the value is always given byte by byte.
pub(crate) fn record_json(record: &Record, form: KeyForm, hex_value: bool) -> Json {
    let mut json = json!({
        "key": form.show(&record.key),
        "version": record.version,
        "logged_time_ms": record.logged_time_ms,
    });
    if let Some(at_ms) = record.expires_at_ms {
        json["expires_at_ms"] = at_ms.into();
    }
    let shown = match hex_value {
        true => Shown::Bytes(&record.value),
        false => Shown::of(&record.value),
    };
    match shown {
        Shown::Row(row) => {
            // An imported key may hold what no tuple text has a form for, such as `numeric`.
            json["primary_key"] = decode_key(&record.key);
            json["row"] = row;
        }
        Shown::Text(text) => json["text"] = text.into(),
        Shown::Bytes(bytes) => {
            json["hex"] = hex(bytes).into();
            if let Some(number) = integer(bytes).filter(|_| !hex_value) {
                json["integer"] = number.into();
            }
        }
    }
    json
}

#[cfg(test)]
mod tests {
    use super::super::failure::Status;
    use super::*;

    const TUPLE: KeyForm = KeyForm {
        raw_key: false,
        hex_key: false,
    };
    const RAW: KeyForm = KeyForm {
        raw_key: true,
        hex_key: false,
    };
    const HEX: KeyForm = KeyForm {
        raw_key: false,
        hex_key: true,
    };
    /// `{"id": 7}` as the import writes it.
    const ROW: &[u8] = b"\x01\xa1\x62id\x07";

    #[test]
    fn keys_are_read_and_written_in_three_forms() {
        let cases = [
            (TUPLE, r#"(1, "abc")"#, &b"\x15\x01\x02abc\0"[..]),
            (TUPLE, "x'00ff'", b"\x00\xff"),
            (RAW, "film/1", b"film/1"),
            (RAW, "(1)", b"(1)"),
            (HEX, "00ff", b"\x00\xff"),
        ];
        for (form, text, key) in cases {
            assert_eq!(form.parse(text).unwrap(), key, "{text}");
            assert_eq!(form.show(key), text);
        }
        assert_eq!(RAW.show(b"a\tb"), "x'610962'");
        assert_eq!(RAW.show(b"\xff"), "x'ff'");
    }

    #[test]
    fn malformed_and_long_keys_are_bad_input() {
        let long = "k".repeat(4097);
        let cases = [
            (TUPLE, "alien", "--raw-key"),
            (TUPLE, "(1", "byte 2"),
            (TUPLE, "", "expected a tuple"),
            (HEX, "0", "not hexadecimal"),
            (RAW, &long, "4097 bytes, at most 4096"),
        ];
        for (form, text, words) in cases {
            let failure = form.parse(text).unwrap_err();
            assert_eq!(failure.status, Status::BadInput, "{text}");
            let message = failure.message.unwrap();
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn a_prefix_of_a_tuple_is_of_its_elements() {
        let range = TUPLE.prefix(r#"("ab")"#).unwrap();
        let is_in = |text: &str| {
            let key = TUPLE.parse(text).unwrap();
            key >= range.start && key < range.end
        };
        for text in [r#"("ab")"#, r#"("ab", 1)"#, r#"("ab", ("x"))"#, r#"("ab", null)"#] {
            assert!(is_in(text), "{text}");
        }
        for text in [r#"("ab\0c")"#, r#"("abc")"#, r#"("aa", 1)"#, "()"] {
            assert!(!is_in(text), "{text}");
        }
        assert_eq!(TUPLE.prefix("()").unwrap(), ScanRange::all());
        assert_eq!(RAW.prefix("ab").unwrap(), ScanRange::between("ab", "ac"));
        assert_eq!(TUPLE.prefix("x'01'").unwrap(), ScanRange::between([1], [2]));
    }

    #[test]
    fn values_are_shown_as_rows_text_or_bytes() {
        let row = json!({"id": 7});
        let cases: [(&[u8], Shown<'_>, &str); 7] = [
            (ROW, Shown::Row(row), r#"{"id":7}"#),
            (b"", Shown::Text(""), ""),
            ("größe".as_bytes(), Shown::Text("größe"), "größe"),
            (b"a\tb\n\\", Shown::Text("a\tb\n\\"), r"a\tb\n\\"),
            // Of the right format byte, but no row.
            (b"\x01zzz", Shown::Bytes(b"\x01zzz"), "x'017a7a7a'"),
            (b"\xff", Shown::Bytes(b"\xff"), "x'ff'"),
            (b"\x1b[31m", Shown::Bytes(b"\x1b[31m"), "x'1b5b33316d'"),
        ];
        for (value, shown, line) in cases {
            assert_eq!(Shown::of(value), shown);
            assert_eq!(shown.line(), line);
        }
    }

    #[test]
    fn a_record_says_in_json_what_its_value_is() {
        let record = |value: &'static [u8]| Record {
            key: Bytes::from_static(b"\x15\x01"),
            value: Bytes::from_static(value),
            version: 9,
            logged_time_ms: 5,
            expires_at_ms: None,
        };
        let shown = |value, hex_value| record_json(&record(value), TUPLE, hex_value);
        let with = |more: Json| {
            let mut json = json!({"key": "(1)", "version": 9, "logged_time_ms": 5});
            let Json::Object(more) = more else { unreachable!() };
            json.as_object_mut().unwrap().extend(more);
            json
        };
        assert_eq!(
            shown(ROW, false),
            with(json!({"row": {"id": 7}, "primary_key": [1]}))
        );
        assert_eq!(shown(ROW, true), with(json!({"hex": "01a162696407"})));
        assert_eq!(shown(b"alien", false), with(json!({"text": "alien"})));
        let expiring = Record {
            expires_at_ms: Some(7),
            ..record(b"alien")
        };
        assert_eq!(
            record_json(&expiring, TUPLE, false),
            with(json!({"text": "alien", "expires_at_ms": 7}))
        );
        assert_eq!(shown(b"\xff\xfe", false), with(json!({"hex": "fffe"})));
        let minus_two = with(json!({"hex": "fffffffffffffffe", "integer": -2}));
        assert_eq!(shown(b"\xff\xff\xff\xff\xff\xff\xff\xfe", false), minus_two);
    }
}
