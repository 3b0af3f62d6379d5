//! What can go wrong with a tree, by what the caller should do about it.

use std::io;
use std::panic::AssertUnwindSafe;

use super::TreeId;

/// Why a tree could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Stored bytes are not what was written, or cannot be read. Read single keys from a healthy peer;
    /// when opening, set the tree aside.
    #[error("{what}: damaged ({position})")]
    Damaged {
        /// What was looked at.
        what: String,
        /// File, offset or key, and what is wrong with it.
        position: String,
    },
    /// The tree's folder, or all that makes it one, is gone. Set the tree aside.
    #[error("tree {tree} is missing")]
    Missing {
        /// The tree that was asked for.
        tree: TreeId,
    },
    /// The engine cannot prove what it holds after a stop that was not clean. Set the tree aside.
    #[error("tree {tree} was not stopped cleanly and its engine cannot tell what it lost")]
    Unclean {
        /// The tree that was asked for.
        tree: TreeId,
    },
    /// The tree was written by another engine than the one configured. Set the tree aside.
    #[error("tree {tree} was written by engine {found}")]
    OtherEngine {
        /// The tree that was asked for.
        tree: TreeId,
        /// The engine named by its mark.
        found: super::EngineKind,
    },
    /// Nothing can be read of a damaged tree of this engine. Fill a new one from a peer.
    #[error("nothing of tree {tree} can be salvaged")]
    NotSalvageable {
        /// The tree that was asked for.
        tree: TreeId,
    },
    /// The operating system refused. After a failed write or flush nothing on that disk is trusted.
    #[error("{what}: {message}")]
    Io {
        /// What was being done.
        what: String,
        /// The kind of failure.
        kind: io::ErrorKind,
        /// The operating system's words.
        message: String,
    },
    /// The version asked for is older than what the tree still holds whole. Ask for a newer one.
    #[error("version {asked} is below the tree's floor {floor}")]
    BelowFloor {
        /// The version asked for.
        asked: u64,
        /// The oldest version that can be read.
        floor: u64,
    },
    /// The version asked for has not been published here yet. Wait for it.
    #[error("version {asked} is not visible yet, the newest is {visible}")]
    NotVisible {
        /// The version asked for.
        asked: u64,
        /// The newest version that can be read.
        visible: u64,
    },
    /// A tree of this name exists already; names are never used twice.
    #[error("tree {tree} exists already")]
    Exists {
        /// The tree that was to be created.
        tree: TreeId,
    },
    /// Handles or views of the tree are still open. Drop them first.
    #[error("tree {tree} is in use")]
    InUse {
        /// The tree that was asked for.
        tree: TreeId,
    },
    /// The tree was closed, or its device crashed. Nothing more can be done through this handle.
    #[error("the tree is closed")]
    Closed,
    /// Written by a later release. Halt the replica; never skip.
    #[error("{what} is of a kind this release does not know")]
    Unsupported {
        /// What was looked at.
        what: String,
    },
    /// The caller broke a rule of this interface. A fault of the program.
    #[error("invalid use of a tree: {what}")]
    Invalid {
        /// The rule.
        what: String,
    },
}

impl TreeError {
    pub(crate) fn damaged(what: impl Into<String>, position: impl Into<String>) -> Self {
        Self::Damaged {
            what: what.into(),
            position: position.into(),
        }
    }

    pub(crate) fn io(what: impl Into<String>, error: &io::Error) -> Self {
        Self::Io {
            what: what.into(),
            kind: error.kind(),
            message: error.to_string(),
        }
    }

    /// A failure to *read* what should be there is damage, unless the process lacked the means.
    pub(crate) fn unreadable(what: impl Into<String>, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR) => Self::io(what, error),
            _ => Self::damaged(what, error.to_string()),
        }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// Whether a tree that fails to *open* with this must be set aside and filled from peers.
    pub fn sets_tree_aside(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::Missing { .. } | Self::Unclean { .. } | Self::OtherEngine { .. }
        )
    }

    /// Whether nothing on this disk can be trusted any more.
    pub fn poisons_disk(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

/// Runs a call into an engine; a panic of the engine becomes an error.
pub(crate) fn contain<T>(doing: &str, job: impl FnOnce() -> Result<T, TreeError>) -> Result<T, Contained> {
    match std::panic::catch_unwind(AssertUnwindSafe(job)) {
        Ok(result) => result.map_err(Contained::Failed),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(Contained::Panicked(TreeError::damaged(
                format!("the engine panicked while {doing}"),
                message,
            )))
        }
    }
}

/// How a contained call went wrong.
pub(crate) enum Contained {
    /// It returned an error.
    Failed(TreeError),
    /// It panicked: nothing it holds in memory is trusted any more.
    Panicked(TreeError),
}

impl From<Contained> for TreeError {
    fn from(contained: Contained) -> Self {
        match contained {
            Contained::Failed(error) | Contained::Panicked(error) => error,
        }
    }
}
