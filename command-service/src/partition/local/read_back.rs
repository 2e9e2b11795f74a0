//! Snapshots that a restore has read and not stored yet, one behind the other in one piece of memory.

/// Bytes that are gathered before they are stored: the fewer times the fewer pages of the store are written again. Eight
/// partitions at most are read at a time.
const LIMIT: usize = if cfg!(test) { 64 << 10 } else { 32 << 20 };

/// Snapshots by aggregate; of several of one the last counts.
#[derive(Debug, Default)]
pub(super) struct ReadBack {
    /// Each id with its state behind it.
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where one begins, and how long its id and its state are.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The first bytes of the id behind what all ids begin with, as a number.
    head: u64,
    at: u32,
    id: u16,
    state: u32,
}

impl ReadBack {
    /// Adds one, whose state is appended to what is given.
    pub(super) fn push(&mut self, id: &str, state: impl FnOnce(&mut Vec<u8>)) {
        if self.bytes.capacity() == 0 {
            // Memory that is not written to is not taken.
            self.bytes.reserve_exact(LIMIT);
        }
        let at = self.bytes.len();
        self.bytes.extend_from_slice(id.as_bytes());
        state(&mut self.bytes);
        let state = self.bytes.len() - at - id.len();
        self.places.push(Place { head: 0, at: at as u32, id: id.len() as u16, state: state as u32 });
    }

    /// Whether it is time to store them. Those that no longer count are thrown away first.
    pub(super) fn is_full(&mut self) -> bool {
        if self.size() < LIMIT {
            return false;
        }
        self.sort();
        let kept: usize = self.places.iter().map(Place::len).sum();
        if kept + size_of_val(&*self.places) > LIMIT / 2 {
            return true;
        }
        let mut bytes = Vec::with_capacity(LIMIT);
        for place in &mut self.places {
            let (from, at) = (place.at as usize, bytes.len());
            bytes.extend_from_slice(&self.bytes[from..from + place.len()]);
            place.at = at as u32;
        }
        self.bytes = bytes;
        false
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Ids and states, in order, each id once.
    pub(super) fn sorted(&mut self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.sort();
        self.places.iter().map(|place| (self.id(place), self.state(place)))
    }

    fn size(&self) -> usize {
        self.bytes.len() + size_of_val(&*self.places)
    }

    fn sort(&mut self) {
        let mut places = std::mem::take(&mut self.places);
        let Some(first) = places.first() else { return };
        // Ids often begin alike (`acc-000…`), and are far apart in memory: most are told apart by a few bytes nearby.
        let alike =
            |common: &[u8], place| common.iter().zip(self.id(place)).take_while(|(one, other)| one == other).count();
        let common = places.iter().fold(self.id(first), |common, place| &common[..alike(common, place)]).len();
        for place in &mut places {
            let mut head = [0; 8];
            let rest = &self.id(place)[common..];
            head.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
            place.head = u64::from_be_bytes(head);
        }
        // The later of two of one id first.
        places.sort_unstable_by(|one, other| {
            one.head.cmp(&other.head).then_with(|| self.id(one).cmp(self.id(other))).then(other.at.cmp(&one.at))
        });
        places.dedup_by(|next, kept| next.head == kept.head && self.id(next) == self.id(kept));
        self.places = places;
    }

    fn id(&self, place: &Place) -> &[u8] {
        &self.bytes[place.at as usize..][..usize::from(place.id)]
    }

    fn state(&self, place: &Place) -> &[u8] {
        &self.bytes[place.at as usize + usize::from(place.id)..][..place.state as usize]
    }
}

impl Place {
    fn len(&self) -> usize {
        usize::from(self.id) + self.state as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(read: &mut ReadBack) -> Vec<(String, Vec<u8>)> {
        let text = |id: &[u8]| String::from_utf8(id.to_vec()).unwrap();
        read.sorted().map(|(id, state)| (text(id), state.to_vec())).collect()
    }

    #[test]
    fn the_last_of_each_aggregate_counts_in_order_of_their_ids() {
        let mut read = ReadBack::default();
        for (id, state) in [("b", "1"), ("a", "2"), ("b", "345"), ("ab", ""), ("b", "6")] {
            read.push(id, |bytes| bytes.extend_from_slice(state.as_bytes()));
        }
        let expected = [("a", "2"), ("ab", ""), ("b", "6")];
        assert_eq!(all(&mut read), expected.map(|(id, state)| (id.to_owned(), state.as_bytes().to_vec())));
        read.push("ab", |bytes| bytes.push(7));
        assert_eq!(all(&mut read)[1], ("ab".to_owned(), vec![7]));
    }

    #[test]
    fn what_no_longer_counts_makes_room() {
        let state = vec![5; 2 << 10];
        let mut read = ReadBack::default();
        let push = |read: &mut ReadBack, id: usize, last: u8| {
            read.push(&id.to_string(), |bytes| {
                bytes.extend_from_slice(&state);
                bytes.push(last);
            });
            read.is_full()
        };
        // Ten aggregates again and again never fill it, forty more do.
        assert!(!(0..200).any(|round| push(&mut read, round % 10, round as u8)));
        let last: Vec<u8> = all(&mut read).iter().map(|(_, state)| *state.last().unwrap()).collect();
        assert_eq!(last, (190..200).collect::<Vec<u8>>());
        assert!((10..50).any(|id| push(&mut read, id, 0)));
        assert!(read.size() < LIMIT + (4 << 10));
    }
}
