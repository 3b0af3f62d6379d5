//! What the benches share: settings that keep the whole set short.

use std::time::Duration;

use criterion::Criterion;

/// About two seconds per figure; the command line may ask for longer.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_200))
        .sample_size(20)
        .configure_from_args()
}
