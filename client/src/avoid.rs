//! Nodes that were trouble in a call, and so are asked last.
//!
//! A node that refused is asked again once all others have refused as well. One that did not answer
//! costs a whole try each time: it is left alone for longer, since whoever still names it as the leader
//! may not have noticed yet (it may hear its clients, and nobody else).

use std::time::Duration;

use tokio::time::Instant;

use crate::routing::Addr;

/// How long a silent node is left alone while others can be asked: by then another leads its shards.
const SILENCE_HELD: Duration = Duration::from_secs(2);

/// Nodes that were trouble in a call.
#[derive(Default)]
pub(crate) struct Avoid {
    refused: Vec<Addr>,
    silent: Vec<(Addr, Instant)>,
}

impl Avoid {
    /// This node answered, and it was no help.
    pub(crate) fn refused(&mut self, addr: Addr) {
        self.refused.push(addr);
    }

    /// This node did not answer.
    pub(crate) fn silent(&mut self, addr: Addr) {
        self.silent.push((addr, Instant::now()));
    }

    /// Whether others are to be asked first.
    pub(crate) fn contains(&self, addr: &str) -> bool {
        self.refused.iter().any(|refused| **refused == *addr) || self.is_silent(addr)
    }

    /// Another call was answered, by this leader if it is still known: whoever refused may do so no
    /// more, and that one is not silent.
    pub(crate) fn answered(&mut self, leader: Option<&Addr>) {
        self.refused.clear();
        self.silent.retain(|(silent, _)| Some(silent) != leader);
    }

    /// The first of `known` that was no trouble. When all were, those that refused are asked again
    /// before those that are silent. `None` if nobody is known.
    pub(crate) fn first<'a>(&mut self, known: &[&'a Addr]) -> Option<&'a Addr> {
        if known.iter().all(|addr| self.contains(addr)) {
            self.refused.clear();
        }
        if known.iter().all(|addr| self.contains(addr)) {
            self.silent.clear();
        }
        known.iter().find(|addr| !self.contains(addr)).copied()
    }

    fn is_silent(&self, addr: &str) -> bool {
        let mut silent = self.silent.iter();
        silent.any(|(silent, since)| **silent == *addr && since.elapsed() < SILENCE_HELD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs() -> [Addr; 3] {
        ["a", "b", "c"].map(Addr::from)
    }

    #[test]
    fn those_that_refused_are_asked_again_when_nobody_else_is_left() {
        let [a, b, c] = addrs();
        let (known, mut avoid) = ([&a, &b, &c], Avoid::default());
        for expected in [&a, &b, &c, &a] {
            assert_eq!(avoid.first(&known), Some(expected));
            avoid.refused(expected.clone());
        }
        assert_eq!(avoid.first(&[]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_one_is_left_alone_while_others_refuse() {
        let [a, b, c] = addrs();
        let (known, mut avoid) = ([&a, &b, &c], Avoid::default());
        avoid.silent(a.clone());
        for expected in [&b, &c, &b, &c] {
            assert_eq!(avoid.first(&known), Some(expected));
            avoid.refused(expected.clone());
        }
        avoid.answered(Some(&b));
        assert!(avoid.contains("a") && !avoid.contains("b"));
        tokio::time::advance(SILENCE_HELD).await;
        assert!(!avoid.contains("a"));
        assert_eq!(avoid.first(&known), Some(&a));
        for addr in addrs() {
            avoid.silent(addr);
        }
        assert_eq!(avoid.first(&known), Some(&a), "nobody else is left");
        avoid.silent(a.clone());
        avoid.answered(Some(&a));
        assert_eq!(avoid.first(&known), Some(&a), "it answered somebody");
    }
}
