//! Tokens of writes: what lets a shard recognise a write that is sent twice.
//!
//! The scheme is RIFL's (SOSP'15). A *writer* opens a memory in a shard, the incarnation, and numbers
//! its writes there from 1. Each write tells the shard which numbers it may forget: all below the
//! oldest whose answer has not been seen. A retry keeps its token, so the shard knows it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reelkv_proto::types::ShardId;
use reelkv_proto::v1;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A shard remembers 65,536 sequences of an incarnation; we keep well below.
const WINDOW_MAX: u64 = 32_768;

/// The writers of a client, one per shard it has written to.
#[derive(Default)]
pub(crate) struct Writers(Mutex<BTreeMap<ShardId, Arc<Writer>>>);

impl Writers {
    pub(crate) fn of(&self, shard: ShardId) -> Arc<Writer> {
        self.0.lock().entry(shard).or_default().clone()
    }
}

/// A client's memory in one shard, if it is open.
#[derive(Default)]
pub(crate) struct Writer {
    /// Held while an incarnation is being opened, so that many writers open one.
    pub(crate) opening: tokio::sync::Mutex<()>,
    memory: Mutex<Option<Arc<Memory>>>,
}

impl Writer {
    /// The open memory, unless it was idle so long that the shard may be about to forget it.
    pub(crate) fn memory(&self) -> Option<Arc<Memory>> {
        self.memory.lock().clone().filter(|memory| !memory.is_stale())
    }

    pub(crate) fn opened(&self, opened: v1::OpenIncarnationResponse) -> Option<Arc<Memory>> {
        let memory = Arc::new(Memory::new(
            opened.incarnation?,
            Duration::from_millis(opened.remembered_ms),
        ));
        *self.memory.lock() = Some(memory.clone());
        Some(memory)
    }

    /// Forgets `expired`, unless another has been opened since.
    pub(crate) fn forget(&self, expired: &Arc<Memory>) {
        let mut memory = self.memory.lock();
        if memory
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, expired))
        {
            *memory = None;
        }
    }
}

/// One incarnation and the sequences in use.
///
/// Invariant: every sequence below `next` is either in `outstanding` or never sent again.
pub(crate) struct Memory {
    incarnation: v1::Incarnation,
    remembered: Duration,
    sequences: Mutex<Sequences>,
    released: Notify,
}

struct Sequences {
    next: u64,
    outstanding: BTreeSet<u64>,
    used_at: Instant,
}

impl Sequences {
    fn first_unacknowledged(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }
}

impl Memory {
    fn new(incarnation: v1::Incarnation, remembered: Duration) -> Self {
        let sequences = Sequences {
            next: 1,
            outstanding: BTreeSet::new(),
            used_at: Instant::now(),
        };
        Self {
            incarnation,
            remembered,
            sequences: Mutex::new(sequences),
            released: Notify::new(),
        }
    }

    /// Unused for half the time it is remembered. A server that names no time is taken at its word.
    fn is_stale(&self) -> bool {
        let idle = self.sequences.lock().used_at.elapsed();
        !self.remembered.is_zero() && idle > self.remembered / 2
    }

    /// The next sequence, as soon as the window has room; `None` when it has none before the deadline.
    pub(crate) async fn ticket(self: &Arc<Self>, deadline: Instant) -> Option<Ticket> {
        loop {
            // Registered before the look, so that no release is missed.
            let released = self.released.notified();
            if let Some(ticket) = self.ticket_now() {
                return Some(ticket);
            }
            tokio::time::timeout_at(deadline, released).await.ok()?;
        }
    }

    fn ticket_now(self: &Arc<Self>) -> Option<Ticket> {
        let mut sequences = self.sequences.lock();
        let sequence = sequences.next;
        if sequence - sequences.first_unacknowledged() >= WINDOW_MAX {
            return None;
        }
        sequences.next += 1;
        sequences.outstanding.insert(sequence);
        sequences.used_at = Instant::now();
        let memory = self.clone();
        Some(Ticket { memory, sequence })
    }
}

/// A sequence in use. When it is dropped it will never be sent again: answered, given up, or refused.
pub(crate) struct Ticket {
    memory: Arc<Memory>,
    sequence: u64,
}

impl Ticket {
    pub(crate) fn token(&self) -> v1::Token {
        let first_unacknowledged = self.memory.sequences.lock().first_unacknowledged();
        debug_assert!(first_unacknowledged <= self.sequence);
        v1::Token {
            incarnation: Some(self.memory.incarnation),
            sequence: self.sequence,
            first_unacknowledged,
        }
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The shard whose memory it is.
    pub(crate) fn shard(&self) -> ShardId {
        self.memory.incarnation.shard_id
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.memory.sequences.lock().outstanding.remove(&self.sequence);
        self.memory.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Arc<Memory> {
        let incarnation = v1::Incarnation {
            shard_id: 4,
            version: 17,
        };
        Writer::default()
            .opened(v1::OpenIncarnationResponse {
                incarnation: Some(incarnation),
                remembered_ms: 0,
            })
            .unwrap()
    }

    fn numbers(ticket: &Ticket) -> (u64, u64) {
        let token = ticket.token();
        (token.sequence, token.first_unacknowledged)
    }

    #[tokio::test]
    async fn what_is_answered_may_be_forgotten_up_to_the_oldest_outstanding() {
        let memory = memory();
        let [a, b, c] = [(); 3].map(|()| memory.ticket_now().unwrap());
        assert_eq!((numbers(&a), numbers(&b), numbers(&c)), ((1, 1), (2, 1), (3, 1)));
        drop(b);
        assert_eq!(numbers(&c), (3, 1));
        drop(a);
        assert_eq!(numbers(&c), (3, 3));
        drop(c);
        assert_eq!(numbers(&memory.ticket_now().unwrap()), (4, 4));
    }

    #[tokio::test]
    async fn a_full_window_waits_for_its_oldest() {
        let memory = memory();
        let oldest = memory.ticket_now().unwrap();
        for _ in 1..WINDOW_MAX {
            drop(memory.ticket_now().unwrap());
        }
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(memory.ticket(soon).await.is_none());
        let waiting = memory.ticket(Instant::now() + Duration::from_secs(10));
        let release = async { drop(oldest) };
        let (ticket, ()) = tokio::join!(waiting, release);
        assert_eq!(numbers(&ticket.unwrap()), (WINDOW_MAX + 1, WINDOW_MAX + 1));
    }

    #[tokio::test]
    async fn an_expired_memory_is_forgotten_once() {
        let writer = Writer::default();
        let open = |version| {
            let incarnation = Some(v1::Incarnation { shard_id: 4, version });
            writer
                .opened(v1::OpenIncarnationResponse {
                    incarnation,
                    remembered_ms: 900_000,
                })
                .unwrap()
        };
        let first = open(1);
        writer.forget(&first);
        assert!(writer.memory().is_none());
        let second = open(2);
        writer.forget(&first);
        assert!(Arc::ptr_eq(&writer.memory().unwrap(), &second));
    }
}
