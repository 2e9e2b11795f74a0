//! Where a list goes on: the place behind the last item, bound to the list's order and filters.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use millrace_shared::domain::AggregateId;
use sha2::{Digest, Sha256};

const CHECK_BYTES: usize = 8;

/// A place in a sorted set: behind this score and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The score as the set has it (negated where the list descends).
    pub score: i64,
    /// The id.
    pub id: String,
}

/// Writes and reads the cursors of one list.
#[derive(Debug)]
pub struct Cursors {
    /// Everything that the list depends on.
    list: String,
}

impl Cursors {
    /// Those of the list with this projection, order and filters.
    pub fn new(projection: &str, sort: &str, filters: &[(&str, &str)]) -> Self {
        // Debug's quotes keep two lists from being spelled alike.
        Self { list: format!("{projection} {sort} {filters:?}") }
    }

    /// The text that callers see.
    pub fn encode(&self, place: &Place) -> String {
        let plain = format!("{} {}", place.score, place.id);
        let mut bytes = self.check(&plain).to_vec();
        bytes.extend_from_slice(plain.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor.
    ///
    /// # Errors
    /// When it is none, or one of another list.
    pub fn decode(&self, text: &str) -> Result<Place, String> {
        self.place(text).ok_or_else(|| "is no cursor of the list with this order and these filters".to_owned())
    }

    fn place(&self, text: &str) -> Option<Place> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (check, plain) = bytes.split_at_checked(CHECK_BYTES)?;
        let plain = std::str::from_utf8(plain).ok()?;
        if check != self.check(plain) {
            return None;
        }
        let (score, id) = plain.split_once(' ')?;
        Some(Place { score: score.parse().ok()?, id: AggregateId::new(id).ok()?.into() })
    }

    /// Finds out what was mistyped, cut off, or taken from another list. It is no secret: who forges a cursor only
    /// chooses where to begin.
    fn check(&self, plain: &str) -> [u8; CHECK_BYTES] {
        let digest = Sha256::digest(format!("{}\n{plain}", self.list));
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&digest[..CHECK_BYTES]);
        check
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_its_list() {
        let cursors = Cursors::new("bank-accounts.v1", "-balance_minor", &[("owner", "Ada")]);
        let place = Place { score: -42, id: "acc-1".into() };
        let text = cursors.encode(&place);
        assert_eq!(cursors.decode(&text), Ok(place));
        for other in [
            Cursors::new("bank-accounts.v2", "-balance_minor", &[("owner", "Ada")]),
            Cursors::new("bank-accounts.v1", "balance_minor", &[("owner", "Ada")]),
            Cursors::new("bank-accounts.v1", "-balance_minor", &[("owner", "Bob")]),
            Cursors::new("bank-accounts.v1", "-balance_minor", &[]),
        ] {
            assert!(other.decode(&text).is_err(), "{other:?}");
        }
    }

    #[test]
    fn g13_what_was_tampered_with_is_refused() {
        let cursors = Cursors::new("bank-accounts.v1", "id", &[]);
        let text = cursors.encode(&Place { score: 0, id: "acc-1".into() });
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(cursors.decode(&String::from_utf8(bytes).unwrap()).is_err(), "{at}");
        }
        for bad in ["", "x", "%%%", &text[1..], &format!("{text}AAAA")] {
            assert!(cursors.decode(bad).is_err(), "{bad}");
        }
    }
}
