//! The `reelkv` binary.

fn main() {}
