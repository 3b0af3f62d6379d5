//! Tuples as text: a recursive-descent parser whose errors name the place, and its writer.

use bytes::Bytes;
use foundationdb_tuple::{Element, Uuid, Versionstamp};

use super::NESTING_MAX;

/// What is wrong with a key written as text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} at byte {position} of the key")]
pub struct TextError {
    /// Byte of the text at which it went wrong, from 0.
    pub position: usize,
    /// What was expected or found.
    pub message: String,
}

type Parsed<T> = Result<T, TextError>;

const UUID_CHARS: usize = 36;

/// Reads a tuple or a raw key.
pub(super) fn parse(text: &str) -> Parsed<Bytes> {
    let mut parser = Parser { text, at: 0 };
    parser.skip_blanks();
    if parser.eat("x'") {
        let key = parser.hex_until_quote()?;
        parser.end()?;
        return Ok(key.into());
    }
    if !parser.eat("(") {
        return Err(parser.error("expected a tuple like (\"a\", 1) or raw bytes like x'00ff'"));
    }
    let elements = parser.elements(1)?;
    parser.end()?;
    Ok(super::pack(&elements))
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn error(&self, message: impl Into<String>) -> TextError {
        self.error_at(self.at, message)
    }

    fn error_at(&self, position: usize, message: impl Into<String>) -> TextError {
        let message = message.into();
        TextError { position, message }
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn next_char(&mut self) -> Option<char> {
        let next = self.rest().chars().next()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    fn end(&mut self) -> Parsed<()> {
        self.skip_blanks();
        match self.rest().is_empty() {
            true => Ok(()),
            false => Err(self.error("expected nothing more")),
        }
    }

    /// What follows an opening parenthesis, the closing one included. A last comma is allowed.
    fn elements(&mut self, depth: usize) -> Parsed<Vec<Element<'static>>> {
        // The key itself is a tuple that does not count.
        if depth > NESTING_MAX + 1 {
            return Err(self.error(format!("tuples nest at most {NESTING_MAX} deep")));
        }
        let mut elements = Vec::new();
        loop {
            self.skip_blanks();
            if self.eat(")") {
                return Ok(elements);
            }
            elements.push(self.element(depth)?);
            self.skip_blanks();
            if !self.eat(",") && !self.rest().starts_with(')') {
                return Err(self.error("expected , or )"));
            }
        }
    }

    fn element(&mut self, depth: usize) -> Parsed<Element<'static>> {
        if self.eat("(") {
            return Ok(Element::Tuple(self.elements(depth + 1)?));
        }
        if self.eat("\"") {
            return Ok(Element::String(self.string()?.into()));
        }
        if self.eat("b'") {
            return Ok(Element::Bytes(self.hex_until_quote()?.into()));
        }
        if self.eat("f32'") {
            return Ok(Element::Float(f32::from_be_bytes(self.hex_of_length()?)));
        }
        if self.eat("f64'") {
            return Ok(Element::Double(f64::from_be_bytes(self.hex_of_length()?)));
        }
        if self.eat("versionstamp'") {
            return Ok(Element::Versionstamp(Versionstamp::from(
                self.hex_of_length::<12>()?,
            )));
        }
        self.word()
    }

    /// A part without quotes: up to a blank, a comma or a parenthesis.
    fn word(&mut self) -> Parsed<Element<'static>> {
        let start = self.at;
        let length = self.rest().find([' ', '\t', ',', '(', ')']);
        let word = &self.rest()[..length.unwrap_or(self.rest().len())];
        self.at += word.len();
        let unknown = || match word.is_empty() {
            true => self.error_at(start, "expected a part of the tuple"),
            false => self.error_at(
                start,
                format!("{word:?} is no part of a tuple; a string needs double quotes"),
            ),
        };
        match word {
            "null" => return Ok(Element::Nil),
            "true" => return Ok(Element::Bool(true)),
            "false" => return Ok(Element::Bool(false)),
            _ => {}
        }
        if let Some(uuid) = parse_uuid(word) {
            return Ok(Element::Uuid(uuid));
        }
        let digits = word.strip_prefix('-').unwrap_or(word);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let outside = |_| self.error_at(start, format!("{word} is outside the integers of 64 bits"));
            return word.parse().map(Element::Int).map_err(outside);
        }
        if let Some(single) = word.strip_suffix("f32") {
            return parse_float(single).map(Element::Float).ok_or_else(unknown);
        }
        parse_float(word).map(Element::Double).ok_or_else(unknown)
    }

    /// What follows an opening double quote, the closing one included.
    fn string(&mut self) -> Parsed<String> {
        let start = self.at - 1;
        let mut string = String::new();
        loop {
            let at = self.at;
            match self.next_char() {
                None => return Err(self.error_at(start, "the string does not end")),
                Some('"') => return Ok(string),
                Some('\\') => string.push(self.escaped(at)?),
                Some(plain) => string.push(plain),
            }
        }
    }

    fn escaped(&mut self, at: usize) -> Parsed<char> {
        match self.next_char() {
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some('0') => Ok('\0'),
            Some(itself @ ('"' | '\\')) => Ok(itself),
            Some('u') if self.eat("{") => {
                let digits = self.rest().split('}').next().unwrap_or_default();
                let is_hex = (1..=6).contains(&digits.len()) && digits.bytes().all(|d| d.is_ascii_hexdigit());
                self.at += digits.len();
                let code = u32::from_str_radix(digits, 16)
                    .ok()
                    .filter(|_| is_hex && self.eat("}"));
                let character = code.and_then(char::from_u32);
                character.ok_or_else(|| self.error_at(at, "expected a character like \\u{1F3AC}"))
            }
            _ => Err(self.error_at(at, r#"expected one of \" \\ \n \r \t \0 \u{..}"#)),
        }
    }

    /// Hex digits, two per byte, and the closing single quote.
    fn hex_until_quote(&mut self) -> Parsed<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            if self.eat("'") {
                return Ok(bytes);
            }
            let pair = self.rest().as_bytes().first_chunk::<2>();
            let byte = pair.and_then(|pair| Some(hex_digit(pair[0])? << 4 | hex_digit(pair[1])?));
            bytes.push(byte.ok_or_else(|| self.error("expected two hex digits or '"))?);
            self.at += 2;
        }
    }

    fn hex_of_length<const LENGTH: usize>(&mut self) -> Parsed<[u8; LENGTH]> {
        let start = self.at;
        let bytes = self.hex_until_quote()?;
        let found = bytes.len();
        let wrong = |_| self.error_at(start, format!("expected {LENGTH} bytes, found {found}"));
        bytes.try_into().map_err(wrong)
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// A UUID in its usual form, 8-4-4-4-12.
fn parse_uuid(word: &str) -> Option<Uuid> {
    let dashes = [8, 13, 18, 23];
    let is_usual = |(at, byte): (usize, u8)| (byte == b'-') == dashes.contains(&at);
    let is_uuid = word.len() == UUID_CHARS && word.bytes().enumerate().all(is_usual);
    Uuid::parse_str(word).ok().filter(|_| is_uuid)
}

/// A finite decimal with a point or an exponent, or an infinity; NaNs are written by their bits.
fn parse_float<F: std::str::FromStr>(word: &str) -> Option<F> {
    let unsigned = word.strip_prefix('-').unwrap_or(word);
    let is_decimal = unsigned.starts_with(|first: char| first.is_ascii_digit())
        && unsigned
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    (is_decimal || unsigned == "inf")
        .then(|| word.parse().ok())
        .flatten()
}

/// Whether text can name every part.
pub(super) fn can_write(elements: &[Element<'_>]) -> bool {
    elements.iter().all(|element| match element {
        Element::Tuple(inner) => can_write(inner),
        Element::Nil | Element::Bytes(_) | Element::String(_) | Element::Int(_) => true,
        Element::Float(_) | Element::Double(_) | Element::Bool(_) => true,
        Element::Uuid(_) | Element::Versionstamp(_) => true,
        #[allow(unreachable_patterns)] // a part that another feature of the tuple library adds
        _ => false,
    })
}

pub(super) fn write(elements: &[Element<'_>]) -> String {
    let parts: Vec<_> = elements.iter().map(write_element).collect();
    format!("({})", parts.join(", "))
}

pub(super) fn write_raw(key: &[u8]) -> String {
    format!("x'{}'", to_hex(key))
}

fn write_element(element: &Element<'_>) -> String {
    match element {
        Element::Nil => "null".to_owned(),
        Element::Bool(value) => value.to_string(),
        Element::Int(value) => value.to_string(),
        Element::Bytes(bytes) => format!("b'{}'", to_hex(bytes)),
        Element::String(string) => write_string(string),
        Element::Tuple(inner) => write(inner),
        Element::Float(value) if value.is_nan() => format!("f32'{}'", to_hex(&value.to_be_bytes())),
        Element::Double(value) if value.is_nan() => format!("f64'{}'", to_hex(&value.to_be_bytes())),
        // `{:?}` writes the fewest digits that read back to the same number, always as a float.
        Element::Float(value) => format!("{value:?}f32"),
        Element::Double(value) => format!("{value:?}"),
        Element::Uuid(uuid) => uuid.to_string(),
        Element::Versionstamp(stamp) => format!("versionstamp'{}'", to_hex(stamp.as_bytes())),
        #[allow(unreachable_patterns)] // excluded by `can_write`
        _ => "null".to_owned(),
    }
}

fn write_string(string: &str) -> String {
    let mut text = String::with_capacity(string.len() + 2);
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\0' => text.push_str("\\0"),
            control if control.is_control() => text.push_str(&format!("\\u{{{:x}}}", u32::from(control))),
            plain => text.push(plain),
        }
    }
    text.push('"');
    text
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{from_text, pack, to_text};
    use super::*;

    #[test]
    fn errors_name_the_place() {
        let cases = [
            ("", 0, "expected a tuple"),
            ("alien", 0, "expected a tuple"),
            ("(alien)", 1, "double quotes"),
            ("(1 2)", 3, "expected , or )"),
            ("(1, , 2)", 4, "expected a part"),
            ("(1", 2, "expected , or )"),
            ("(1) x", 4, "nothing more"),
            ("(\"a)", 1, "does not end"),
            (r#"("a\q")"#, 3, "expected one of"),
            (r#"("\u{110000}")"#, 2, "expected a character"),
            ("(b'0')", 3, "two hex digits"),
            ("(b'0ü')", 3, "two hex digits"),
            ("(9223372036854775808)", 1, "outside the integers"),
            ("(1.5.2)", 1, "no part of a tuple"),
            ("(nan)", 1, "no part of a tuple"),
            ("(f64'00')", 5, "expected 8 bytes, found 1"),
            ("(12345678-1234-1234-1234-12345678901)", 1, "no part of a tuple"),
            ("x'0'", 2, "two hex digits"),
        ];
        for (text, position, message) in cases {
            let error = from_text(text).expect_err(text);
            assert!(
                error.position == position && error.message.contains(message),
                "{text}: {error:?}"
            );
        }
        let deep = "(".repeat(100_000);
        assert!(from_text(&deep).unwrap_err().message.contains("32 deep"));
    }

    #[test]
    fn blanks_and_a_last_comma_do_not_matter() {
        assert_eq!(
            from_text(" ( 1 ,\"a\", ) ").unwrap(),
            from_text("(1, \"a\")").unwrap()
        );
    }

    fn element() -> impl Strategy<Value = Element<'static>> {
        let leaf = prop_oneof![
            Just(Element::Nil),
            any::<bool>().prop_map(Element::Bool),
            any::<i64>().prop_map(Element::Int),
            prop_oneof![Just(i64::MIN), Just(i64::MAX), -300..300_i64].prop_map(Element::Int),
            any::<u32>().prop_map(|bits| Element::Float(f32::from_bits(bits))),
            any::<u64>().prop_map(|bits| Element::Double(f64::from_bits(bits))),
            ".{0,8}".prop_map(|string| Element::String(string.into())),
            any::<String>().prop_map(|string| Element::String(string.into())),
            proptest::collection::vec(any::<u8>(), 0..8).prop_map(|bytes| Element::Bytes(bytes.into())),
            any::<[u8; 16]>().prop_map(|bytes| Element::Uuid(Uuid::from_bytes(bytes))),
            any::<[u8; 12]>().prop_map(|bytes| Element::Versionstamp(Versionstamp::from(bytes))),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            proptest::collection::vec(inner, 0..4).prop_map(Element::Tuple)
        })
    }

    proptest! {
        #[test]
        fn text_and_bytes_are_the_same_key(elements in proptest::collection::vec(element(), 0..5)) {
            let key = pack(&elements);
            let text = to_text(&key);
            prop_assert!(text.starts_with('('), "{text} of {elements:?}");
            prop_assert_eq!(from_text(&text).unwrap(), key);
        }

        #[test]
        fn any_bytes_are_written_and_read_back(key in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(from_text(&to_text(&key)).unwrap(), key);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[(),\"' \\\\a-f0-9x.u{}-]{0,30}|\\PC{0,20}") {
            if let Ok(key) = from_text(&text) {
                prop_assert_eq!(from_text(&to_text(&key)).unwrap(), key);
            }
        }
    }
}
