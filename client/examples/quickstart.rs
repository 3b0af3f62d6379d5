//! Writes, reads, counts and scans. `REELKV_ADDR` names a node; 127.0.0.1:7301 by default.

use anyhow::ensure;
use reelkv_client::{Client, CreateKeyspace, ErrorKind, Keyspace, ScanRange, StreamExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let addr = std::env::var("REELKV_ADDR").unwrap_or_else(|_| "127.0.0.1:7301".to_owned());
    let client = Client::connect([addr]).await?;
    let films = open_or_create(&client, "example_quickstart").await?;
    println!("keyspace {} has number {}", films.name(), films.id());

    let version = films.put("alien", "1979").await?;
    println!("put alien, version {version}");
    let record = films.get("alien").await?;
    println!("get alien: {record:?}");
    ensure!(record.is_some_and(|record| record.value == "1979" && record.version == version));

    let before = films.add("rentals", 0).await?;
    let after = films.add("rentals", 3).await?;
    println!("rentals: {before} + 3 = {after}");
    ensure!(after == before + 3);

    for (title, year) in [("brazil", "1985"), ("casablanca", "1942")] {
        films.put(title, year).await?;
    }
    let mut found = Vec::new();
    let mut scan = films.scan(ScanRange::between("alien", "d"));
    while let Some(record) = scan.next().await {
        let record = record?;
        println!("scan: {:?} = {:?}", record.key, record.value);
        found.push(record.key);
    }
    ensure!(found == ["alien", "brazil", "casablanca"]);

    films.delete("alien").await?;
    ensure!(films.get("alien").await?.is_none());
    println!("alien is deleted");
    Ok(())
}

async fn open_or_create(client: &Client, name: &str) -> anyhow::Result<Keyspace> {
    match client.create_keyspace(name, CreateKeyspace::default()).await {
        Ok(keyspace) => Ok(keyspace),
        Err(error) if *error.kind() == ErrorKind::AlreadyExists => Ok(client.keyspace(name).await?),
        Err(error) => Err(error.into()),
    }
}
