//! The bug on purpose that this process carries, if any.

/// Whether this program was built with mutants.
pub const BUILT_IN: bool = cfg!(feature = "mutants");

/// How to build the program with mutants.
pub const BUILD: &str = "cargo run --profile mutants --features mutants -p reelkv-jepsen --";

/// The name of the mutant that is on.
///
/// # Errors
/// The environment names one that does not exist, or this build has none; one line.
pub fn chosen() -> Result<Option<&'static str>, String> {
    Ok(None)
}
