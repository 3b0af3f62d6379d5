//! Many calls at once share one stream and its messages: 2,000 puts one by one and together.
//! `REELKV_ADDR` names a node; 127.0.0.1:7301 by default.

use std::time::Duration;

use anyhow::ensure;
use reelkv_client::{Client, CreateKeyspace, ErrorKind, Keyspace, ScanRange, StreamExt, TryStreamExt};
use tokio::time::Instant;

const PUTS: usize = 2_000;
const TOGETHER: usize = 256;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let addr = std::env::var("REELKV_ADDR").unwrap_or_else(|_| "127.0.0.1:7301".to_owned());
    let client = Client::builder()
        .addrs([addr])
        .timeout(Duration::from_secs(30))
        .build()
        .await?;
    let name = "example_pipelining";
    let keyspace = match client.create_keyspace(name, CreateKeyspace::default()).await {
        Err(error) if *error.kind() == ErrorKind::AlreadyExists => client.keyspace(name).await?,
        created => created?,
    };

    let one_by_one = put_all(&keyspace, PUTS / 10, 1, "first").await?;
    println!("one by one:   {one_by_one:8.0} puts per second");
    let together = put_all(&keyspace, PUTS, TOGETHER, "second").await?;
    println!("{TOGETHER} together: {together:8.0} puts per second");

    let records: Vec<_> = keyspace.scan(ScanRange::prefix("k")).try_collect().await?;
    println!("{} records are there", records.len());
    ensure!(records.len() == PUTS && records.iter().all(|record| record.value == "second"));
    Ok(())
}

/// Puts per second.
async fn put_all(
    keyspace: &Keyspace,
    puts: usize,
    together: usize,
    value: &'static str,
) -> anyhow::Result<f64> {
    let started = Instant::now();
    let calls =
        futures::stream::iter(0..puts).map(|n| async move { keyspace.put(format!("k{n:05}"), value).await });
    let versions: Vec<_> = calls.buffer_unordered(together).try_collect().await?;
    ensure!(versions.len() == puts);
    Ok(puts as f64 / started.elapsed().as_secs_f64())
}
