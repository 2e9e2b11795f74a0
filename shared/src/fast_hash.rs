//! A hash for maps on the hot path.

/// Seeded anew for each map, so that nobody can prepare ids that collide (who could measure single look-ups from outside
/// might find some). A command takes six look-ups; with the
/// standard library's hasher they were a quarter of a writer's CPU time (measured).
pub type FastHash = foldhash::quality::RandomState;

/// A map that uses it.
pub type FastMap<K, V> = std::collections::HashMap<K, V, FastHash>;

/// The same with a seed that the caller keeps, for hashes that outlive the process. The seed is a secret like the other's;
/// neither the algorithm nor the standard library's way to feed it is promised to stay: keep a probe beside the hashes.
pub type SeededHash = foldhash::quality::FixedState;
