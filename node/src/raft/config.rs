//! openraft's settings, and why its defaults are not ours.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use super::Quorum;
use crate::mutants::Mutant;

/// Raft's timers, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftTimes {
    /// How often a leader shows that it lives.
    pub heartbeat_interval_ms: u64,
    /// Shortest wait before a replica campaigns, once the leader's lease is over.
    pub election_timeout_min_ms: u64,
    /// Longest such wait; also the lease. So another leader is elected between the sum of both and
    /// twice this one after the last sign of life.
    pub election_timeout_max_ms: u64,
}

impl Default for RaftTimes {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 200,
            election_timeout_min_ms: 550,
            election_timeout_max_ms: 990,
        }
    }
}

impl RaftTimes {
    /// How long a leader without a quorum keeps quiet at a time: others are elected meanwhile.
    fn quorum_loss_probe_interval_ms(&self) -> u64 {
        self.election_timeout_max_ms * 2 + self.heartbeat_interval_ms
    }

    /// What tells a leader to keep quiet.
    pub fn quorum(&self) -> Quorum {
        let ms = Duration::from_millis;
        Quorum::new(
            ms(self.election_timeout_max_ms),
            ms(self.quorum_loss_probe_interval_ms()),
        )
    }
}

/// Settings of one shard's Raft.
///
/// # Errors
/// Times that contradict each other, in one line.
pub fn config(times: RaftTimes) -> Result<Arc<Config>, String> {
    const MONTH_MS: u64 = 30 * 24 * 3_600 * 1_000;
    let config = Config {
        cluster_name: "reelkv".to_owned(),
        heartbeat_interval: times.heartbeat_interval_ms,
        election_timeout_min: times.election_timeout_min_ms,
        election_timeout_max: times.election_timeout_max_ms,
        // A leader restarted within its lease would resume its term; if a power cut took its
        // unsynced tail, it would give the same log ids to other entries.
        enable_leader_restore: Some(Mutant::LeaderRestoreOn.is_on()),
        enable_pre_vote: Some(true),
        // Without it a leader cut off from its quorum keeps a bridge voter's lease alive for ever.
        quorum_loss_probe_interval: Some(times.quorum_loss_probe_interval_ms()),
        allow_log_reversion: None,
        // Checkpoints, purges and transfers are scheduled by the replica.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX / 2,
        install_snapshot_timeout: MONTH_MS,
        max_payload_entries: 300,
        state_machine_channel_size: Some(16 << 10),
        api_channel_size: Some(4_096),
        notification_channel_size: Some(4_096),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| error.to_string())
}
