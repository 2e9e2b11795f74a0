//! Open-loop load: arrivals of a Poisson process. A latency counts from the moment when something was meant to be
//! sent, so that a stall is felt by everybody who would have come meanwhile, not by one.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::random::Random;

/// What happens in the first moments is not counted: connections are made, threads wake up.
pub const LEAD_IN: Duration = Duration::from_secs(1);

/// When each arrival is due, from the beginning.
pub fn schedule(per_second: f64, counted: Duration, seed: u64) -> Vec<Duration> {
    let mut random = Random::new(seed);
    let mut at = 0.0;
    let arrival = || {
        at += random.wait(per_second);
        Some(Duration::from_secs_f64(at))
    };
    std::iter::from_fn(arrival).take_while(|at| *at < LEAD_IN + counted).collect()
}

/// Calls for each arrival when it is due.
pub fn run(begin: Instant, schedule: &[Duration], mut each: impl FnMut(usize)) {
    for (number, due) in schedule.iter().enumerate() {
        thread::sleep((begin + *due).saturating_duration_since(Instant::now()));
        each(number);
    }
}

/// A quantile of latencies in milliseconds, e.g. 0.99.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)), (50.0, 99.0, 100.0));
    }

    #[test]
    fn arrivals_come_at_their_rate_and_in_order() {
        let due = schedule(500.0, Duration::from_secs(19), 7);
        assert!(due.is_sorted());
        assert!((9_500..10_500).contains(&due.len()), "{}", due.len());
    }
}
