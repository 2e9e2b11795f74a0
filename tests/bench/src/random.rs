//! Seeded randomness: the same load in every run.

/// `SplitMix64` (Steele, Lea, Flood 2014): a counter and a mixing function.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        // 53 bits, as many as a double holds.
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 to below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.unit() * limit as f64) as usize
    }

    /// A wait between two arrivals of a Poisson process, in seconds.
    pub fn wait(&mut self, per_second: f64) -> f64 {
        -(1.0 - self.unit()).ln() / per_second
    }
}

/// Zipf's law: rank `k` of `n` has probability proportional to `k^-s`. Exact, by the table of sums.
#[derive(Clone, Debug)]
pub struct Zipf(Vec<f64>);

impl Zipf {
    /// For ranks 0 to `n` - 1.
    pub fn new(n: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let add = |rank: usize| {
            sum += (rank as f64).powf(-s);
            sum
        };
        Self((1..=n).map(add).collect())
    }

    /// A rank, from 0.
    pub fn rank(&self, random: &mut Random) -> usize {
        let all = self.0.last().copied().unwrap_or_default();
        let at = random.unit() * all;
        self.0.partition_point(|sum| *sum <= at).min(self.0.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_agrees_with_its_reference() {
        // First outputs of the reference implementation in C for the seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!(random.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(random.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn zipf_has_the_frequencies_of_its_law() {
        let (n, draws) = (100_000, 1_000_000);
        let (zipf, mut random) = (Zipf::new(n, 1.0), Random::new(1));
        let mut counts = vec![0u32; n];
        for _ in 0..draws {
            counts[zipf.rank(&mut random)] += 1;
        }
        let harmonic: f64 = (1..=n).map(|k| 1.0 / k as f64).sum();
        for rank in [0, 1, 2, 9, 99] {
            let expected = f64::from(draws) / (rank + 1) as f64 / harmonic;
            let off = (f64::from(counts[rank]) - expected).abs();
            // Five standard deviations.
            assert!(off < 5.0 * expected.sqrt(), "rank {rank}: {} where {expected} are expected", counts[rank]);
        }
        let rare: u32 = counts[n / 2..].iter().sum();
        assert!(rare > 0, "the tail is reached");
    }

    #[test]
    fn waits_have_the_mean_of_their_rate() {
        let mut random = Random::new(1);
        let sum: f64 = (0..100_000).map(|_| random.wait(500.0)).sum();
        assert!((sum / 200.0 - 1.0).abs() < 0.02, "{sum}");
    }
}
