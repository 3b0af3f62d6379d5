//! Bugs on purpose, so that the fault suites can prove that they catch bugs.
//!
//! A *mutant* is one small bug at the place where a rule of the design is kept. Mutants are compiled
//! in by the feature `mutants` only, which refuses a release build, and at most one is on in a process:
//! the one that the environment variable `REELKV_MUTANT` names. A suite that stays green
//! under a mutant does not test the rule that the mutant breaks.
//!
//! Every mutant leaves the store running in fair weather. Without the feature [`Mutant::is_on`] is
//! a constant, and nothing of this is left in the program.

use std::fmt;
use std::str::FromStr;

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("a release must not hold mutants: build the feature `mutants` with --profile mutants");

/// The environment variable that names the mutant.
pub const VARIABLE: &str = "REELKV_MUTANT";

macro_rules! mutants {
    ($($(#[$doc:meta])+ $mutant:ident = $name:literal,)+) => {
        /// A bug on purpose: what it does, and the rule that it breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$doc])+ $mutant,)+
        }

        impl Mutant {
            /// All mutants.
            pub const ALL: &'static [Self] = &[$(Self::$mutant,)+];

            /// The name that `REELKV_MUTANT` takes.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$mutant => $name,)+
                }
            }
        }
    };
}

mutants! {
    /// The log's writer reports a batch durable that it never synced. Rule: nothing is
    /// acknowledged before it is durable on a majority.
    SkipFsync = "skip_fsync",
    /// The proposer answers a write as soon as it is proposed. Rule: nothing is acknowledged before
    /// commit *and* apply on the leader.
    AckBeforeQuorum = "ack_before_quorum",
    /// A replica that believes to lead answers reads without asking its quorum. Rule: reads are
    /// linearizable; a leader's belief is a hint, never a guard.
    StaleReadOnOldLeader = "stale_read_on_old_leader",
    /// A vote is kept in memory only. Rule: `save_vote` returns when the vote is durable.
    VoteNotPersisted = "vote_not_persisted",
    /// The first bad record of the log is taken for its end, wherever it is. Rule: before the highest
    /// synced mark anything bad is damage, never a tail to cut.
    TruncateOnBadCrc = "truncate_on_bad_crc",
    /// The evaluator does not look a token up: a write sent again is executed again. Rule: a token
    /// is executed once.
    RetryWithoutToken = "retry_without_token",
    /// A follower leaves one record in 97 out of its tree, always the same ones. Rule: the same log gives
    /// every replica the same records.
    ApplySkipsEffect = "apply_skips_effect",
    /// An entry is performed although a proposal before it was refused: its first version, its range
    /// version and its leader are not compared with the control state. Rule: what was evaluated
    /// on effects that never happened is a no-op, evaluated again. (A gap in the versions is jumped over;
    /// they never go back, as the tree would halt the replica.)
    NoVersionCheck = "no_version_check",
    /// Conditions of writes are not judged. Rule: a conditional write happens only if its condition holds.
    NoConditionCheck = "no_condition_check",
    /// openraft may resume leadership of a term after a restart. Rule: `enable_leader_restore` is off, or
    /// a leader that lost its unsynced tail gives the same log ids to other entries.
    LeaderRestoreOn = "leader_restore_on",
    /// A delete is never written to a checkpoint, while the put before it is there; in `lsm` trees, a
    /// compaction drops it before what it hides. Rule: a deleted key does not come back.
    TombstoneDroppedEarly = "tombstone_dropped_early",
    /// Names of files are not synced. Rule: every create and rename is followed by a sync of the directory.
    NoDirFsync = "no_dir_fsync",
    /// A shard's time is what its leader's own clock shows. Rule: what expires is judged by most clocks, so
    /// one that jumps destroys nothing.
    TimeOfOneClock = "time_of_one_clock",
    /// A stored record is believed: neither its CRC nor its key or version is compared. Rule: every
    /// record is verified at every read.
    SkipCrcOnRead = "skip_crc_on_read",
    /// A record that cannot be believed is answered as absent. Rule: `Value | Absent | Unproven`, never
    /// Absent from damaged data.
    AbsentForUnproven = "absent_for_unproven",
    /// A node that starts again does not ask the others what its log has shown them. Rule: a log that
    /// has forgotten votes and acknowledges nothing under its old ids.
    RejoinWithSameId = "rejoin_with_same_id",
    /// A checkpoint of the memory engine makes its control row durable at once and its records with the
    /// next one. Rule: after a power cut the tree is exactly at its last checkpoint.
    CheckpointNotAtomic = "checkpoint_not_atomic",
    /// The log is purged to what is applied, without waiting for a checkpoint. Rule: the log may be
    /// purged only to the checkpoint that it has on record.
    PurgeBeforeCheckpoint = "purge_before_checkpoint",
    /// A replica that holds something else than most voters goes on as if it did not. Rule: what a majority
    /// holds is right, and whoever differs repairs it.
    IgnoreDigestMismatch = "ignore_digest_mismatch",
    /// Once a damaged tree was read whole, it is taken for whole. Rule: what was found to be wrong stays
    /// unproven until it was repaired from a peer.
    BlessByRescan = "bless_by_rescan",
    /// A payload that is damaged is said not to be there, and is cut once all say so. Rule: what is damaged may
    /// have been acknowledged; only what no voter ever had is cut.
    CountDamagedAsDontHave = "count_damaged_as_dont_have",
    /// What is sent to repair another replica's tree is a little older than the control state that goes with
    /// it. Rule: a view says all that its control state stands for.
    DonateOldView = "donate_old_view",
    /// A repaired tree takes the place of the old one without the entries applied since its view. Rule: a
    /// tree is put in place when it stands where the replica stands.
    RepairBeforeApplied = "repair_before_applied",
    /// What arrives of another replica's view is taken as it is: neither the records' checksums nor their count
    /// and digest are compared. Rule: every record is verified before a tree is put in place.
    InstallUnverifiedChunk = "install_unverified_chunk",
    /// What a write's keys held when it entered is used although the proposer can no longer tell whether
    /// it is current. Rule: such a read is made again.
    PrefetchAcrossCheckpoint = "prefetch_across_checkpoint",
    /// At boot a tree is opened without comparing it with what the log has on record of it, and the log
    /// is applied from that record on: an older tree, or an emptied one, goes on as if it were whole.
    /// Rule: a tree older than its record is damaged.
    TrustEngineIndex = "trust_engine_index",
    /// That a tree has to be refilled is not recorded, and the new one is on record before it is filled: after
    /// a restart the half-filled tree counts as good. (Leaving out the first record alone does no
    /// harm: the tree on record is then the lost one, which is found lost again.) Rule: trust is in
    /// the log before it is used.
    UnprovenNotPersisted = "unproven_not_persisted",
    /// After a failed sync the log's writer tries again and goes on. Rule: a failed sync poisons the
    /// disk; it is never tried again, as the system has dropped what it could not write.
    RetryFailedFsync = "retry_failed_fsync",
}

/// Names no mutant of this build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct UnknownMutant(String);

impl fmt::Display for UnknownMutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VARIABLE}={}: ", self.0)?;
        if !cfg!(feature = "mutants") {
            return f.write_str("this program was built without the feature `mutants`");
        }
        let names: Vec<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        write!(f, "no such mutant; there are {}", names.join(", "))
    }
}

impl FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(name: &str) -> Result<Self, UnknownMutant> {
        let found = Self::ALL.iter().find(|mutant| mutant.name() == name);
        found.copied().ok_or_else(|| UnknownMutant(name.to_owned()))
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Mutant {
    /// The mutant of this process, read from the environment once. For a command line or a suite to ask
    /// before anything else: a name that is not known would prove nothing.
    ///
    /// # Errors
    /// The variable names no mutant, or the program was built without them.
    pub fn chosen() -> Result<Option<Self>, UnknownMutant> {
        #[cfg(feature = "mutants")]
        {
            static CHOSEN: std::sync::OnceLock<Result<Option<Mutant>, UnknownMutant>> =
                std::sync::OnceLock::new();
            CHOSEN.get_or_init(Self::of_environment).clone()
        }
        #[cfg(not(feature = "mutants"))]
        match Self::of_environment()? {
            Some(mutant) => Err(UnknownMutant(mutant.name().to_owned())),
            None => Ok(None),
        }
    }

    fn of_environment() -> Result<Option<Self>, UnknownMutant> {
        match std::env::var_os(VARIABLE) {
            Some(name) if !name.is_empty() => name.to_string_lossy().parse().map(Some),
            _ => Ok(None),
        }
    }

    /// Whether this process has the bug.
    #[cfg(feature = "mutants")]
    pub(crate) fn is_on(self) -> bool {
        static ON: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
        let chosen = || match Self::chosen() {
            Ok(chosen) => chosen,
            // Running on without a bug would prove nothing.
            Err(unknown) => panic!("{unknown}"),
        };
        *ON.get_or_init(chosen) == Some(self)
    }

    /// Whether this process has the bug: never, in a build without mutants.
    #[cfg(not(feature = "mutants"))]
    pub(crate) const fn is_on(self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_its_own_and_names_its_mutant() {
        for mutant in Mutant::ALL {
            assert_eq!(mutant.name().parse(), Ok(*mutant), "{mutant:?}");
        }
        let unknown = "skip_everything".parse::<Mutant>();
        let message = unknown.map_err(|unknown| unknown.to_string()).unwrap_err();
        assert!(
            message.starts_with("REELKV_MUTANT=skip_everything: "),
            "{message}"
        );
        if cfg!(feature = "mutants") {
            for mutant in Mutant::ALL {
                assert!(message.contains(mutant.name()), "{mutant} is not in {message:?}");
            }
        }
    }

    #[test]
    fn only_the_chosen_one_is_on_and_none_without_the_feature() {
        let chosen = if cfg!(feature = "mutants") {
            Mutant::of_environment().unwrap()
        } else {
            None
        };
        for mutant in Mutant::ALL {
            assert_eq!(mutant.is_on(), Some(*mutant) == chosen, "{mutant}");
        }
    }
}
