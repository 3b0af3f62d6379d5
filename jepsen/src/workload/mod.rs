//! What clients do while faults are injected, through the public client library.
//!
//! A workload is three functions: what one client does until its time is up, what is read when
//! everything has healed, and who judges the history. Keys are spread over all shards.

mod append;
mod availability;
mod bank;
mod counter;
mod delete_resurrect;
mod pages;
mod register;
mod set;
mod ttl;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use rand::Rng;
use rand::rngs::SmallRng;
use reelkv::clock::{Instant, now};
use reelkv_client::{Error, Keyspace};

use crate::checker::{self, Verdict};
use crate::history::{Action, Answer, Event, Recorder};

/// How long a client waits for one operation: short, so that some never learn how theirs ended.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a read may take once everything has healed.
const FINAL_READ_WITHIN: Duration = Duration::from_secs(60);

/// The workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Workload {
    /// Reads, writes and conditional writes of a few keys; every key is linearizable.
    Register,
    /// Unique elements are inserted; none that was acknowledged is lost, none appears that failed.
    Set,
    /// Additions; each happens once however often it is sent.
    Counter,
    /// Transfers between accounts of a shard in atomic batches; every view holds the same total.
    Bank,
    /// Batches that set a group of keys to one value; every page of a scan shows one state.
    Scan,
    /// Puts and deletes; what was deleted does not come back.
    DeleteResurrect,
    /// Writes with a time to live; what has expired stays absent, and nothing expires early.
    Ttl,
    /// Lists that grow by conditional puts; no element is lost, doubled or out of order.
    Append,
    /// Every shard is probed at a fixed rate; none fails while a clean quorum exists.
    Availability,
}

impl Workload {
    /// All of them.
    pub const ALL: &[Self] = Self::value_variants_const();

    const fn value_variants_const() -> &'static [Self] {
        &[
            Self::Register,
            Self::Set,
            Self::Counter,
            Self::Bank,
            Self::Scan,
            Self::DeleteResurrect,
            Self::Ttl,
            Self::Append,
            Self::Availability,
        ]
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Set => "set",
            Self::Counter => "counter",
            Self::Bank => "bank",
            Self::Scan => "scan",
            Self::DeleteResurrect => "delete-resurrect",
            Self::Ttl => "ttl",
            Self::Append => "append",
            Self::Availability => "availability",
        }
    }

    /// What it does and what must hold, in one line.
    pub fn about(self) -> &'static str {
        match self {
            Self::Register => "reads, writes and conditional writes of a few keys; every key is linearizable",
            Self::Set => "unique elements are inserted; no acknowledged one is lost, no failed one appears",
            Self::Counter => "additions; each happens once however often it is sent",
            Self::Bank => {
                "transfers between accounts of a shard in atomic batches; every view holds the same total"
            }
            Self::Scan => "batches set a group of keys to one value; every page of a scan shows one state",
            Self::DeleteResurrect => "puts and deletes; what was deleted does not come back",
            Self::Ttl => {
                "writes with a time to live; what has expired stays absent, and nothing expires early"
            }
            Self::Append => {
                "lists that grow by conditional puts; no element is lost, doubled or out of order"
            }
            Self::Availability => {
                "every shard is probed at a fixed rate; none fails while a clean quorum exists"
            }
        }
    }

    /// How many clients it runs of those that were asked for: a probe is one client per shard.
    pub fn clients(self, asked: u64, shards: u64) -> u64 {
        match self {
            Self::Availability => shards,
            _ => asked,
        }
    }

    /// Whether it promises anything only while most clocks of the cluster are right.
    pub fn needs_most_clocks(self) -> bool {
        self == Self::Ttl
    }

    /// Makes what the clients expect to find.
    ///
    /// # Errors
    /// The cluster does not take it although nothing is wrong yet.
    pub async fn prepare(self, actor: Actor) -> anyhow::Result<()> {
        match self {
            Self::Bank => bank::prepare(actor).await,
            _ => Ok(()),
        }
    }

    /// What one client does until its time is up.
    pub async fn client(self, actor: Actor) {
        match self {
            Self::Register => register::client(actor).await,
            Self::Set => set::client(actor).await,
            Self::Counter => counter::client(actor).await,
            Self::Bank => bank::client(actor).await,
            Self::Scan => pages::client(actor).await,
            Self::DeleteResurrect => delete_resurrect::client(actor).await,
            Self::Ttl => ttl::client(actor).await,
            Self::Append => append::client(actor).await,
            Self::Availability => availability::client(actor).await,
        }
    }

    /// Reads everything again. To be called when all has healed.
    ///
    /// # Errors
    /// Something cannot be read though nothing is wrong any more.
    pub async fn finish(self, actor: Actor) -> anyhow::Result<()> {
        match self {
            Self::Register => register::finish(actor).await,
            Self::DeleteResurrect => delete_resurrect::finish(actor).await,
            Self::Ttl => ttl::finish(actor).await,
            Self::Set => set::finish(actor).await,
            Self::Counter => counter::finish(actor).await,
            Self::Bank => bank::finish(actor).await,
            Self::Scan => pages::finish(actor).await,
            Self::Append => append::finish(actor).await,
            Self::Availability => availability::finish(actor).await,
        }
    }

    /// Judges a history of this workload. `clean_us` are the spans in which a clean quorum existed.
    pub fn judge(self, history: &[Event], clean_us: &[(u64, u64)]) -> Verdict {
        match self {
            Self::Register | Self::DeleteResurrect | Self::Ttl => checker::register::check(history),
            Self::Set => checker::set::check(history),
            Self::Counter => checker::counter::check(history),
            Self::Bank => checker::bank::check(history, bank::ACCOUNTS, bank::TOTAL),
            Self::Scan => checker::pages::check(history),
            Self::Append => checker::append::check(history),
            Self::Availability => availability::judge(history, clean_us),
        }
    }

    /// The kinds of operations of which at least one must have succeeded for a run to say anything.
    pub fn must_succeed(self) -> &'static [&'static str] {
        match self {
            Self::Register => &["read", "write", "write-if"],
            Self::Set => &["insert", "read-set"],
            Self::Counter => &["add", "read-counter"],
            Self::Bank => &["transfer", "read-balances"],
            Self::Scan => &["write-group", "read-page"],
            Self::DeleteResurrect => &["write", "delete", "read"],
            Self::Ttl => &["write-for", "write-if", "write", "delete", "read"],
            Self::Append => &["append", "read-list"],
            Self::Availability => &["probe"],
        }
    }
}

/// One client of a workload.
pub struct Actor {
    /// Its number in the history.
    pub id: u64,
    /// Where it reads and writes.
    pub keyspace: Keyspace,
    /// What it saw.
    pub recorder: Arc<Recorder>,
    /// Its choices.
    pub rng: SmallRng,
    /// When its time is up.
    pub until: Instant,
    /// How long it thinks before an operation, in milliseconds, at most.
    pub think_ms: u64,
    /// Data shards of the keyspace.
    pub shards: u64,
}

impl Actor {
    /// Whether it goes on. Thinks for a while first.
    pub async fn goes_on(&mut self) -> bool {
        let pause = self.rng.random_range(1..=self.think_ms);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        now() < self.until
    }

    /// The stored key of a number: number n lies in shard n modulo the count of shards.
    pub fn key(&self, number: u64) -> Vec<u8> {
        let mut key = vec![self.first_byte(number % self.shards)];
        key.extend(number.to_be_bytes());
        key
    }

    /// The stored key of a member of a group; a group lies in one shard.
    pub fn member_key(&self, group: u64, member: u64) -> Vec<u8> {
        let mut key = self.key(group);
        key.extend(member.to_be_bytes());
        key
    }

    /// The same client, which waits this long for an operation.
    pub fn patient(mut self, timeout: Duration) -> Self {
        self.keyspace = self.keyspace.with_timeout(timeout);
        self
    }

    /// A keyspace is cut at even points of the first byte.
    fn first_byte(&self, shard: u64) -> u8 {
        (shard * 256 / self.shards + 1) as u8
    }

    /// Performs a call and writes it down.
    pub async fn perform(
        &self,
        action: Action,
        call: impl Future<Output = Result<Answer, Error>>,
    ) -> Option<Answer> {
        self.recorder.perform(self.id, action, call).await
    }

    /// Repeats a read until it is answered.
    ///
    /// # Errors
    /// It is not answered within a minute.
    pub async fn insist<Reading>(&self, what: &str, read: impl Fn() -> Reading) -> anyhow::Result<Answer>
    where
        Reading: Future<Output = Option<Answer>>,
    {
        let deadline = now() + FINAL_READ_WITHIN;
        loop {
            if let Some(answer) = read().await {
                return Ok(answer);
            }
            anyhow::ensure!(
                now() < deadline,
                "{what} cannot be read though nothing is wrong any more"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// A number as it is stored.
pub fn stored(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// The number a record holds; what is no number is one that nobody wrote.
pub fn number(value: &[u8]) -> u64 {
    value.try_into().map_or(u64::MAX - 1, u64::from_be_bytes)
}

/// What a workload's history says in figures: how many operations of each kind ended in which way.
pub fn tally(history: &[Event]) -> BTreeMap<String, [u64; 3]> {
    let mut tally: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for event in history {
        let counts = tally.entry(event.action.name().to_owned()).or_default();
        match (event.is_done(), event.is_unknown()) {
            (true, _) => counts[0] += 1,
            (_, true) => counts[2] += 1,
            _ => counts[1] += 1,
        }
    }
    tally
}
