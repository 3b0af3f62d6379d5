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
use foundationdb_tuple::{TuplePack, TupleUnpack};

/// A part of a tuple whose type is known only at run time.
pub use foundationdb_tuple::Element;
/// A part of a tuple that is a UUID.
pub use foundationdb_tuple::Uuid;
pub use text::TextError;

/// Packs a tuple such as `("rental", 42)` into a key.
pub fn pack(tuple: &impl TuplePack) -> Bytes {
    foundationdb_tuple::pack(tuple).into()
}

/// Takes a key apart again; an error when it is not such a tuple.
pub fn unpack<'key, T: TupleUnpack<'key>>(key: &'key [u8]) -> crate::Result<T> {
    foundationdb_tuple::unpack(key)
        .map_err(|error| crate::Error::invalid("key", format!("not the expected tuple: {error}")))
}

/// Reads a key written as text; see the module for what can be written.
pub fn from_text(text: &str) -> Result<Bytes, TextError> {
    let _ = text;
    todo!()
}

/// Writes a key as text that [`from_text`] reads back to the same bytes.
pub fn to_text(key: &[u8]) -> String {
    let _ = key;
    todo!()
}
