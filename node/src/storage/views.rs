//! Which versions of a tree can be read.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::TreeError;

/// Versions open for reading.
///
/// Invariants: `floor <= every open view <= visible`; `floor` and `visible` never fall.
/// Whatever an engine drops, it drops at a floor raised here before, under the same lock that
/// opens views, so that no view is ever below what was dropped.
pub(crate) struct Views {
    state: Mutex<State>,
}

struct State {
    visible: u64,
    floor: u64,
    /// Open views by version, counted.
    open: BTreeMap<u64, usize>,
}

impl Views {
    /// A tree just opened holds exactly one state: that at `version`.
    pub(crate) fn new(version: u64) -> Self {
        Self {
            state: Mutex::new(State {
                visible: version,
                floor: version,
                open: BTreeMap::new(),
            }),
        }
    }

    pub(crate) fn visible(&self) -> u64 {
        self.state.lock().visible
    }

    pub(crate) fn floor(&self) -> u64 {
        self.state.lock().floor
    }

    pub(crate) fn publish(&self, version: u64) {
        let mut state = self.state.lock();
        assert!(version >= state.visible, "the visible version never falls");
        state.visible = version;
    }

    /// Opens a view at the visible version, which it returns.
    pub(crate) fn open_newest(&self) -> u64 {
        let mut state = self.state.lock();
        let version = state.visible;
        *state.open.entry(version).or_default() += 1;
        version
    }

    pub(crate) fn open_at(&self, version: u64) -> Result<(), TreeError> {
        let mut state = self.state.lock();
        let (floor, visible) = (state.floor, state.visible);
        if version < floor {
            return Err(TreeError::BelowFloor {
                asked: version,
                floor,
            });
        }
        if version > visible {
            return Err(TreeError::NotVisible {
                asked: version,
                visible,
            });
        }
        *state.open.entry(version).or_default() += 1;
        Ok(())
    }

    pub(crate) fn close(&self, version: u64) {
        let mut state = self.state.lock();
        let count = state.open.get_mut(&version).expect("an open view is counted");
        *count -= 1;
        if *count == 0 {
            state.open.remove(&version);
        }
    }

    pub(crate) fn open_count(&self) -> usize {
        self.state.lock().open.values().sum()
    }

    /// Raises the floor to the oldest version anyone reads, and returns it.
    pub(crate) fn raise_floor(&self) -> u64 {
        let mut state = self.state.lock();
        let oldest = state.open.keys().next().copied().unwrap_or(state.visible);
        assert!(oldest >= state.floor, "no view opens below the floor");
        state.floor = oldest;
        oldest
    }
}
