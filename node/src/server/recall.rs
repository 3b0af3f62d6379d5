//! A node that starts again first asks the others whether its log is the one they know.
//!
//! Until enough of them have answered, none of its replicas runs: nothing votes and nothing
//! acknowledges. Enough are as many as make a majority of a shard's voters with this one; they must
//! have asked and been found whole themselves, unless all answer or nobody else does for a while. A node
//! that belongs to no cluster has nothing to say: it is not waited for, and does not count as an answer.
//!
//! If one of them was shown a later batch than the log has, the log has forgotten (amnesia); if the
//! directory says that the node was replaced, it is of the past. Either way its data is set aside
//! and the node joins again under a new number, as one that lost its disk does; its replicas come
//! back as learners.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{join, join_all};
use reelkv_proto::v1::{self, peer_request, peer_response};
use tokio_util::sync::CancellationToken;

use super::member::Member;
use super::node::Node;
use crate::clock::now;
use crate::mutants::Mutant;
use crate::wal::Recovery;

const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long nodes that do not answer, and may know better than those that do, are waited for.
const GRACE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// Rounds of asking between two lines that say what the node waits for.
const ROUNDS_PER_LINE: u32 = 50;

/// What the other nodes say of this one's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody was shown more than it has.
    Whole,
    /// It has forgotten what it has shown: batches up to this one.
    Forgot { shown: u64 },
    /// The node was replaced by another.
    Replaced,
}

/// Starts a member's replicas if its log is still what the others were shown; else the node
/// leaves its past behind and joins again.
pub(super) async fn recall(
    node: Arc<Node>,
    member: Arc<Member>,
    recovery: Recovery,
    stop: CancellationToken,
) {
    if Mutant::RejoinWithSameId.is_on() {
        return member.start_replicas(recovery, &stop).await;
    }
    let found = recovery.last_whole_batch;
    let verdict = tokio::select! {
        biased;
        verdict = judge(&member, found) => verdict,
        () = stop.cancelled() => return,
    };
    let past = match verdict {
        Verdict::Whole => return member.start_replicas(recovery, &stop).await,
        Verdict::Forgot { shown } => {
            format!("the log ends with batch {found}, other nodes were shown batch {shown}")
        }
        Verdict::Replaced => "another node was taken in at this address in its place".to_owned(),
    };
    // Leaving ends this member's tasks, and this is one of them.
    tokio::spawn(node.leave_past_behind(member, past));
}

async fn judge(member: &Arc<Member>, found: u64) -> Verdict {
    let grace_ends = now() + GRACE;
    for round in 1_u32.. {
        let (others, needed) = member.who_remembers();
        let asked = others.iter().map(|addr| member.ask_memory(addr));
        let heard = join_all(asked).await;
        let knowing_nothing = heard
            .iter()
            .filter(|heard| **heard == Heard::KnowsNothing)
            .count();
        let answers: Vec<_> = heard.into_iter().filter_map(Heard::memory).collect();
        let asked = Asked {
            all: others.len() - knowing_nothing,
            needed,
            late: now() >= grace_ends,
        };
        if let Some(verdict) = verdict(member.node_id(), found, &answers, asked) {
            if verdict == Verdict::Whole {
                member.compare_files(&answers);
            }
            return verdict;
        }
        if round.is_multiple_of(ROUNDS_PER_LINE) {
            tracing::warn!(
                answered = answers.len(),
                needed,
                asked = others.join(","),
                "no replica of this node starts before enough other nodes have answered"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
    unreachable!("there is always another round")
}

/// What came back from one node.
#[derive(Clone, Debug, PartialEq)]
enum Heard {
    /// What it remembers.
    Memory(v1::WatermarksMessage),
    /// It belongs to no cluster: what it may have known is gone.
    KnowsNothing,
    Nothing,
}

impl Heard {
    fn memory(self) -> Option<v1::WatermarksMessage> {
        match self {
            Self::Memory(memory) => Some(memory),
            Self::KnowsNothing | Self::Nothing => None,
        }
    }
}

#[derive(Clone, Copy)]
struct Asked {
    /// How many were asked that may know something.
    all: usize,
    /// How many must answer.
    needed: usize,
    /// Whether the others were waited for long enough.
    late: bool,
}

/// `None` while too few have answered. A node that is itself asking may have been away when this one
/// acknowledged something; its answer counts when there is no better one to be had.
fn verdict(node_id: u64, found: u64, answers: &[v1::WatermarksMessage], asked: Asked) -> Option<Verdict> {
    if answers.iter().any(|answer| answer.retired) {
        return Some(Verdict::Replaced);
    }
    let marks = answers.iter().flat_map(|answer| &answer.watermarks);
    let own = marks.filter(|mark| mark.node_id == node_id);
    let shown = own.map(|mark| mark.wal_batch).max().unwrap_or_default();
    match shown > found {
        true => Some(Verdict::Forgot { shown }),
        false => {
            let started = answers.iter().filter(|answer| answer.started).count();
            let enough = match asked.late || answers.len() == asked.all {
                true => answers.len() >= asked.needed,
                false => started >= asked.needed,
            };
            enough.then_some(Verdict::Whole)
        }
    }
}

impl Member {
    async fn ask_memory(&self, addr: &str) -> Heard {
        let hello = peer_request::Body::Hello(v1::HelloRequest {
            addr: self.options.addr.clone(),
        });
        let memory = self.exchange_watermarks(addr, ASK_TIMEOUT);
        // At the same time: whoever is silent is waited for once.
        match join(memory, self.ask(addr, hello, ASK_TIMEOUT)).await {
            (Some(memory), _) => Heard::Memory(memory),
            (None, Ok(peer_response::Body::Hello(hello))) if hello.cluster_id.is_empty() => {
                Heard::KnowsNothing
            }
            _ => Heard::Nothing,
        }
    }

    /// The nodes to ask, and how many of them must answer: with this one a majority of those that
    /// hold a shard. Every node is told what any of them was shown, so it matters little which.
    fn who_remembers(&self) -> (Vec<String>, usize) {
        let known = self.directory.get();
        let mut others = self.others();
        let of_cluster = match known.replicas {
            0 => self.options.join.len(),
            replicas => replicas as usize,
        };
        if !self.lost_nodes.is_empty() {
            // Nobody waits for nodes that an operator declared lost.
            let there = known.nodes.iter().filter(|node| {
                node.node_id != self.node_id() && !node.retired && !self.lost_nodes.contains(&node.node_id)
            });
            let there: Vec<String> = there.map(|node| node.addr.clone()).collect();
            let needed = (of_cluster / 2).min(there.len());
            return (there, needed);
        }
        if known.nodes.is_empty() {
            others.extend(
                self.options
                    .join
                    .iter()
                    .filter(|addr| **addr != self.options.addr)
                    .cloned(),
            );
        }
        (others, of_cluster / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(own_batch: u64) -> v1::WatermarksMessage {
        let mark = |node_id, wal_batch| v1::Watermark { node_id, wal_batch };
        v1::WatermarksMessage {
            watermarks: vec![mark(1, own_batch), mark(2, 1_000)],
            started: true,
            ..Default::default()
        }
    }

    fn asking(own_batch: u64) -> v1::WatermarksMessage {
        v1::WatermarksMessage {
            started: false,
            ..answer(own_batch)
        }
    }

    fn asked(all: usize, needed: usize) -> Asked {
        Asked {
            all,
            needed,
            late: false,
        }
    }

    #[test]
    fn a_log_is_whole_when_enough_nodes_were_shown_no_more() {
        let whole = Some(Verdict::Whole);
        assert_eq!(verdict(1, 10, &[], asked(2, 1)), None);
        assert_eq!(verdict(1, 10, &[answer(10)], asked(4, 2)), None);
        assert_eq!(verdict(1, 10, &[answer(10), answer(0)], asked(4, 2)), whole);
        let alone = asked(2, 0);
        assert_eq!(verdict(1, 10, &[], alone), whole, "nobody else holds anything");
    }

    #[test]
    fn a_node_that_asks_itself_counts_when_all_have_answered_or_long_enough_was_waited() {
        let whole = Some(Verdict::Whole);
        assert_eq!(verdict(1, 10, &[asking(3)], asked(2, 1)), None);
        assert_eq!(verdict(1, 10, &[asking(3), asking(10)], asked(2, 1)), whole);
        let late = Asked {
            late: true,
            ..asked(2, 1)
        };
        assert_eq!(verdict(1, 10, &[asking(3)], late), whole);
        assert_eq!(verdict(1, 10, &[], late), None);
    }

    #[test]
    fn one_node_that_was_shown_more_is_enough() {
        let forgot = Some(Verdict::Forgot { shown: 11 });
        assert_eq!(verdict(1, 10, &[answer(10), answer(11)], asked(2, 1)), forgot);
        assert_eq!(verdict(1, 10, &[asking(11)], asked(4, 2)), forgot);
    }

    #[test]
    fn a_node_that_was_replaced_is_of_the_past() {
        let retired = v1::WatermarksMessage {
            retired: true,
            ..answer(3)
        };
        assert_eq!(
            verdict(1, 10, &[answer(10), retired], asked(2, 1)),
            Some(Verdict::Replaced)
        );
    }
}
