//! The faults, by family.

use std::fmt;

/// Families of faults; a family's name stands for all of its faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Power cuts.
    Process,
    /// Links between nodes.
    Network,
    /// Wall clocks.
    Clock,
    /// The disk of one node.
    Disk,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Process, Self::Network, Self::Clock, Self::Disk];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Network => "network",
            Self::Clock => "clock",
            Self::Disk => "disk",
        }
    }
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Power lost on one node.
    Crash,
    /// Power lost on the node that leads most shards.
    CrashLeader,
    /// Power lost at one of the next operations of a node's disk, between any two of them.
    CrashAtWrite,
    /// Power lost as a node sends one of its next messages.
    CrashAtSend,
    /// Power lost on all nodes at once.
    CrashAll,
    /// Power lost on one node again and again, before it has caught up.
    CrashLoop,
    /// One node cut off from the others.
    Isolate,
    /// The node that leads most shards cut off from the others.
    IsolateLeader,
    /// Two halves that do not hear each other.
    Halves,
    /// Two halves that only one node hears both of.
    Bridge,
    /// Every node hears only its neighbours; each sees another majority.
    Ring,
    /// One node is heard but does not hear.
    OneWay,
    /// Messages are lost now and then.
    Loss,
    /// Messages take long, each another time, and so overtake one another.
    Delay,
    /// Messages between nodes arrive twice, in any order.
    Duplicate,
    /// Bits of messages flip on the way.
    Corrupt,
    /// One wall clock jumps by up to an hour.
    ClockJump,
    /// One wall clock goes up to a fifth too fast or too slow.
    ClockDrift,
    /// One wall clock jumps to and fro.
    ClockStrobe,
    /// A sync fails once; what it should have written is gone. The node is restarted.
    SyncError,
    /// A sync fails once on every node. All are restarted.
    SyncErrorAll,
    /// Reads fail now and then while the node starts.
    ReadError,
    /// No room is left.
    DiskFull,
    /// Every operation takes up to 100 ms.
    DiskSlow,
    /// Bits of the log flip while the node is off.
    LogDamage,
    /// Bits of entries flip in the log while the node is off.
    PayloadDamage,
    /// Bits of stored records flip, in the running node.
    RecordDamage,
    /// A stored record is gone without a trace, in a running follower; the voters are compared then.
    RecordLoss,
    /// A tree is lost while the node is off.
    TreeLoss,
    /// A tree is lost, and the power again and again while it is being refilled.
    CrashInRepair,
    /// All trees are lost while the node is off, and one of the others sends wrong records for new ones.
    SpoiledView,
    /// Late entries that all nodes but one have are damaged on all of these while they are off; on one of
    /// them, the damage goes away again.
    SharedDamage,
    /// A tree is emptied while the node is off, and opens all the same.
    TreeEmptied,
    /// The node's disk is replaced by an empty one.
    Wipe,
    /// An old copy of the node's disk is put back.
    OldDisk,
    /// Old copies of the node's trees are put back, beside its own log.
    OldTrees,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 36] = [
        Self::Crash,
        Self::CrashLeader,
        Self::CrashAtWrite,
        Self::CrashAtSend,
        Self::CrashAll,
        Self::CrashLoop,
        Self::Isolate,
        Self::IsolateLeader,
        Self::Halves,
        Self::Bridge,
        Self::Ring,
        Self::OneWay,
        Self::Loss,
        Self::Delay,
        Self::Duplicate,
        Self::Corrupt,
        Self::ClockJump,
        Self::ClockDrift,
        Self::ClockStrobe,
        Self::SyncError,
        Self::SyncErrorAll,
        Self::ReadError,
        Self::DiskFull,
        Self::DiskSlow,
        Self::LogDamage,
        Self::PayloadDamage,
        Self::RecordDamage,
        Self::RecordLoss,
        Self::TreeLoss,
        Self::CrashInRepair,
        Self::SpoiledView,
        Self::SharedDamage,
        Self::TreeEmptied,
        Self::Wipe,
        Self::OldDisk,
        Self::OldTrees,
    ];

    /// Its name on the command line, and what it does, in a line.
    fn said(self) -> (&'static str, &'static str) {
        match self {
            Self::Crash => ("crash", "power lost on one node"),
            Self::CrashLeader => ("crash-leader", "power lost on the node that leads most shards"),
            Self::CrashAtWrite => (
                "crash-at-write",
                "power lost between two operations of a node's disk",
            ),
            Self::CrashAtSend => (
                "crash-at-send",
                "power lost as a node sends one of its next messages",
            ),
            Self::CrashAll => ("crash-all", "power lost on all nodes at once"),
            Self::CrashLoop => ("crash-loop", "power lost on one node again and again"),
            Self::Isolate => ("isolate", "one node cut off from the others"),
            Self::IsolateLeader => ("isolate-leader", "the node that leads most shards cut off"),
            Self::Halves => ("halves", "two halves that do not hear each other"),
            Self::Bridge => ("bridge", "two halves that only one node hears both of"),
            Self::Ring => ("ring", "every node hears only its neighbours"),
            Self::OneWay => ("one-way", "one node is heard but does not hear"),
            Self::Loss => ("loss", "messages are lost now and then"),
            Self::Delay => ("delay", "messages take long and overtake one another"),
            Self::Duplicate => ("duplicate", "messages between nodes arrive twice"),
            Self::Corrupt => ("corrupt", "bits of messages between nodes flip on the way"),
            Self::ClockJump => ("clock-jump", "one wall clock jumps by up to an hour"),
            Self::ClockDrift => (
                "clock-drift",
                "one wall clock goes up to a fifth too fast or slow",
            ),
            Self::ClockStrobe => ("clock-strobe", "one wall clock jumps to and fro"),
            Self::SyncError => ("sync-error", "a sync fails and loses what it should have written"),
            Self::SyncErrorAll => ("sync-error-all", "a sync fails on every node"),
            Self::ReadError => (
                "read-error",
                "reads of a node's disk fail now and then while it starts",
            ),
            Self::DiskFull => ("disk-full", "no room is left on a node's disk"),
            Self::DiskSlow => ("disk-slow", "every operation of a node's disk takes up to 100 ms"),
            Self::LogDamage => ("log-damage", "bits of a node's log flip while it is off"),
            Self::PayloadDamage => (
                "payload-damage",
                "bits of entries flip in a node's log while it is off",
            ),
            Self::RecordDamage => ("record-damage", "bits of stored records flip in a running node"),
            Self::RecordLoss => (
                "record-loss",
                "a running follower loses stored records without a trace",
            ),
            Self::TreeLoss => ("tree-loss", "one of a node's trees is lost while it is off"),
            Self::CrashInRepair => (
                "crash-in-repair",
                "a tree is lost, and power while it is refilled",
            ),
            Self::SpoiledView => (
                "spoiled-view",
                "a node's trees are lost, and one peer sends wrong records for new ones",
            ),
            Self::SharedDamage => (
                "shared-damage",
                "entries that one node lacks are bad on all others; one gets well again",
            ),
            Self::TreeEmptied => ("tree-emptied", "one of a node's trees is emptied while it is off"),
            Self::Wipe => ("wipe", "a node's disk is replaced by an empty one"),
            Self::OldDisk => ("old-disk", "an old copy of a node's disk is put back"),
            Self::OldTrees => (
                "old-trees",
                "old copies of a node's trees are put back beside its log",
            ),
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        self.said().0
    }

    /// What it does, in a line.
    pub fn about(self) -> &'static str {
        self.said().1
    }

    /// Its family.
    pub fn family(self) -> Family {
        match self {
            Self::Crash
            | Self::CrashLeader
            | Self::CrashAtWrite
            | Self::CrashAtSend
            | Self::CrashAll
            | Self::CrashLoop => Family::Process,
            Self::Isolate
            | Self::IsolateLeader
            | Self::Halves
            | Self::Bridge
            | Self::Ring
            | Self::OneWay
            | Self::Loss
            | Self::Delay
            | Self::Duplicate
            | Self::Corrupt => Family::Network,
            Self::ClockJump | Self::ClockDrift | Self::ClockStrobe => Family::Clock,
            _ => Family::Disk,
        }
    }

    /// Whether copies of data are destroyed, so that the cluster is whole only after a repair.
    pub fn destroys(self) -> bool {
        matches!(
            self,
            Self::LogDamage
                | Self::PayloadDamage
                | Self::RecordDamage
                | Self::RecordLoss
                | Self::TreeLoss
                | Self::CrashInRepair
                | Self::SpoiledView
                | Self::SharedDamage
                | Self::TreeEmptied
                | Self::Wipe
                | Self::OldDisk
                | Self::OldTrees
                | Self::SyncError
                | Self::SyncErrorAll
        )
    }

    /// Whether a node may come back under another number after it.
    pub fn costs_identity(self) -> bool {
        matches!(
            self,
            Self::LogDamage | Self::Wipe | Self::OldDisk | Self::ReadError | Self::DiskFull
        )
    }

    /// Whether it takes nodes down or works on their disks, so that another such must wait.
    fn needs_the_machines(self) -> bool {
        matches!(self.family(), Family::Process | Family::Disk)
    }

    /// Whether it may begin while others go on.
    pub fn goes_with(self, others: impl IntoIterator<Item = Self>) -> bool {
        let together = |other: Self| match (self.family(), other.family()) {
            (one, another) if one == another => false,
            _ => !(self.needs_the_machines() && other.needs_the_machines()),
        };
        others.into_iter().all(together)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The faults a list of names stands for: `crash,loss`, a family, `all` or `none`.
///
/// # Errors
/// One line naming what is unknown and what there is.
pub fn parse(names: &str) -> Result<Vec<Fault>, String> {
    let mut faults = Vec::new();
    for name in names.split(',').map(str::trim) {
        let of_name: Vec<Fault> = match name {
            "all" => Fault::ALL.to_vec(),
            "none" => continue,
            _ => {
                let means = |fault: &Fault| fault.name() == name || fault.family().name() == name;
                Fault::ALL.into_iter().filter(means).collect()
            }
        };
        if of_name.is_empty() {
            let known = Fault::ALL.map(Fault::name).join(", ");
            return Err(format!(
                "there is no nemesis {name:?}; there are: {known}; the families process, network, clock, disk; all; none"
            ));
        }
        faults.extend(of_name);
    }
    faults.sort();
    faults.dedup();
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_families_all_and_none_are_understood() {
        assert_eq!(parse("loss, crash,crash"), Ok(vec![Fault::Crash, Fault::Loss]));
        assert_eq!(parse("clock").map(|faults| faults.len()), Ok(3));
        assert_eq!(parse("all").map(|faults| faults.len()), Ok(Fault::ALL.len()));
        assert_eq!(parse("none"), Ok(vec![]));
        let error = parse("crash,fire").unwrap_err();
        assert!(
            error.contains("\"fire\"") && error.contains("disk-slow"),
            "{error}"
        );
        assert!(parse("").is_err());
    }

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        let mut names = Fault::ALL.map(Fault::name).to_vec();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Fault::ALL.len());
    }
}
