//! `reelkv-jepsen`: runs workloads under faults and judges what clients saw.

use std::process::ExitCode;

fn main() -> ExitCode {
    reelkv_jepsen::cli::main()
}
