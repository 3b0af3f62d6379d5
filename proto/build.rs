//! Compiles the protocol with protox, so that no protoc is needed.

use std::path::PathBuf;

use prost::Message;

#[allow(clippy::disallowed_methods)] // a build script has no doors to keep
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["error", "meta", "kv", "admin", "raft"].map(|name| format!("reelkv/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
