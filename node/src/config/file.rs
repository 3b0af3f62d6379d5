//! The TOML file.

use std::path::Path;

use clap::Args;

use super::{ConfigError, Settings};
use crate::disk::{self, RealDisk};

/// Reads a file of settings.
pub(super) fn read(path: &Path) -> Result<Settings, ConfigError> {
    let refused = |message: String| ConfigError::new("config", format!("{}: {message}", path.display()));
    let bytes = disk::read_file(&RealDisk, path).map_err(|error| refused(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| refused("is not UTF-8 text".to_owned()))?;
    parse(&text).map_err(refused)
}

/// The settings in a file's text, or one line on what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Settings, String> {
    let failed = |error: toml::de::Error| {
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        match error.span() {
            Some(span) => {
                let before = text.get(..span.start).unwrap_or(text);
                format!("line {}: {message}", before.matches('\n').count() + 1)
            }
            None => message,
        }
    };
    let table: toml::Table = toml::from_str(text).map_err(failed)?;
    let known = Settings::augment_args(clap::Command::new("settings"));
    // Asked before the types are, whose errors would list every key there is.
    for key in table.keys() {
        if !known.get_arguments().any(|arg| arg.get_long() == Some(key)) {
            return Err(format!(
                "unknown key {key:?}; keys are named like the flags of `reelkv node start`"
            ));
        }
    }
    toml::from_str(text).map_err(failed)
}
