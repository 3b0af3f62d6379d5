//! Turns waiting requests into entries.
//!
//! One proposer per replica; it works while the replica leads, one [`Evaluator`] per term. It
//! takes what is waiting, evaluates it in order, coalesces the effects into one entry, proposes
//! it and goes on without waiting, up to a bound of entries in flight. Answers come in log order:
//!
//! - *done*: everything in the entry is answered;
//! - *not done* (its preconditions failed, because an entry before it was refused): it changed
//!   nothing, its requests are evaluated again;
//! - *refused* by Raft: whether it will ever commit is unknown. Requests with a token are told to
//!   ask again, as a token is executed once; others that their outcome is unknown.
//!
//! After anything but *done*, what is in flight is drained and a new evaluator begins at the
//! applied state.

use std::collections::VecDeque;
use std::sync::Arc;

use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::{ServerState, alias};
use reelkv_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::hint;
use super::proven::ProvenReads;
use super::reads::ReadBarrier;
use super::time::ShardTime;
use crate::clock::SharedClock;
use crate::error;
use crate::limits::{ENTRIES_IN_FLIGHT_MAX, ENTRY_BYTES_TARGET};
use crate::mutants::Mutant;
use crate::raft::{EntryOutcome, Raft, ReplicaStore, TypeConfig};
use crate::shard::{ColdRead, Command, Evaluation, Evaluator, Found, Refusal, Write, WriteKind, WriteResult};

/// Most times that what a write is judged by is read again before its caller has to.
const REREADS_MAX: u32 = 8;

/// A write waiting for its answer.
pub(super) struct Proposal {
    pub write: Write,
    /// What its judged keys held when it entered.
    pub reads: Vec<ColdRead>,
    /// How often these were read again, as they had gone stale.
    pub rereads: u32,
    pub reply: oneshot::Sender<Result<WriteResult, v1::Error>>,
    /// Its share of the queue's bytes, given back when it is answered.
    pub _bytes: OwnedSemaphorePermit,
}

impl Proposal {
    fn answer(self, answer: Result<WriteResult, v1::Error>) {
        // A caller past its deadline is gone.
        let _ = self.reply.send(answer);
    }
}

type Completed = alias::OneshotReceiverOf<TypeConfig, ClientWriteResult<TypeConfig>>;

/// An entry proposed and not yet answered.
struct InFlight {
    command: Command,
    completed: Completed,
    proposed: Vec<(Proposal, WriteResult)>,
    refused: Vec<(Proposal, Refusal)>,
}

pub(super) struct Proposer {
    pub raft: Raft,
    pub store: Arc<ReplicaStore>,
    pub reads: ReadBarrier,
    /// See [`super::ReplicaSettings::refuse_one_in`].
    pub refuse_one_in: u64,
    /// For lots; the time is the shard's.
    pub clock: SharedClock,
    pub time: ShardTime,
    pub proven: ProvenReads,
    pub queue: mpsc::UnboundedReceiver<Proposal>,
    /// Sends proposals whose reads had gone stale back to the queue.
    pub requeue: mpsc::UnboundedSender<Proposal>,
    pub stop: CancellationToken,
}

impl Proposer {
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.terms() => {}
        }
        self.queue.close();
        while let Ok(proposal) = self.queue.try_recv() {
            proposal.answer(Err(error::unavailable("the replica is stopping")));
        }
    }

    async fn terms(&mut self) {
        loop {
            let Some(first) = self.queue.recv().await else {
                return;
            };
            match self.begin_term().await {
                Ok(term) => self.lead(term, first).await,
                Err(refusal) => first.answer(Err(refusal)),
            }
        }
    }

    fn refuses(&self) -> bool {
        self.refuse_one_in > 0 && self.clock.random_u64().is_multiple_of(self.refuse_one_in)
    }

    /// The term this replica leads, once everything of earlier terms is applied.
    async fn begin_term(&self) -> Result<u64, v1::Error> {
        let shard_id = self.store.id().shard_id;
        let term = led_term(&self.raft).ok_or_else(|| hint::not_leader(&self.raft, shard_id))?;
        self.reads.pass().await?;
        match led_term(&self.raft) {
            Some(still) if still == term => Ok(term),
            _ => Err(hint::not_leader(&self.raft, shard_id)),
        }
    }

    /// Serves one term, from a request until nothing waits or leadership is gone.
    async fn lead(&mut self, term: u64, first: Proposal) {
        let mut session = Session::new(&self.store, term, first);
        loop {
            session.fill(self).await;
            if session.in_flight.is_empty() && session.waiting.is_empty() && session.parked.is_empty() {
                match self.queue.recv().await {
                    Some(next) if led_term(&self.raft) == Some(term) => session.waiting.push_back(next),
                    Some(next) => {
                        next.answer(Err(hint::not_leader(&self.raft, self.store.id().shard_id)));
                        return;
                    }
                    None => return,
                }
                continue;
            }
            let room = session.in_flight.len() < ENTRIES_IN_FLIGHT_MAX && !session.draining;
            match session.in_flight.front_mut() {
                Some(oldest) => tokio::select! {
                    biased;
                    completed = &mut oldest.completed => session.complete(self, completed.ok()),
                    next = self.queue.recv(), if room => session.waiting.extend(next),
                },
                None if session.draining => match led_term(&self.raft) {
                    Some(still) if still == term => session.restart(&self.store),
                    _ => return session.give_up(&hint::not_leader(&self.raft, self.store.id().shard_id)),
                },
                None => session.waiting.extend(std::mem::take(&mut session.parked)),
            }
        }
    }
}

/// The term this replica believes to lead.
fn led_term(raft: &Raft) -> Option<u64> {
    let metrics = crate::raft::metrics(raft);
    (metrics.state == ServerState::Leader).then_some(metrics.current_term)
}

struct Session {
    term: u64,
    evaluator: Evaluator,
    waiting: VecDeque<Proposal>,
    /// Same token as one in flight: evaluated again once that is answered.
    parked: VecDeque<Proposal>,
    in_flight: VecDeque<InFlight>,
    /// An entry was not performed: propose nothing until everything in flight is answered.
    draining: bool,
}

impl Session {
    fn new(store: &ReplicaStore, term: u64, first: Proposal) -> Self {
        Self {
            term,
            evaluator: store.with_control(|control| Evaluator::new(control, term)),
            waiting: VecDeque::from([first]),
            parked: VecDeque::new(),
            in_flight: VecDeque::new(),
            draining: false,
        }
    }

    /// Begins again at the applied state; nothing is in flight.
    fn restart(&mut self, store: &ReplicaStore) {
        debug_assert!(self.in_flight.is_empty());
        self.evaluator = store.with_control(|control| Evaluator::new(control, self.term));
        self.draining = false;
        self.waiting.extend(std::mem::take(&mut self.parked));
    }

    fn give_up(&mut self, refusal: &v1::Error) {
        for proposal in self.waiting.drain(..) {
            proposal.answer(Err(refusal.clone()));
        }
        for proposal in self.parked.drain(..) {
            proposal.answer(Err(error::maybe_done(refusal.clone())));
        }
    }

    /// Evaluates what waits and proposes it, as far as there is room.
    async fn fill(&mut self, proposer: &mut Proposer) {
        while !self.draining && self.in_flight.len() < ENTRIES_IN_FLIGHT_MAX {
            while let Ok(next) = proposer.queue.try_recv() {
                self.waiting.push_back(next);
            }
            if self.waiting.is_empty() {
                return;
            }
            self.evaluator.tell_time(proposer.time.now_ms());
            let (proposed, refused) = self.evaluate(proposer);
            match self.evaluator.take_entry() {
                Some(command) => self.propose(proposer, command, proposed, refused).await,
                None => {
                    debug_assert!(proposed.is_empty());
                    self.refuse(proposer, refused);
                }
            }
        }
    }

    /// Fills one entry from what waits.
    #[allow(clippy::type_complexity)]
    fn evaluate(&mut self, proposer: &Proposer) -> (Vec<(Proposal, WriteResult)>, Vec<(Proposal, Refusal)>) {
        let (mut proposed, mut refused) = (Vec::new(), Vec::new());
        let store = proposer.store.clone();
        store.with_control(|applied| {
            while self.evaluator.entry_bytes() < ENTRY_BYTES_TARGET {
                let Some(proposal) = self.waiting.pop_front() else {
                    break;
                };
                match self.evaluator.evaluate(&proposal.write, &proposal.reads, applied) {
                    Evaluation::Proposed(result) => proposed.push((proposal, result)),
                    Evaluation::Duplicate(result) => proposal.answer(Ok(result)),
                    Evaluation::InFlight => self.parked.push_back(proposal),
                    Evaluation::Refused(refusal) => refused.push((proposal, refusal)),
                    Evaluation::Stale => read_again(proposer, proposal),
                    Evaluation::SealFirst => {
                        self.waiting.push_front(proposal);
                        break;
                    }
                }
            }
        });
        (proposed, refused)
    }

    async fn propose(
        &mut self,
        proposer: &Proposer,
        command: Command,
        mut proposed: Vec<(Proposal, WriteResult)>,
        refused: Vec<(Proposal, Refusal)>,
    ) {
        let (responder, completed) = ProgressResponder::complete_only();
        if proposer.refuses() {
            drop(responder);
        } else {
            let write = proposer
                .raft
                .write(command.clone())
                .with_leader(self.term)
                .responder(responder);
            if let Err(fatal) = write.await {
                tracing::warn!(shard_id = proposer.store.id().shard_id, %fatal, "the shard's Raft has stopped");
                self.draining = true;
            }
        }
        if Mutant::AckBeforeQuorum.is_on() {
            for (proposal, result) in proposed.drain(..) {
                proposal.answer(Ok(result));
            }
        }
        self.in_flight.push_back(InFlight {
            command,
            completed,
            proposed,
            refused,
        });
    }

    /// A refusal is a read: it is answered once what it was judged on is applied and leadership
    /// is confirmed.
    fn refuse(&mut self, proposer: &Proposer, refused: Vec<(Proposal, Refusal)>) {
        if refused.is_empty() {
            return;
        }
        match self.in_flight.back_mut() {
            Some(newest) => newest.refused.extend(refused),
            None => confirm(proposer, refused),
        }
    }

    /// The oldest entry in flight was answered.
    fn complete(&mut self, proposer: &Proposer, completed: Option<ClientWriteResult<TypeConfig>>) {
        let Some(entry) = self.in_flight.pop_front() else {
            return;
        };
        let shard_id = proposer.store.id().shard_id;
        match completed {
            Some(Ok(response)) if response.data == EntryOutcome::Done => {
                self.evaluator.applied(entry.command.body());
                for (proposal, result) in entry.proposed {
                    proposal.answer(Ok(result));
                }
                confirm(proposer, entry.refused);
                self.waiting.extend(std::mem::take(&mut self.parked));
            }
            Some(Ok(_)) => {
                self.draining = true;
                let proposed = entry.proposed.into_iter().map(|(proposal, _)| proposal);
                let refused = entry.refused.into_iter().map(|(proposal, _)| proposal);
                self.waiting.extend(proposed.chain(refused));
            }
            failed => {
                self.draining = true;
                let not_leader = match &failed {
                    Some(Err(openraft::errors::ClientWriteError::ForwardToLeader(to))) => {
                        hint::forward(shard_id, to)
                    }
                    _ => hint::not_leader(&proposer.raft, shard_id),
                };
                for (proposal, _) in entry.proposed {
                    let answer = match proposal.write.token {
                        Some(_) => error::maybe_done(not_leader.clone()),
                        None => error::outcome_unknown("leadership of the shard was lost"),
                    };
                    proposal.answer(Err(answer));
                }
                for (proposal, _) in entry.refused {
                    proposal.answer(Err(not_leader.clone()));
                }
            }
        }
    }
}

/// Answers refusals after a ReadIndex round.
fn confirm(proposer: &Proposer, refused: Vec<(Proposal, Refusal)>) {
    if refused.is_empty() {
        return;
    }
    let (reads, shard_id) = (proposer.reads.clone(), proposer.store.id().shard_id);
    tokio::spawn(async move {
        let confirmed = reads.pass().await;
        for (proposal, refusal) in refused {
            let answer = confirmed
                .clone()
                .and_then(|()| Err(refusal_error(shard_id, refusal)));
            proposal.answer(answer);
        }
    });
}

fn refusal_error(shard_id: u64, refusal: Refusal) -> v1::Error {
    match refusal {
        Refusal::ConditionFailed { current } => error::condition_failed(current),
        Refusal::KeyNotInShard { key } => error::key_not_in_shard(shard_id, key),
        Refusal::TokenExpired { sequence } => error::token_expired(sequence),
        Refusal::NotAnInteger => error::invalid("key", "add: the stored value is not an 8-byte integer"),
        Refusal::Overflow => error::invalid("delta", "add: the sum does not fit 64 bits"),
        Refusal::TimeUnknown => error::busy(
            200,
            "too few of the shard's clocks are known to say when it expires",
        ),
        Refusal::NotEmpty => error::invalid("range", "the range to give away holds records"),
    }
}

/// Reads a proposal's judged keys again and puts it back into the queue.
fn read_again(proposer: &Proposer, mut proposal: Proposal) {
    if matches!(proposal.write.kind, WriteKind::NarrowTo { .. }) {
        return proposal.answer(Err(error::busy(20, "the range changed while it was looked at")));
    }
    proposal.rereads += 1;
    if proposal.rereads > REREADS_MAX {
        let message = "what the write depends on changed each time it was looked at";
        return proposal.answer(Err(error::busy(20, message)));
    }
    let (proven, requeue) = (proposer.proven.clone(), proposer.requeue.clone());
    tokio::spawn(async move {
        match cold_reads(&proven, &proposal.write).await {
            Ok(reads) => {
                proposal.reads = reads;
                if let Err(refused) = requeue.send(proposal) {
                    refused
                        .0
                        .answer(Err(error::unavailable("the replica is stopping")));
                }
            }
            Err(refusal) => proposal.answer(Err(refusal)),
        }
    });
}

/// What a write's judged keys hold now.
///
/// # Errors
/// `Unavailable` when neither this replica nor a peer can tell.
pub(super) async fn cold_reads(proven: &ProvenReads, write: &Write) -> Result<Vec<ColdRead>, v1::Error> {
    let mut reads = Vec::new();
    for key in write.judged_keys() {
        let read = proven.get(key).await?;
        let found = read.record.and_then(|record| {
            record.value.map(|value| Found {
                version: record.version,
                value,
                expires_at_ms: record.expires_at_ms,
            })
        });
        reads.push(ColdRead {
            key: key.clone(),
            read_at: read.version,
            found,
        });
    }
    Ok(reads)
}
