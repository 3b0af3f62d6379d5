//! Canonical values: what a column's value *is*, whichever way it was written down. The verifier makes one from the text
//! PostgreSQL prints and one from the stored CBOR, and compares.

use std::fmt;

use ciborium::Value;

/// A canonical value, in the shapes of the value format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Canon {
    Null,
    Bool(bool),
    Int(i128),
    /// The bits; all NaNs are one.
    Float(u64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Canon>),
    Tagged(u64, Box<Canon>),
}

/// The bits of the one NaN.
const NAN: u64 = 0x7ff8_0000_0000_0000;

impl Canon {
    pub(crate) fn float(value: f64) -> Canon {
        Canon::Float(if value.is_nan() { NAN } else { value.to_bits() })
    }

    pub(crate) fn tagged(tag: u64, value: Canon) -> Canon {
        Canon::Tagged(tag, Box::new(value))
    }

    pub(crate) fn ints(values: impl IntoIterator<Item = i64>) -> Canon {
        Canon::List(values.into_iter().map(|value| Canon::Int(value.into())).collect())
    }

    /// From what was stored.
    pub(crate) fn from_cbor(value: Value) -> Result<Canon, String> {
        Ok(match value {
            Value::Null => Canon::Null,
            Value::Bool(value) => Canon::Bool(value),
            Value::Integer(value) => Canon::Int(value.into()),
            // As it is: a NaN other than the one is a difference.
            Value::Float(value) => Canon::Float(value.to_bits()),
            Value::Text(value) => Canon::Text(value),
            Value::Bytes(value) => Canon::Bytes(value),
            Value::Array(values) => Canon::List(
                values
                    .into_iter()
                    .map(Canon::from_cbor)
                    .collect::<Result<_, _>>()?,
            ),
            Value::Tag(tag, value) => Canon::tagged(tag, Canon::from_cbor(*value)?),
            other => return Err(format!("{other:?} has no place in a row")),
        })
    }
}

impl fmt::Display for Canon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Canon::Null => f.write_str("NULL"),
            Canon::Bool(value) => write!(f, "{value}"),
            Canon::Int(value) => write!(f, "{value}"),
            Canon::Float(bits) => write!(f, "{:?}", f64::from_bits(*bits)),
            Canon::Text(value) => write!(f, "{value:?}"),
            Canon::Bytes(value) => {
                f.write_str("\\x")?;
                value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Canon::Tagged(tag, value) => write!(f, "{tag}({value})"),
            Canon::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
        }
    }
}
