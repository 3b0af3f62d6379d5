//! One call: routed, sent, judged, and sent again while that may help and the deadline allows.
//!
//! What an answer means for the next step:
//!
//! | answer | next |
//! |---|---|
//! | `NotLeader`, `EpochNotMatch`, `KeyNotInShard` | learn from it and go there, the first few times at once; after a back-off if that node was trouble before |
//! | `Busy`, `Unavailable`, not sent | back off, then try again, elsewhere if the node was the trouble |
//! | lost, `OutcomeUnknown` | the same; a write may have happened from here on |
//! | `Integrity`, `Internal` | once more, elsewhere |
//! | `TokenExpired` | a new incarnation if the write cannot have happened |
//! | anything else | the caller's |
//!
//! A write that may have happened has two ends only: a success, which its token makes the right one,
//! or `OutcomeUnknown`. A refusal then proves nothing: an earlier send may still be on its way.

use std::time::Duration;

use bytes::Bytes;
use reelkv_proto::checksum::client_crc;
use reelkv_proto::types::{KeyRange, KeyspaceId, ShardId, split_stored_key, stored_key};
use reelkv_proto::v1;
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::request::Op;
use reelkv_proto::v1::response::Result as Answer;
use tokio::time::Instant;

use crate::avoid::Avoid;
use crate::client::Shared;
use crate::connector::TransportError;
use crate::error::{Error, ErrorKind, Result};
use crate::retry::Backoff;
use crate::routing::{Addr, ShardRoute};
use crate::tokens::Ticket;

/// Better addresses followed without a pause.
const HOPS_MAX: u32 = 4;
/// One try takes at most this long, so that a silent node does not use up the call's time.
const TRY_TIMEOUT_MAX: Duration = Duration::from_secs(3);
const TRY_TIMEOUT_MIN: Duration = Duration::from_millis(250);

/// What is asked: an operation without route and token, and the key that routes it.
pub(crate) struct Ask<'a> {
    pub(crate) keyspace: KeyspaceId,
    pub(crate) key: &'a [u8],
    pub(crate) op: &'a Op,
    pub(crate) deadline: Instant,
}

/// An answer and the shard that was asked.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) range: KeyRange,
}

/// What to do after a try.
enum Next {
    /// Try again at once: something was learned.
    Hop,
    /// Try again after a while.
    Wait { at_least: Duration, why: Error },
    /// Give the caller this.
    Fail(Error),
}

/// What one call has been through.
struct Tries {
    deadline: Instant,
    is_write: bool,
    backoff: Backoff,
    hops: u32,
    /// Answers of kind `Integrity` and `Internal`.
    faults: u32,
    /// Nodes that were the trouble in this call.
    avoid: Avoid,
    /// The write may have happened.
    maybe_done: bool,
}

impl Shared {
    /// Performs one operation; its answer is verified.
    pub(crate) async fn perform(&self, ask: Ask<'_>) -> Result<Answered> {
        let routed_by = stored_key(ask.keyspace, ask.key);
        let mut tries = Tries::new(ask.deadline, is_write(ask.op));
        let mut ticket: Option<Ticket> = None;
        let mut is_map_fresh = false;
        loop {
            let Some(route) = self.routes.lookup(&routed_by) else {
                let why = Error::unavailable("no shard is known to hold the key");
                self.retry(&mut tries, Duration::ZERO, why, None).await?;
                self.refresh(ask.deadline).await;
                continue;
            };
            if !holds_all_keys(&route.range, &ask) {
                if is_map_fresh {
                    return Err(
                        tries.conclude(Error::invalid("batch", "the batch has keys of different shards"))
                    );
                }
                self.refresh(ask.deadline).await;
                is_map_fresh = true;
                continue;
            }
            if is_write(ask.op) && ticket.is_none() {
                ticket = Some(Box::pin(self.ticket(&route, &ask)).await?);
                // Opening may have taught the cache something.
                continue;
            }
            let addr = self.pick(&route, &mut tries.avoid);
            let timeout = tries.try_timeout();
            let request = v1::Request {
                id: 0,
                timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1),
                op: Some(prepared(ask.op, &route, ticket.as_ref())),
            };
            let called = self.connector.call(&addr, request, timeout);
            let called = tokio::time::timeout(timeout, called)
                .await
                .unwrap_or(Err(TransportError::Lost));
            let next = match called {
                Err(error) => self.after_silence(&mut tries, &route, addr, error),
                Ok(v1::Response {
                    result: Some(Answer::Error(error)),
                    ..
                }) => {
                    self.after_error(&mut tries, &route, addr, error, &mut ticket, &routed_by)
                        .await
                }
                Ok(v1::Response { result, .. }) => match verified(&ask, &route, result) {
                    Ok(answer) => {
                        self.budget.succeeded();
                        // Only its leader answers for a shard.
                        self.routes.leader_is(route.shard_id, &addr);
                        self.waiting.answered(route.shard_id);
                        self.look_for_leader(&route);
                        return Ok(Answered {
                            answer,
                            range: route.range.clone(),
                        });
                    }
                    Err(error) => tries.after_fault(addr, error),
                },
            };
            match next {
                Next::Hop if tries.hops < HOPS_MAX => tries.hops += 1,
                Next::Hop => {
                    let why = Error::unavailable("the shard moves faster than it can be followed");
                    self.retry(&mut tries, Duration::ZERO, why, Some(route.shard_id))
                        .await?;
                }
                Next::Wait { at_least, why } => {
                    self.retry(&mut tries, at_least, why, Some(route.shard_id))
                        .await?;
                }
                Next::Fail(error) => return Err(tries.conclude(error)),
            }
        }
    }

    /// Waits before the next try, or ends the call when its time is over. The wait for a token ends
    /// early when another call of the shard is answered.
    async fn retry(
        &self,
        tries: &mut Tries,
        at_least: Duration,
        why: Error,
        shard_id: Option<ShardId>,
    ) -> Result<()> {
        let pause = tries.backoff.next(&self.jitter).max(at_least);
        let left = tries.deadline.saturating_duration_since(Instant::now());
        let queue = match left.checked_sub(pause) {
            Some(spare) if !spare.is_zero() => self.budget.take(spare),
            _ => None,
        };
        let Some(queue) = queue else {
            return Err(tries.conclude(why));
        };
        tracing::trace!(?pause, ?queue, %why, "will try again");
        match shard_id {
            Some(shard_id) => {
                if self.waiting.wait(shard_id, pause, queue, &self.budget).await {
                    // Whoever refused, a leader is known now.
                    tries.avoid.answered(self.routes.leader_of(shard_id).as_ref());
                }
            }
            None => tokio::time::sleep(pause + queue).await,
        }
        Ok(())
    }

    /// The leader's node, or another that will forward: the first that was no trouble in this call.
    fn pick(&self, route: &ShardRoute, avoid: &mut Avoid) -> Addr {
        let replicas = route.replicas.iter().map(|(_, addr)| addr);
        let known: Vec<&Addr> = route.leader.iter().chain(replicas).chain(&self.seeds).collect();
        avoid
            .first(&known)
            .map_or_else(|| self.seeds[0].clone(), Addr::clone)
    }

    fn after_silence(
        &self,
        tries: &mut Tries,
        route: &ShardRoute,
        addr: Addr,
        error: TransportError,
    ) -> Next {
        self.routes.leader_is_not(route.shard_id, &addr);
        let why = Error::unavailable(format!("{addr}: {error}"));
        tries.maybe_done |= error == TransportError::Lost;
        tries.avoid.silent(addr);
        Next::Wait {
            at_least: Duration::ZERO,
            why,
        }
    }

    async fn after_error(
        &self,
        tries: &mut Tries,
        route: &ShardRoute,
        addr: Addr,
        error: v1::Error,
        ticket: &mut Option<Ticket>,
        routed_by: &[u8],
    ) -> Next {
        let why = Error::from(error.clone());
        let at_least = Duration::ZERO;
        tracing::debug!(shard = route.shard_id, %addr, kind = ?error.kind, %why, "refused");
        match error.kind {
            Some(Kind::NotLeader(hint)) => {
                tries.maybe_done |= hint.maybe_done;
                if !hint.leader_addr.is_empty() && *hint.leader_addr != *addr {
                    self.routes.leader_is(route.shard_id, &hint.leader_addr);
                    if !tries.avoid.contains(&hint.leader_addr) {
                        return Next::Hop;
                    }
                    // That node was trouble a moment ago. It may be back, but whoever names it may
                    // also be cut off with it: first the others are asked.
                    tries.avoid.refused(addr);
                    return Next::Wait { at_least, why };
                }
                self.routes.leader_is_not(route.shard_id, &addr);
                tries.avoid.refused(addr);
                Next::Wait { at_least, why }
            }
            Some(Kind::EpochNotMatch(news)) => {
                self.routes.learn(&news.current);
                let now = self.routes.lookup(routed_by);
                if now.is_none_or(|now| (now.shard_id, now.epoch) == (route.shard_id, route.epoch)) {
                    self.refresh(tries.deadline).await;
                }
                Next::Hop
            }
            Some(Kind::KeyNotInShard(_)) => {
                self.refresh(tries.deadline).await;
                Next::Hop
            }
            Some(Kind::Busy(busy)) => {
                let at_least = Duration::from_millis(busy.retry_after_ms.into());
                Next::Wait { at_least, why }
            }
            Some(Kind::Unavailable(_)) => {
                self.routes.leader_is_not(route.shard_id, &addr);
                tries.avoid.refused(addr);
                Next::Wait { at_least, why }
            }
            Some(Kind::OutcomeUnknown(_)) => {
                tries.maybe_done = true;
                Next::Wait { at_least, why }
            }
            Some(Kind::TokenExpired(_)) => {
                let Some(expired) = ticket.take() else {
                    return Next::Fail(Error::internal(
                        "a request without a token was refused for its token",
                    ));
                };
                self.writers.of(expired.shard()).forget(expired.memory());
                // Only a write that was never sent before may get a new token.
                if tries.maybe_done {
                    Next::Fail(why)
                } else {
                    Next::Hop
                }
            }
            Some(Kind::Internal(_)) | None => {
                tries.maybe_done = true;
                tries.after_fault(addr, why)
            }
            Some(Kind::Integrity(_)) => tries.after_fault(addr, why),
            Some(
                Kind::InvalidArgument(_)
                | Kind::ConditionFailed(_)
                | Kind::UnknownKeyspace(_)
                | Kind::AlreadyExists(_),
            ) => Next::Fail(why),
        }
    }

    /// A token for a write; opens an incarnation when the shard has none of ours.
    async fn ticket(&self, route: &ShardRoute, ask: &Ask<'_>) -> Result<Ticket> {
        let writer = self.writers.of(route.shard_id);
        let memory = match writer.memory() {
            Some(memory) => memory,
            None => {
                let late = |_| Error::unavailable("no incarnation was opened before the deadline");
                let opening = writer.opening.lock();
                let _opening = tokio::time::timeout_at(ask.deadline, opening)
                    .await
                    .map_err(late)?;
                match writer.memory() {
                    Some(memory) => memory,
                    None => self.open_incarnation(ask).await?,
                }
            }
        };
        let ticket = memory.ticket(ask.deadline).await;
        ticket.ok_or_else(|| Error::unavailable("too many writes of the shard are outstanding"))
    }

    async fn open_incarnation(&self, ask: &Ask<'_>) -> Result<std::sync::Arc<crate::tokens::Memory>> {
        let op = Op::OpenIncarnation(v1::OpenIncarnationRequest {
            keyspace_id: ask.keyspace,
            key: Bytes::copy_from_slice(ask.key),
            route: None,
        });
        // Safe to repeat, so not a write: what is opened and never used is forgotten.
        let answered = self.perform(Ask { op: &op, ..*ask }).await?;
        let Answer::OpenIncarnation(opened) = answered.answer else {
            return Err(unexpected());
        };
        let shard = opened
            .incarnation
            .as_ref()
            .map(|incarnation| incarnation.shard_id);
        let memory = shard.and_then(|shard| self.writers.of(shard).opened(opened));
        memory.ok_or_else(|| Error::internal("a node opened an incarnation without naming it"))
    }
}

impl Tries {
    fn new(deadline: Instant, is_write: bool) -> Self {
        Self {
            deadline,
            is_write,
            backoff: Backoff::new(),
            hops: 0,
            faults: 0,
            avoid: Avoid::default(),
            maybe_done: false,
        }
    }

    fn try_timeout(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        (left / 2).clamp(TRY_TIMEOUT_MIN, TRY_TIMEOUT_MAX).min(left)
    }

    /// After damage or a server's fault: once more, elsewhere.
    fn after_fault(&mut self, addr: Addr, why: Error) -> Next {
        self.avoid.refused(addr);
        self.faults += 1;
        match self.faults {
            1 => Next::Wait {
                at_least: Duration::ZERO,
                why,
            },
            _ => Next::Fail(why),
        }
    }

    /// The error the caller gets: one that says "nothing was written" only if that is known.
    fn conclude(&self, error: Error) -> Error {
        let is_unknown = *error.kind() == ErrorKind::OutcomeUnknown;
        match self.is_write {
            true if self.maybe_done && !is_unknown => {
                Error::outcome_unknown(format!("the write may have happened; at last: {error}"))
            }
            false if is_unknown => Error::unavailable(error.to_string()),
            _ => error,
        }
    }
}

pub(crate) fn unexpected() -> Error {
    Error::internal("a node answered another question than it was asked")
}

fn is_write(op: &Op) -> bool {
    matches!(op, Op::Put(_) | Op::Delete(_) | Op::Add(_) | Op::Batch(_))
}

/// Whether a batch can be atomic as far as the map says.
fn holds_all_keys(range: &KeyRange, ask: &Ask<'_>) -> bool {
    let Op::Batch(batch) = ask.op else { return true };
    let mut keys = batch.operations.iter().map(|operation| &operation.key);
    keys.all(|key| range.contains(&stored_key(ask.keyspace, key)))
}

/// The operation with the route and the token it is sent with this time.
fn prepared(op: &Op, route: &ShardRoute, ticket: Option<&Ticket>) -> Op {
    let mut op = op.clone();
    let (to, token) = (Some(route.to_wire()), ticket.map(Ticket::token));
    match &mut op {
        Op::Get(get) => get.route = to,
        Op::Put(put) => (put.route, put.token) = (to, token),
        Op::Delete(delete) => (delete.route, delete.token) = (to, token),
        Op::Add(add) => (add.route, add.token) = (to, token),
        Op::Batch(batch) => (batch.route, batch.token) = (to, token),
        Op::Scan(scan) => {
            scan.route = to;
            scan.end_key = end_in_shard(scan.keyspace_id, &scan.end_key, &route.range);
        }
        Op::OpenIncarnation(open) => open.route = to,
    }
    op
}

/// Where a scan to `end` (empty: the keyspace's) ends within a shard, so that a page concerns one shard.
pub(crate) fn end_in_shard(keyspace: KeyspaceId, end: &Bytes, range: &KeyRange) -> Bytes {
    match split_stored_key(&range.end) {
        Some((of, shard_end)) if of == keyspace && !shard_end.is_empty() => match end.is_empty() {
            true => Bytes::copy_from_slice(shard_end),
            false => end.clone().min(Bytes::copy_from_slice(shard_end)),
        },
        _ => end.clone(),
    }
}

/// The answer, if it fits the question and every record in it is what its writer wrote.
fn verified(ask: &Ask<'_>, route: &ShardRoute, answer: Option<Answer>) -> Result<Answer> {
    let is_intact =
        |record: &v1::Record| client_crc(ask.keyspace, &record.key, &record.value) == record.client_crc;
    let answer = answer.ok_or_else(unexpected)?;
    let is_sound = match (ask.op, &answer) {
        (Op::Get(get), Answer::Get(got)) => {
            let mut records = got.record.iter();
            records.all(|record| record.key == get.key && is_intact(record))
        }
        (Op::Scan(scan), Answer::Scan(page)) => {
            let end = end_in_shard(ask.keyspace, &scan.end_key, &route.range);
            let is_inside = |record: &v1::Record| {
                record.key >= scan.start_key && (end.is_empty() || record.key < end) && is_intact(record)
            };
            page.records.iter().all(is_inside) && page.records.is_sorted_by(|a, b| a.key < b.key)
        }
        (Op::Put(_) | Op::Delete(_) | Op::Batch(_), Answer::Write(_)) => true,
        (Op::Add(_), Answer::Add(_)) | (Op::OpenIncarnation(_), Answer::OpenIncarnation(_)) => true,
        _ => return Err(unexpected()),
    };
    match is_sound {
        true => Ok(answer),
        false => Err(Error::new(
            ErrorKind::Integrity {
                seen_at: "client".to_owned(),
            },
            "what a node answered does not match the checksum of its writer",
        )),
    }
}
