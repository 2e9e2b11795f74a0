//! Schema ids of ours, looked up without a lock: all threads that read share one codec, and whatever they would write to
//! there for each record (a lock, a count of references) wanders from core to core.

use std::sync::atomic::{AtomicU64, Ordering};

const PLACES: usize = 64;

/// By the id's last digits: the id, the record type + 1 and the version. An id never means another schema later.
#[derive(Debug)]
pub(super) struct Ours([AtomicU64; PLACES]);

impl Ours {
    pub(super) fn new() -> Self {
        Self([const { AtomicU64::new(0) }; PLACES])
    }

    /// Record type and version, where they are known and have a place.
    pub(super) fn get(&self, id: u32) -> Option<(usize, usize)> {
        let known = self.0[id as usize % PLACES].load(Ordering::Relaxed);
        let index = usize::from((known >> 16) as u16).checked_sub(1)?;
        (known >> 32 == u64::from(id)).then_some((index, usize::from(known as u16)))
    }

    pub(super) fn set(&self, id: u32, index: usize, version: usize) {
        let (Ok(index), Ok(version)) = (u16::try_from(index + 1), u16::try_from(version)) else { return };
        let known = u64::from(id) << 32 | u64::from(index) << 16 | u64::from(version);
        // Of two that share a place the first has it: else each would take it from the other, record by record.
        let _ = self.0[id as usize % PLACES].compare_exchange(0, known, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_first_is_found_under_its_id_alone() {
        let ours = Ours::new();
        assert_eq!((ours.get(0), ours.get(u32::MAX)), (None, None));
        ours.set(0, 0, 0);
        ours.set(7, 3, 2);
        ours.set(u32::MAX, 5, 1);
        assert_eq!((ours.get(0), ours.get(7), ours.get(u32::MAX)), (Some((0, 0)), Some((3, 2)), Some((5, 1))));
        assert_eq!(ours.get(7 + PLACES as u32), None);
        ours.set(7 + PLACES as u32, 1, 0);
        assert_eq!((ours.get(7), ours.get(7 + PLACES as u32)), (Some((3, 2)), None));
        ours.set(9, usize::from(u16::MAX), 0);
        assert_eq!(ours.get(9), None);
    }
}
