//! The node's small files are read back from the device while it runs: what is not as it was written is told
//! and written again, before a restart would need it.
//!
//! Stories in virtual time on a simulated cluster of three nodes, each told for several seeds:
//! `REELKV_PAGE_SEEDS=50` sets how many (default 3), `REELKV_SEED=7` runs that one alone.

#[allow(dead_code)] // other pages use other parts of the stage
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use reelkv::clock::now;
use world::{VICTIM, World, page};

/// Most times that a byte is flipped in one file.
const ROUNDS_MAX: usize = 5;

/// The files, and what each is called in the ledger. `events` comes last: the others fill it.
const FILES: [(&str, &str); 5] = [
    ("identity.1", "identity"),
    ("identity.2", "identity"),
    ("directory", "directory"),
    ("watermarks", "watermarks"),
    ("events", "events"),
];

#[test]
fn a_byte_flipped_in_a_small_file_of_a_running_node_is_found_within_ten_seconds() {
    page(
        "a_byte_flipped_in_a_small_file_of_a_running_node_is_found_within_ten_seconds",
        |mut world| async move {
            world.settle().await;
            let before = world.leaderships().await?;
            for (name, structure) in FILES {
                flipped_told_and_whole_again(&mut world, name, structure).await?;
            }
            world.ends_well().await?;
            ensure!(world.leaderships().await? == before, "leadership was lost");
            // Nothing is left for the start to find.
            ensure!(world.cluster.crash(VICTIM), "it was off");
            world.restart(VICTIM).await?;
            world.ends_well().await?;
            let damage = world.node_status(VICTIM).await?.damage;
            ensure!(damage.len() == FILES.len(), "{damage:#?}");
            Ok(())
        },
    );
}

/// Nodes that wait for another to answer learn from each other meanwhile, and show what they have.
#[test]
fn a_start_that_waits_for_a_node_that_is_off_tells_no_damage() {
    page(
        "a_start_that_waits_for_a_node_that_is_off_tells_no_damage",
        |mut world| async move {
            const OFF: usize = 2;
            world.settle().await;
            // What they show each other of these writes is not in their files yet.
            world.write(20).await?;
            for position in 0..3 {
                ensure!(world.cluster.crash(position), "it was off");
            }
            world.cluster.start_node(0).await?;
            world.restart(VICTIM).await?;
            world.write(5).await?;
            world.restart(OFF).await?;
            world.ends_well().await?;
            for position in 0..3 {
                let damage = world.node_status(position).await?.damage;
                ensure!(damage.is_empty(), "node {position} tells {damage:#?}");
            }
            Ok(())
        },
    );
}

async fn flipped_told_and_whole_again(world: &mut World, name: &str, structure: &str) -> anyhow::Result<()> {
    for _ in 0..ROUNDS_MAX {
        let told = world.node_status(VICTIM).await?.damage.len();
        let (path, written) = file(world, name)?;
        let at = (world.seed as usize * 13 + 7) % written.len();
        let disk = world.cluster.disk(VICTIM).clone();
        ensure!(disk.corrupt(&path, at, 0x10), "the byte is there");
        let (_, damaged) = file(world, name)?;
        let deadline = now() + Duration::from_secs(10);
        while now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let damage = world.node_status(VICTIM).await?.damage;
            if let Some(event) = damage.get(told).filter(|event| event.repaired_at_ms > 0) {
                ensure!(event.structure == structure, "of {name} was told: {event:?}");
                // The ledger is written again with what was told of it.
                tokio::time::sleep(Duration::from_secs(1)).await;
                ensure!(file(world, name)?.1 != damaged, "{name} is still damaged");
                return Ok(());
            }
        }
        // The node may have replaced the file before it read it again: the damage was gone then.
        ensure!(
            file(world, name)?.1 != damaged,
            "{name}: not found within ten seconds"
        );
    }
    anyhow::bail!("{name} is replaced all the time")
}

fn file(world: &World, name: &str) -> anyhow::Result<(PathBuf, Vec<u8>)> {
    let files = world.cluster.disk(VICTIM).contents();
    let mut named = files
        .into_iter()
        .filter(|(path, _)| path.file_name().is_some_and(|file| file == name));
    named.next().with_context(|| format!("there is no file {name}"))
}
