//! Where replicas and leaders should be: pure functions from what is known of the cluster.

mod leaders;
mod replace;
mod spread;

pub use leaders::{LeaderMove, balance_leaders};
pub use replace::{Missing, Replacement, Sightings, forgotten};
pub use spread::{replicas_per_node, spread, spread_least_loaded};
