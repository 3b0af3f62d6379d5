//! Stored keys and values as JSON, for people.

mod key;
mod row;

use serde_json::Value as Json;

pub use key::decode_key;
pub use row::decode_row;

fn float(value: f64) -> Json {
    match value {
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        value => serde_json::Number::from_f64(value).map_or_else(|| "NaN".into(), Json::Number),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn uuid(bytes: &[u8]) -> String {
    let hex = hex(bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
