//! A hash for maps on the hot path.

/// Seeded anew for each map, so that nobody can prepare ids that collide (who could measure single look-ups from outside
/// might find some). A command takes six look-ups; with the
/// standard library's hasher they were a quarter of a writer's CPU time (measured).
pub type FastHash = foldhash::quality::RandomState;

/// A map that uses it.
pub type FastMap<K, V> = std::collections::HashMap<K, V, FastHash>;
