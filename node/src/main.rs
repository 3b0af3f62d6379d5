//! The `reelkv` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    reelkv::cli::main()
}
