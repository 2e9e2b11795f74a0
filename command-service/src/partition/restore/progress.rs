//! How far a restore is.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(2);

/// Says how far a restore is.
pub(super) struct Progress {
    /// Records that are to be read, at most.
    pub total: i64,
    /// Records that were read.
    pub records: u64,
    said: Instant,
    started: Instant,
    /// What the metric has of it.
    told: f64,
}

impl Progress {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { total: 0, records: 0, said: now, started: now, told: 0.0 }
    }

    /// To be called now and then.
    pub fn report(&mut self) {
        if self.said.elapsed() > INTERVAL {
            self.said = Instant::now();
            let rate = self.records as f64 / self.started.elapsed().as_secs_f64();
            let left = (self.total as f64 - self.records as f64).max(0.0);
            let remaining = left / rate.max(1.0);
            self.tell(left);
            tracing::info!(
                records = self.records,
                of_at_most = self.total,
                per_second = rate.round(),
                remaining_seconds = remaining.round(),
                "restoring"
            );
        }
    }

    /// Several restores share the metric.
    fn tell(&mut self, left: f64) {
        metrics::gauge!("millrace_restore_records_left").increment(left - self.told);
        self.told = left;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.tell(0.0);
    }
}
