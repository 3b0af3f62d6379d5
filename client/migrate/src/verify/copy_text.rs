//! Reads `COPY … TO STDOUT (FORMAT text)`: a row a line, fields separated by tabs, `\N` for NULL, backslash escapes for
//! what would be mistaken for any of these.

/// Turns a stream of bytes into rows of unescaped fields.
#[derive(Debug, Default)]
pub(crate) struct TextCopy {
    buffer: Vec<u8>,
    /// What of the buffer has been returned already.
    start: usize,
}

/// A field; none for NULL.
pub(crate) type Field = Option<String>;

impl TextCopy {
    /// More of the stream.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next row, or none before more is fed. A newline in a value is escaped, so every newline ends a row.
    pub(crate) fn next_row(&mut self) -> Result<Option<Vec<Field>>, String> {
        let rest = &self.buffer[self.start..];
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            return Ok(None);
        };
        let row = rest[..end]
            .split(|&byte| byte == b'\t')
            .map(field)
            .collect::<Result<Vec<_>, _>>()?;
        self.start += end + 1;
        Ok(Some(row))
    }

    /// The stream ended: it must have been whole.
    pub(crate) fn finish(&self) -> Result<(), String> {
        match self.buffer.len() - self.start {
            0 => Ok(()),
            bytes => Err(format!(
                "the stream ended within a row, after {bytes} bytes of it"
            )),
        }
    }
}

fn field(raw: &[u8]) -> Result<Field, String> {
    if raw == b"\\N" {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some(escaped) = rest.next() else {
            return Err("a field that ends in a backslash".to_owned());
        };
        let mut number = |first: u32, radix: u32, most: usize| {
            let mut value = first;
            for _ in 0..most {
                let Some(digit) = rest.peek().and_then(|&byte| char::from(byte).to_digit(radix)) else {
                    break;
                };
                value = value * radix + digit;
                rest.next();
            }
            value as u8
        };
        out.push(match escaped {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            b'0'..=b'7' => number(u32::from(escaped - b'0'), 8, 2),
            b'x' => number(0, 16, 2),
            other => other,
        });
    }
    String::from_utf8(out)
        .map(Some)
        .map_err(|error| format!("text that is not UTF-8: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(pieces: &[&[u8]]) -> Result<Vec<Vec<Field>>, String> {
        let mut copy = TextCopy::default();
        let mut rows = Vec::new();
        for piece in pieces {
            copy.feed(piece);
            while let Some(row) = copy.next_row()? {
                rows.push(row);
            }
        }
        copy.finish()?;
        Ok(rows)
    }

    #[test]
    fn escapes_nulls_and_empty_fields() {
        let all = b"a\\tb\t\\N\t\t\\\\N\n\\b\\f\\n\\r\\v\\\\\t\xc3\xa9\\101\\x42z\tN\t \n";
        let some = |text: &str| Some(text.to_owned());
        let expected = vec![
            vec![some("a\tb"), None, some(""), some("\\N")],
            vec![some("\x08\x0c\n\r\x0b\\"), some("éABz"), some("N"), some(" ")],
        ];
        assert_eq!(rows(&[all]).unwrap(), expected);
        for cut in 0..all.len() {
            assert_eq!(
                rows(&[&all[..cut], &all[cut..]]).unwrap(),
                expected,
                "cut at {cut}"
            );
        }
        assert!(rows(&[b"a\tb"]).is_err());
        assert!(rows(&[b"a\\\n"]).is_err());
        assert!(rows(&[b"\xff\n"]).is_err());
    }
}
