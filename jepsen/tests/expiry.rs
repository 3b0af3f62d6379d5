//! Keys that expire, in a simulated cluster whose clocks jump and whose power fails.
//!
//! The clocks of the three nodes are up to two seconds apart from the start, so the time that most
//! of them agree on may move by as much when one of them jumps: that is the room the pages leave.
//!
//! `REELKV_SEED=7` runs one seed, `REELKV_PAGE_SEEDS=50` more than the default.

#[allow(dead_code)] // other pages use other parts of the stage
mod world;

use std::time::Duration;

use anyhow::{bail, ensure};
use bytes::Bytes;
use reelkv::clock::now;
use reelkv::rpc::handler::AdminHandler;
use reelkv_proto::types::KeyRange;
use reelkv_proto::v1::{self, condition, request::Op, response};
use world::{World, key, page, value};

const LIMIT: Duration = Duration::from_secs(10);
const HOUR_MS: i64 = 3_600_000;
/// How far apart the clocks may be.
const APART: Duration = Duration::from_secs(2);
/// Keys of a page: some in every shard.
const KEYS: u64 = 12;

/// A key that no other story of this page uses, in a shard that its number chooses.
fn mortal(round: u64, number: u64) -> Bytes {
    key(1_000_000 * (round + 1) + number)
}

fn mortals(round: u64) -> Vec<Bytes> {
    (0..KEYS).map(|number| mortal(round, number)).collect()
}

trait Expiring {
    async fn put_for(
        &self,
        key: &Bytes,
        ttl: Duration,
        condition: Option<condition::Kind>,
    ) -> anyhow::Result<u64>;
    async fn record(&self, key: &Bytes) -> anyhow::Result<Option<v1::Record>>;
    async fn all(&self, keys: &[Bytes], there: bool, when: &str) -> anyhow::Result<()>;
    async fn scan(&self) -> anyhow::Result<Vec<Bytes>>;
    async fn held(&self, position: usize, keys: &[Bytes]) -> anyhow::Result<usize>;
    async fn power_cut(&mut self) -> anyhow::Result<()>;
    async fn lead_elsewhere(&self) -> anyhow::Result<()>;
}

impl Expiring for World {
    /// Puts a value, to live for `ttl` if that is not zero; the version.
    async fn put_for(
        &self,
        key: &Bytes,
        ttl: Duration,
        condition: Option<condition::Kind>,
    ) -> anyhow::Result<u64> {
        let Op::Put(mut put) = self.client.put_op(key, &value(7)) else {
            unreachable!("it makes puts")
        };
        put.ttl_ms = ttl.as_millis() as u64;
        put.condition = condition.map(|kind| v1::Condition { kind: Some(kind) });
        match self
            .client
            .insist(&self.client.addrs, Op::Put(put), LIMIT)
            .await?
        {
            response::Result::Write(written) => Ok(written.version),
            other => bail!("a put was answered by {other:?}"),
        }
    }

    async fn record(&self, key: &Bytes) -> anyhow::Result<Option<v1::Record>> {
        let get = self.client.get_op(key);
        match self.client.insist(&self.client.addrs, get, LIMIT).await? {
            response::Result::Get(get) => Ok(get.record),
            other => bail!("a read was answered by {other:?}"),
        }
    }

    /// All of the keys are there, or none is: to reads through any node and to a scan.
    async fn all(&self, keys: &[Bytes], there: bool, when: &str) -> anyhow::Result<()> {
        let scanned = self.scan().await?;
        for (number, key) in keys.iter().enumerate() {
            let addr = &self.client.addrs[number % self.client.addrs.len()..][..1];
            let found = self.client.get(addr, key, LIMIT).await?.is_some();
            ensure!(found == there, "{key:?} is there: {found}, {when}");
            let found = scanned.contains(key);
            ensure!(found == there, "{key:?} is in a scan: {found}, {when}");
        }
        Ok(())
    }

    /// The keys a scan returns.
    async fn scan(&self) -> anyhow::Result<Vec<Bytes>> {
        let mut scan = v1::ScanRequest {
            keyspace_id: self.client.keyspace_id,
            ..Default::default()
        };
        let mut keys = Vec::new();
        loop {
            let request = Op::Scan(scan.clone());
            let page = match self.client.insist(&self.client.addrs, request, LIMIT).await? {
                response::Result::Scan(page) => page,
                other => bail!("a scan was answered by {other:?}"),
            };
            keys.extend(page.records.into_iter().map(|record| record.key));
            match page.resume_key.is_empty() {
                true => return Ok(keys),
                false => scan.start_key = page.resume_key,
            }
        }
    }

    /// How many of the keys a node holds records of, whether or not they have expired.
    async fn held(&self, position: usize, keys: &[Bytes]) -> anyhow::Result<usize> {
        let mut held = 0;
        for replica in self.member(position)?.replicas().all() {
            let whole = KeyRange::of_keyspace(self.client.keyspace_id);
            let page = replica.scan_local(whole, usize::MAX, usize::MAX).await;
            let page = page.map_err(|error| anyhow::anyhow!(error.message))?;
            let is_one = |stored: &Bytes| keys.iter().any(|key| stored.ends_with(key));
            held += page.records.iter().filter(|record| is_one(&record.key)).count();
        }
        Ok(held)
    }

    /// Cuts the power of all machines at once and boots them again.
    async fn power_cut(&mut self) -> anyhow::Result<()> {
        for position in 0..self.client.addrs.len() {
            ensure!(self.cluster.crash(position), "node {position} was off");
        }
        for position in 0..self.client.addrs.len() {
            self.cluster.start_node(position).await?;
        }
        self.healthy().await
    }

    /// Has every shard led by another node than before.
    async fn lead_elsewhere(&self) -> anyhow::Result<()> {
        for shard in self.member(0)?.directory().shards {
            let shard_id = shard.shard_id;
            let next = |leader: u64| leader % self.client.addrs.len() as u64 + 1;
            let deadline = now() + LIMIT;
            loop {
                let request = v1::TransferLeaderRequest {
                    shard_id,
                    to_node_id: next(shard.leader_node_id),
                };
                match self.front(0)?.transfer_leader(request).await {
                    Ok(_) => break,
                    Err(error) => ensure!(now() < deadline, "shard {shard_id}: {}", error.message),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }
}

#[test]
fn what_has_expired_is_absent_everywhere_and_never_comes_back() {
    page(
        "what_has_expired_is_absent_everywhere_and_never_comes_back",
        |mut world| async move {
            let keys = mortals(0);
            for key in &keys {
                world.put_for(key, Duration::from_secs(20), None).await?;
            }
            world.all(&keys, true, "at once").await?;
            let record = world.record(&keys[0]).await?.expect("it was just there");
            ensure!(
                record.expires_at_ms == record.logged_time_ms + 20_000,
                "{record:?}"
            );
            tokio::time::sleep(Duration::from_secs(20)).await;
            world.all(&keys, false, "after its time").await?;

            // All clocks say that it has not been yet; the log knows better.
            for position in 0..3 {
                world.cluster.clock(position).jump_ms(-HOUR_MS);
            }
            world.all(&keys, false, "with clocks an hour back").await?;
            world.lead_elsewhere().await?;
            world.all(&keys, false, "after leaders have changed").await?;
            world.power_cut().await?;
            world.all(&keys, false, "after a power cut").await?;
            world.lead_elsewhere().await?;
            world
                .all(&keys, false, "after a power cut and other leaders")
                .await?;
            world.ends_well().await
        },
    );
}

#[test]
fn one_clock_that_jumps_an_hour_expires_nothing_early_and_keeps_nothing_long() {
    page(
        "one_clock_that_jumps_an_hour_expires_nothing_early_and_keeps_nothing_long",
        |mut world| async move {
            let ttl = Duration::from_secs(30);
            let mut round = 0;
            // Each node leads some shards and follows in others.
            for position in 0..3 {
                for by_ms in [HOUR_MS, -HOUR_MS] {
                    round += 1;
                    let when = |what| format!("{what}; clock {position} by {by_ms} ms");
                    let (before, after) = (mortals(2 * round), mortals(2 * round + 1));
                    let began = now();
                    for key in &before {
                        world.put_for(key, ttl, None).await?;
                    }
                    world.cluster.clock(position).jump_ms(by_ms);
                    for key in &after {
                        world.put_for(key, ttl, None).await?;
                    }
                    while began.elapsed() < ttl - APART - Duration::from_secs(3) {
                        world.all(&before, true, &when("put before the jump")).await?;
                        world.all(&after, true, &when("put after the jump")).await?;
                        // Other writes log the time, too.
                        world.write(3).await?;
                        tokio::time::sleep(Duration::from_secs(3)).await;
                    }
                    tokio::time::sleep_until(now() + ttl.saturating_sub(began.elapsed()) + APART + APART)
                        .await;
                    world
                        .all(&before, false, &when("put before the jump, past its time"))
                        .await?;
                    world
                        .all(&after, false, &when("put after the jump, past its time"))
                        .await?;
                    world.cluster.clock(position).jump_ms(-by_ms);
                }
            }
            world.ends_well().await
        },
    );
}

#[test]
fn what_is_written_over_a_key_that_expires_has_its_own_life() {
    page(
        "what_is_written_over_a_key_that_expires_has_its_own_life",
        |mut world| async move {
            let ttl = Duration::from_secs(10);
            let absent = Some(condition::Kind::Absent(true));
            let (locks, kept) = (mortals(0), mortals(1));
            for (lock, kept) in locks.iter().zip(&kept) {
                let first = world.put_for(lock, ttl, absent).await?;
                let taken = world.client.addrs[0].clone();
                let Op::Put(mut again) = world.client.put_op(lock, &value(8)) else {
                    unreachable!("it makes puts")
                };
                again.condition = Some(v1::Condition { kind: absent });
                ensure!(
                    world.client.once(&taken, Op::Put(again)).await.is_none(),
                    "the lock was free"
                );
                world
                    .put_for(lock, ttl, Some(condition::Kind::Version(first)))
                    .await?;

                world.put_for(kept, ttl, None).await?;
                world.put_for(kept, Duration::ZERO, None).await?;
            }
            let counter = key(9_000_000);
            world.put_sum(&counter, 40, ttl).await?;
            world.add(&counter, 2, 42).await?;
            tokio::time::sleep(ttl).await;
            // Nobody has read it meanwhile: the condition itself has the time logged.
            for lock in &locks {
                world.put_for(lock, Duration::ZERO, absent).await?;
            }
            world.add(&counter, 1, 1).await?;
            tokio::time::sleep(ttl * 2).await;
            world.all(&locks, true, "written over what had expired").await?;
            world
                .all(&kept, true, "written over what would have expired")
                .await?;
            world.add(&counter, 1, 2).await?;
            world.ends_well().await
        },
    );
}

trait Counting {
    async fn put_sum(&self, key: &Bytes, sum: i64, ttl: Duration) -> anyhow::Result<()>;
    async fn add(&self, key: &Bytes, delta: i64, sum: i64) -> anyhow::Result<()>;
}

impl Counting for World {
    async fn put_sum(&self, key: &Bytes, sum: i64, ttl: Duration) -> anyhow::Result<()> {
        let value = Bytes::copy_from_slice(&sum.to_be_bytes());
        let Op::Put(mut put) = self.client.put_op(key, &value) else {
            unreachable!("it makes puts")
        };
        put.ttl_ms = ttl.as_millis() as u64;
        self.client
            .insist(&self.client.addrs, Op::Put(put), LIMIT)
            .await?;
        Ok(())
    }

    /// Adds and expects a sum. The network is calm: nothing is done twice.
    async fn add(&self, key: &Bytes, delta: i64, sum: i64) -> anyhow::Result<()> {
        let add = v1::AddRequest {
            keyspace_id: self.client.keyspace_id,
            key: key.clone(),
            delta,
            ..Default::default()
        };
        match self
            .client
            .insist(&self.client.addrs, Op::Add(add), LIMIT)
            .await?
        {
            response::Result::Add(added) if added.value == sum => Ok(()),
            other => bail!("expected the sum {sum}, got {other:?}"),
        }
    }
}

#[test]
fn what_has_expired_is_removed_from_every_replica_alike() {
    page(
        "what_has_expired_is_removed_from_every_replica_alike",
        |mut world| async move {
            let (short, long) = (mortals(0), mortals(1));
            for (short, long) in short.iter().zip(&long) {
                world.put_for(short, Duration::from_secs(5), None).await?;
                world.put_for(long, Duration::from_secs(3_600), None).await?;
            }
            for position in 0..3 {
                let held = world.held(position, &short).await?;
                ensure!(
                    held == KEYS as usize,
                    "node {position} holds {held} at the beginning"
                );
            }
            // Nobody reads them. Leaders look now and then.
            let deadline = now() + Duration::from_secs(150);
            for position in 0..3 {
                while world.held(position, &short).await? > 0 {
                    ensure!(now() < deadline, "node {position} still holds what has expired");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                let held = world.held(position, &long).await?;
                ensure!(
                    held == KEYS as usize,
                    "node {position} holds {held} of those that live"
                );
            }
            world.all(&short, false, "removed").await?;
            world.all(&long, true, "alive").await?;
            world.ends_well().await
        },
    );
}

#[test]
fn a_clock_that_jumps_ahead_makes_no_shard_forget_a_writer() {
    page(
        "a_clock_that_jumps_ahead_makes_no_shard_forget_a_writer",
        |mut world| async move {
            let (key, addrs) = (key(9_000_000), world.client.addrs.clone());
            let open = Op::OpenIncarnation(v1::OpenIncarnationRequest {
                keyspace_id: world.client.keyspace_id,
                key: key.clone(),
                route: None,
            });
            let incarnation = match world.client.insist(&addrs, open, LIMIT).await? {
                response::Result::OpenIncarnation(opened) => opened.incarnation,
                other => bail!("answered by {other:?}"),
            };
            for position in 0..3 {
                world.cluster.clock(position).jump_ms(HOUR_MS);
                // Memories are looked through once a minute.
                tokio::time::sleep(Duration::from_secs(90)).await;
                let Op::Put(mut put) = world.client.put_op(&key, &value(position as u64)) else {
                    unreachable!("it makes puts")
                };
                let sequence = position as u64 + 1;
                put.token = Some(v1::Token {
                    incarnation,
                    sequence,
                    first_unacknowledged: sequence,
                });
                // Refused, if the writer was forgotten.
                world.client.insist(&addrs, Op::Put(put), LIMIT).await?;
                world.cluster.clock(position).jump_ms(-HOUR_MS);
            }
            world.ends_well().await
        },
    );
}
