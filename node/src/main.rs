//! The `reelkv` binary.

use std::process::ExitCode;

/// Gives memory back in time: a node that is overwritten for hours keeps to its budget.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    reelkv::cli::main()
}
