//! The bug on purpose that this process carries, if any.

use reelkv::mutants::Mutant;

/// Whether this program was built with mutants.
pub const BUILT_IN: bool = cfg!(feature = "mutants");

/// How to build the program with mutants.
pub const BUILD: &str = "cargo run --profile mutants --features mutants -p reelkv-jepsen --";

/// The name of the mutant that is on.
///
/// # Errors
/// The environment names one that does not exist, or this build has none; one line.
pub fn chosen() -> Result<Option<&'static str>, String> {
    let chosen = Mutant::chosen().map_err(|error| error.to_string())?;
    Ok(chosen.map(Mutant::name))
}
