//! What replicas copy from one another to repair their trees: verified before it is used, resumed where it
//! broke off, and no faster than a node may.
//!
//! Every page is one story in virtual time on a simulated cluster of three nodes, told for several
//! seeds: `REELKV_PAGE_SEEDS=50` sets how many (default 3), `REELKV_SEED=7` runs that one alone.

#[allow(dead_code)] // other pages use other parts of the stage
mod world;

use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use reelkv::clock::now;
use reelkv_jepsen::sim::{Settings, Weather};
use reelkv_proto::v1;
use world::{VICTIM, World, key, page, page_of, value};

/// Most times that something is done again, until chance has it that the fault takes effect.
const ROUNDS_MAX: usize = 20;

#[test]
fn whoever_sent_wrong_records_is_not_believed_until_the_voters_were_compared() {
    page(
        "whoever_sent_wrong_records_is_not_believed_until_the_voters_were_compared",
        |mut world| async move {
            let network = world.cluster.network().clone();
            let spoiler = world.client.addrs[(VICTIM + 1) % 3].clone();
            for round in 0.. {
                ensure!(round < ROUNDS_MAX, "nobody asked the spoiler");
                network.spoil_views_of(Some(&spoiler));
                refill_the_victim(&mut world).await?;
                if network.happened().spoiled > 0 {
                    break;
                }
            }
            let told = of_transfers(&world).await?;
            ensure!(
                told.iter().any(|event| event.position.contains(&spoiler)),
                "nothing was told of {spoiler}: {told:#?}"
            );
            network.spoil_views_of(None);
            world.ends_well().await?;
            // Compared, and found to hold what the others hold.
            let deadline = now() + Duration::from_secs(30);
            while of_transfers(&world)
                .await?
                .iter()
                .any(|event| event.repaired_at_ms == 0)
            {
                ensure!(now() < deadline, "{:#?}", of_transfers(&world).await?);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(())
        },
    );
}

#[test]
fn a_transfer_that_breaks_off_goes_on_from_there() {
    page(
        "a_transfer_that_breaks_off_goes_on_from_there",
        |mut world| async move {
            let network = world.cluster.network().clone();
            for round in 0.. {
                ensure!(round < ROUNDS_MAX, "no transfer broke off behind a record");
                network.weather(Weather {
                    loss_per_mille: 150,
                    ..Weather::default()
                });
                refill_the_victim(&mut world).await?;
                network.weather(Weather::default());
                if network.happened().resumed > 0 {
                    break;
                }
            }
            world.ends_well().await
        },
    );
}

/// A slow repair is no slow node: it answers as ever.
#[test]
fn repairs_copy_no_more_than_they_may_and_nobody_waits_for_them() {
    const RATE: u64 = 64 << 10;
    let settings = Settings {
        repair_bytes_per_s_max: RATE,
        ..Settings::default()
    };
    page_of(
        settings,
        "repairs_copy_no_more_than_they_may_and_nobody_waits_for_them",
        |mut world| async move {
            let addrs = world.client.addrs.clone();
            for _ in 0..40 {
                let (key, value) = (key(world.next), Bytes::from(value(world.next).repeat(150)));
                world.next += 1;
                let put = world.client.put_op(&key, &value);
                world.client.insist(&addrs, put, Duration::from_secs(10)).await?;
                world.acknowledged.insert(key, value);
            }
            world.settle().await;
            let bytes: usize = world.acknowledged.values().map(Bytes::len).sum();
            world.lose_all_trees()?;
            let began = now();
            world.restart(VICTIM).await?;
            let mut slowest = Duration::ZERO;
            while !world.is_trusted().await? {
                ensure!(began.elapsed() < Duration::from_secs(120), "never repaired");
                let asked = now();
                world.write(1).await?;
                slowest = slowest.max(asked.elapsed());
            }
            let due = Duration::from_secs_f64(bytes as f64 / RATE as f64).mul_f64(0.9);
            ensure!(
                began.elapsed() >= due,
                "{bytes} bytes were copied in {:?}, which may take {due:?}",
                began.elapsed()
            );
            ensure!(slowest < Duration::from_secs(3), "a write took {slowest:?}");
            world.ends_well().await
        },
    );
}

/// The victim loses all trees while it is off, and fills new ones.
async fn refill_the_victim(world: &mut World) -> anyhow::Result<()> {
    world.settle().await;
    world.lose_all_trees()?;
    world.restart(VICTIM).await?;
    let deadline = now() + Duration::from_secs(120);
    while !world.is_trusted().await? {
        ensure!(now() < deadline, "not refilled");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn of_transfers(world: &World) -> anyhow::Result<Vec<v1::DamageEvent>> {
    let damage = world.node_status(VICTIM).await?.damage;
    let of_transfers = damage.into_iter().filter(|event| event.structure == "transfer");
    Ok(of_transfers.collect())
}
