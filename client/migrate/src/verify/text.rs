//! Column values as PostgreSQL prints them → canonical values.

use crate::kind::{Kind, tag};
use crate::verify::canon::Canon;
use crate::verify::time;

/// The canonical value of a field of a text copy.
pub(crate) fn parse(kind: &Kind, field: Option<&str>) -> Result<Canon, String> {
    let Some(text) = field else { return Ok(Canon::Null) };
    let bad = || format!("{text:?} is not a {kind:?}");
    let stamp = |tag: u64, value: Option<i64>| match value {
        Some(value) => Ok(Canon::tagged(tag, Canon::Int(value.into()))),
        None => Err(bad()),
    };
    let words = |tag: u64| Ok(Canon::tagged(tag, Canon::Text(text.to_owned())));
    match kind {
        Kind::Bool => match text {
            "t" | "true" => Ok(Canon::Bool(true)),
            "f" | "false" => Ok(Canon::Bool(false)),
            _ => Err(bad()),
        },
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid => text.parse().map(Canon::Int).map_err(|_| bad()),
        // Parsed as what it is: the shortest digits of a float4 are not those of the float8 it equals.
        Kind::Float4 => text
            .parse::<f32>()
            .map(|value| Canon::float(value.into()))
            .map_err(|_| bad()),
        Kind::Float8 => text.parse().map(Canon::float).map_err(|_| bad()),
        Kind::Text | Kind::Char | Kind::Enum => Ok(Canon::Text(text.to_owned())),
        Kind::Bytea => text
            .strip_prefix("\\x")
            .and_then(unhex)
            .map(Canon::Bytes)
            .ok_or_else(bad),
        Kind::Uuid => match unhex(&text.replace('-', "")) {
            Some(bytes) if bytes.len() == 16 => Ok(Canon::tagged(tag::UUID, Canon::Bytes(bytes))),
            _ => Err(bad()),
        },
        Kind::Numeric => words(tag::NUMERIC),
        Kind::Json => words(tag::JSON),
        Kind::Jsonb => words(tag::JSONB),
        Kind::AsText => words(tag::AS_TEXT),
        Kind::Date => stamp(tag::DATE, time::date(text)),
        Kind::Timestamp => stamp(tag::TIMESTAMP, time::timestamp(text, false)),
        Kind::TimestampTz => stamp(tag::TIMESTAMPTZ, time::timestamp(text, true)),
        Kind::Time => stamp(tag::TIME, time::clock(text)),
        Kind::TimeTz => {
            let (micros, east) = time::time_with_zone(text).ok_or_else(bad)?;
            Ok(Canon::tagged(tag::TIMETZ, Canon::ints([micros, east])))
        }
        Kind::Interval => {
            let (months, days, micros) = time::interval(text).ok_or_else(bad)?;
            Ok(Canon::tagged(tag::INTERVAL, Canon::ints([months, days, micros])))
        }
        Kind::Array(element) => array(element, text),
    }
}

pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// `{1,NULL,"a \"b\""}`, `{{1},{2}}`, `[0:1]={7,8}`.
fn array(element: &Kind, text: &str) -> Result<Canon, String> {
    let (lowers, body) = match text.split_once("={") {
        Some((bounds, _)) if bounds.starts_with('[') => {
            let lower = |part: &str| {
                part.trim_start_matches('[')
                    .split_once(':')
                    .and_then(|(low, _)| low.parse().ok())
            };
            let lowers = bounds
                .trim_end_matches(']')
                .split(']')
                .map(lower)
                .collect::<Option<Vec<i64>>>();
            (
                Some(lowers.ok_or_else(|| format!("the bounds {bounds:?}"))?),
                &text[bounds.len() + 1..],
            )
        }
        _ => (None, text),
    };
    let mut reader = ArrayReader {
        element,
        rest: body,
        lengths: Vec::new(),
        elements: Vec::new(),
    };
    reader.level(0)?;
    if !reader.rest.is_empty() {
        return Err(format!("{:?} after an array", reader.rest));
    }
    if reader.elements.is_empty() {
        return Ok(Canon::List(Vec::new()));
    }
    let lowers = lowers.unwrap_or_else(|| vec![1; reader.lengths.len()]);
    if lowers == [1] {
        return Ok(Canon::List(reader.elements));
    }
    let parts = vec![
        Canon::ints(reader.lengths),
        Canon::ints(lowers),
        Canon::List(reader.elements),
    ];
    Ok(Canon::tagged(tag::ARRAY, Canon::List(parts)))
}

struct ArrayReader<'a> {
    element: &'a Kind,
    rest: &'a str,
    /// Of each dimension seen so far, outermost first.
    lengths: Vec<i64>,
    elements: Vec<Canon>,
}

impl ArrayReader<'_> {
    /// One pair of braces and what is in it. PostgreSQL has at most six levels.
    fn level(&mut self, depth: usize) -> Result<(), String> {
        if depth > 6 || !self.skip('{') {
            return Err(format!("an array at {:?}", self.rest));
        }
        if self.lengths.len() == depth {
            self.lengths.push(0);
        }
        let mut length = 0;
        if !self.skip('}') {
            loop {
                if self.rest.starts_with('{') {
                    self.level(depth + 1)?
                } else {
                    self.one()?
                }
                length += 1;
                match (self.skip(','), self.skip('}')) {
                    (true, false) => {}
                    (false, true) => break,
                    _ => return Err(format!("an array at {:?}", self.rest)),
                }
            }
        }
        self.lengths[depth] = length;
        Ok(())
    }

    fn one(&mut self) -> Result<(), String> {
        if !self.skip('"') {
            let end = self
                .rest
                .find([',', '}'])
                .ok_or_else(|| format!("an array at {:?}", self.rest))?;
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            let value = if word == "NULL" { None } else { Some(word) };
            self.elements.push(parse(self.element, value)?);
            return Ok(());
        }
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    self.elements.push(parse(self.element, Some(&value))?);
                    return Ok(());
                }
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                c => value.push(c),
            }
        }
        Err("an array that ends within quotes".to_owned())
    }

    fn skip(&mut self, c: char) -> bool {
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[Option<&str>]) -> Canon {
        Canon::List(
            values
                .iter()
                .map(|v| v.map_or(Canon::Null, |text| Canon::Text(text.to_owned())))
                .collect(),
        )
    }

    #[test]
    fn arrays_with_nulls_quotes_bounds_and_dimensions() {
        let of = |kind: Kind, text: &str| parse(&Kind::Array(Box::new(kind)), Some(text));
        assert_eq!(of(Kind::Text, "{}").unwrap(), texts(&[]));
        assert_eq!(
            of(Kind::Text, r#"{a,NULL,"NULL","","b\"\\,}{",é}"#).unwrap(),
            texts(&[
                Some("a"),
                None,
                Some("NULL"),
                Some(""),
                Some("b\"\\,}{"),
                Some("é")
            ])
        );
        let three = |lengths: &[i64], lowers: &[i64], elements: &[i64]| {
            let parts = [lengths, lowers, elements].map(|part| Canon::ints(part.iter().copied()));
            Canon::tagged(tag::ARRAY, Canon::List(parts.to_vec()))
        };
        assert_eq!(of(Kind::Int4, "[0:1]={7,8}").unwrap(), three(&[2], &[0], &[7, 8]));
        assert_eq!(
            of(Kind::Int4, "{{7},{8}}").unwrap(),
            three(&[2, 1], &[1, 1], &[7, 8])
        );
        assert_eq!(
            of(Kind::Int4, "[-2:-1][3:3]={{7},{8}}").unwrap(),
            three(&[2, 1], &[-2, 3], &[7, 8])
        );
        for text in [
            "", "{", "{1", "{1,", "{1}2", "1", "{\"1}", "[x]={1}", "{1 2}", "{1,,2}",
        ] {
            assert!(of(Kind::Int4, text).is_err(), "{text}");
        }
    }

    #[test]
    fn scalars() {
        assert_eq!(parse(&Kind::Bool, Some("f")).unwrap(), Canon::Bool(false));
        assert_eq!(parse(&Kind::Float8, Some("-0")).unwrap(), Canon::float(-0.0));
        assert_eq!(
            parse(&Kind::Float4, Some("1.1")).unwrap(),
            Canon::float(f64::from(1.1f32))
        );
        assert_eq!(
            parse(&Kind::Float8, Some("-Infinity")).unwrap(),
            Canon::float(f64::NEG_INFINITY)
        );
        assert_eq!(
            parse(&Kind::Float8, Some("NaN")).unwrap(),
            Canon::float(-f64::NAN)
        );
        assert_eq!(
            parse(&Kind::Bytea, Some("\\x00fF")).unwrap(),
            Canon::Bytes(vec![0, 255])
        );
        assert_eq!(parse(&Kind::Int8, None).unwrap(), Canon::Null);
        for (kind, text) in [
            (Kind::Int4, "x"),
            (Kind::Bytea, "\\x0"),
            (Kind::Uuid, "00"),
            (Kind::Bool, "1"),
        ] {
            assert!(parse(&kind, Some(text)).is_err());
        }
    }
}
