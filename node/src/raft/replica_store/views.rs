//! Reads of what a replica has applied, as far as it is proven.

use reelkv_proto::types::KeyRange;
use tokio::sync::oneshot;

use super::{ReplicaStore, State, Trust};
use crate::mutants::Mutant;
use crate::shard::{Control, Spans};
use crate::storage::{Tree, View};

/// What a replica can give to another: a view, and what of it is not proven here.
#[derive(Clone)]
pub struct Donation {
    /// The records.
    pub view: View,
    /// The control state of the same entry.
    pub control: Control,
    /// Keys that are left out.
    pub withheld: Spans,
}

impl State {
    /// Gives views of the entry just applied to those who wait for it. Whoever waits for one that
    /// was passed over gets nothing.
    pub(super) fn give_views(&mut self) {
        if self.awaited.is_empty() {
            return;
        }
        let applied = self.control.applied().map_or(0, |applied| applied.index);
        for (index, waiting) in std::mem::take(&mut self.awaited) {
            match &self.tree {
                _ if index > applied => self.awaited.push((index, waiting)),
                Some(tree) if index == applied && self.proves_all() => {
                    // Whoever does not wait any more needs no view.
                    let _ = waiting.send((tree.view(), self.control.clone()));
                }
                _ => {}
            }
        }
    }
}

impl ReplicaStore {
    /// A view of the newest applied entry and the logged time there, if all of a range is proven
    /// here. What expires is judged by this pair: a later time would hide what was written over.
    pub fn view_of(&self, range: &KeyRange) -> Option<(View, u64)> {
        let state = self.state.lock();
        let tree = state.tree.as_ref()?;
        state
            .proves_range(range)
            .then(|| (tree.view(), state.control.logged_time_ms()))
    }

    /// The same for one key.
    pub fn view_of_key(&self, key: &[u8]) -> Option<(View, u64)> {
        let state = self.state.lock();
        let tree = state.tree.as_ref()?;
        state
            .proves(key)
            .then(|| (tree.view(), state.control.logged_time_ms()))
    }

    /// A view of everything, if all of it is proven here.
    pub fn view(&self) -> Option<View> {
        self.view_of(&KeyRange::default()).map(|(view, _)| view)
    }

    /// A view of everything and the control state of the same entry, if all of it is proven here.
    pub fn view_with_control(&self) -> Option<(View, Control)> {
        let donation = self.donate()?;
        donation
            .withheld
            .is_empty()
            .then_some((donation.view, donation.control))
    }

    /// What this replica can give to another; nothing while it is not known what is wrong with it.
    pub fn donate(&self) -> Option<Donation> {
        let state = self.state.lock();
        let tree = state.tree.as_ref()?;
        (state.trust() != Trust::Suspect).then(|| Donation {
            view: donated_view(tree),
            control: state.control.clone(),
            withheld: state.unproven(),
        })
    }

    /// A view and the control state of exactly the entry `index`, once it is applied; `None` when
    /// the replica is past it, or does not prove all of its records.
    pub async fn view_at(&self, index: u64) -> Option<(View, Control)> {
        let view = {
            let mut state = self.state.lock();
            let (waiting, view) = oneshot::channel();
            // Those who gave up make room.
            state.awaited.retain(|(_, waiting)| !waiting.is_closed());
            state.awaited.push((index, waiting));
            state.give_views();
            view
        };
        view.await.ok()
    }

    /// The tree, for sweeps and figures; it may be damaged.
    pub fn tree(&self) -> Option<Tree> {
        self.state.lock().tree.clone()
    }
}

/// The newest view, or (a mutant) one that is a little older.
fn donated_view(tree: &Tree) -> View {
    let newest = tree.view();
    let is_on = Mutant::DonateOldView.is_on();
    let older = [64, 16, 4, 1].into_iter().filter(|_| is_on);
    let older = older.map(|by| newest.version().saturating_sub(by));
    older
        .filter_map(|version| tree.view_at(version).ok())
        .next()
        .unwrap_or(newest)
}
