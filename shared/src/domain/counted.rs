//! What events did to the counters of a projection.

/// Names of counters, each with what it is moved by, in the order in which they were told.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// The names, one behind the other: there are several for each event, and none of them is to cost an allocation.
    names: String,
    /// Where each name ends, and by how much that counter moves.
    moves: Vec<(usize, i128)>,
}

impl Counted {
    /// Moves the counter whose name is these parts with `/` between them.
    pub fn add(&mut self, name: &[&str], by: i128) {
        for (nth, part) in name.iter().enumerate() {
            if nth > 0 {
                self.names.push('/');
            }
            self.names.push_str(part);
        }
        self.moves.push((self.names.len(), by));
    }

    /// All of them.
    pub fn moves(&self) -> impl Iterator<Item = (&str, i128)> {
        let mut begin = 0;
        self.moves.iter().map(move |&(end, by)| {
            let name = &self.names[begin..end];
            begin = end;
            (name, by)
        })
    }

    /// As if nothing had been told.
    pub fn clear(&mut self) {
        self.names.clear();
        self.moves.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_and_told_in_order() {
        let mut counted = Counted::default();
        counted.add(&["old"], 1);
        counted.clear();
        counted.add(&["currencies", "EUR", "events"], 1);
        counted.add(&["accounts/open"], -2);
        assert_eq!(counted.moves().collect::<Vec<_>>(), [("currencies/EUR/events", 1), ("accounts/open", -2)]);
    }
}
