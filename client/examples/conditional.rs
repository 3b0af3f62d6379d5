//! Reads, decides and writes only if nobody else wrote meanwhile: eight clerks, one shelf of discs.
//! `REELKV_ADDR` names a node; 127.0.0.1:7301 by default.

use anyhow::{Context, ensure};
use reelkv_client::{Client, Condition, CreateKeyspace, ErrorKind, Keyspace};

const CLERKS: usize = 8;
const DISCS: usize = 40;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let addr = std::env::var("REELKV_ADDR").unwrap_or_else(|_| "127.0.0.1:7301".to_owned());
    let client = Client::connect([addr]).await?;
    let name = "example_conditional";
    let shelf = match client.create_keyspace(name, CreateKeyspace::default()).await {
        Err(error) if *error.kind() == ErrorKind::AlreadyExists => client.keyspace(name).await?,
        created => created?,
    };
    shelf.delete("discs").await?;
    shelf
        .put_if("discs", DISCS.to_string(), Condition::Absent)
        .await?;
    let again = shelf.put_if("discs", "0", Condition::Absent).await;
    ensure!(matches!(
        again.map_err(|e| e.kind().clone()),
        Err(ErrorKind::ConditionFailed { .. })
    ));

    let clerks: Vec<_> = (0..CLERKS)
        .map(|_| tokio::spawn(rent_all(shelf.clone())))
        .collect();
    let mut rented = 0;
    for (clerk, work) in clerks.into_iter().enumerate() {
        let (discs, conflicts) = work.await??;
        println!("clerk {clerk} rented {discs} discs, came too late {conflicts} times");
        rented += discs;
    }
    println!("{rented} of {DISCS} discs rented, none twice");
    ensure!(rented == DISCS);
    Ok(())
}

/// Takes disc after disc until none is left.
async fn rent_all(shelf: Keyspace) -> anyhow::Result<(usize, usize)> {
    let (mut rented, mut conflicts) = (0, 0);
    loop {
        let record = shelf.get("discs").await?.context("the shelf is gone")?;
        let left: usize = std::str::from_utf8(&record.value)?.parse()?;
        if left == 0 {
            return Ok((rented, conflicts));
        }
        let taken = (left - 1).to_string();
        match shelf
            .put_if("discs", taken, Condition::Version(record.version))
            .await
        {
            Ok(_) => rented += 1,
            Err(error) if matches!(error.kind(), ErrorKind::ConditionFailed { .. }) => conflicts += 1,
            Err(error) => return Err(error.into()),
        }
    }
}
