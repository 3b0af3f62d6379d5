//! Keys of several typed parts: all rentals of one customer, in order of time.
//! `REELKV_ADDR` names a node; 127.0.0.1:7301 by default.

use anyhow::ensure;
use reelkv_client::{Batch, Client, CreateKeyspace, ErrorKind, ScanRange, TryStreamExt, key};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let addr = std::env::var("REELKV_ADDR").unwrap_or_else(|_| "127.0.0.1:7301".to_owned());
    let client = Client::connect([addr]).await?;
    let name = "example_tuple_keys";
    let rentals = match client.create_keyspace(name, CreateKeyspace::default()).await {
        Err(error) if *error.kind() == ErrorKind::AlreadyExists => client.keyspace(name).await?,
        created => created?,
    };

    // Keys that share their first part stay in one shard, so a batch of them is atomic.
    let rental = |customer: i64, day: i64| key::pack(&(customer, "rental", day));
    let batch = [30, 7, 19].iter().fold(Batch::new(), |batch, &day| {
        batch.put(rental(42, day), format!("film of day {day}"))
    });
    rentals.batch(batch).await?;
    rentals.put(rental(41, 8), "another customer's").await?;

    let of_42 = ScanRange::prefix(key::pack(&(42_i64, "rental")));
    let records: Vec<_> = rentals.scan(of_42).try_collect().await?;
    let mut days = Vec::new();
    for record in &records {
        let (_, _, day): (i64, String, i64) = key::unpack(&record.key)?;
        println!("{} = {:?}", key::to_text(&record.key), record.value);
        days.push(day);
    }
    ensure!(
        days == [7, 19, 30],
        "tuples sort by their parts, not by their digits"
    );

    let typed = key::from_text(r#"(42, "rental", 7)"#)?;
    ensure!(rentals.get(&typed).await?.is_some());
    println!("found by its text as well");
    Ok(())
}
