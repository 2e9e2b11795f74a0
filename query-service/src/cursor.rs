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
    version: u32,
}

impl Cursors {
    /// Those of a deployment's list with this version of a projection, order and filters.
    pub fn new(deployment: &str, projection: &str, version: u32, sort: &str, filters: &[(&str, &str)]) -> Self {
        // Debug's quotes keep two lists from being spelled alike.
        Self { list: format!("{deployment} {projection} {sort} {filters:?}"), version }
    }

    /// The text that callers see.
    pub fn encode(&self, place: &Place) -> String {
        let plain = format!("{} {} {}", self.version, place.score, place.id);
        let mut bytes = self.check(&plain).to_vec();
        bytes.extend_from_slice(plain.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor.
    ///
    /// # Errors
    /// When it is none, or one of another list, or of another version of it.
    pub fn decode(&self, text: &str) -> Result<Place, String> {
        let (version, place) =
            self.place(text).ok_or_else(|| "is no cursor of the list with this order and these filters".to_owned())?;
        if version != self.version {
            return Err(format!(
                "is a cursor of version {version} of the list, which has been built anew since (it is version {} now): \
                 begin again without a cursor",
                self.version
            ));
        }
        Ok(place)
    }

    fn place(&self, text: &str) -> Option<(u32, Place)> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (check, plain) = bytes.split_at_checked(CHECK_BYTES)?;
        let plain = std::str::from_utf8(plain).ok()?;
        if check != self.check(plain) {
            return None;
        }
        let (version, place) = plain.split_once(' ')?;
        let (score, id) = place.split_once(' ')?;
        Some((version.parse().ok()?, Place { score: score.parse().ok()?, id: AggregateId::new(id).ok()?.into() }))
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
        let cursors = Cursors::new("x.", "bank-accounts", 1, "-balance_minor", &[("owner", "Ada")]);
        let place = Place { score: -42, id: "acc-1".into() };
        let text = cursors.encode(&place);
        assert_eq!(cursors.decode(&text), Ok(place));
        for other in [
            Cursors::new("y.", "bank-accounts", 1, "-balance_minor", &[("owner", "Ada")]),
            Cursors::new("x.", "others", 1, "-balance_minor", &[("owner", "Ada")]),
            Cursors::new("x.", "bank-accounts", 1, "balance_minor", &[("owner", "Ada")]),
            Cursors::new("x.", "bank-accounts", 1, "-balance_minor", &[("owner", "Bob")]),
            Cursors::new("x.", "bank-accounts", 1, "-balance_minor", &[]),
        ] {
            assert!(other.decode(&text).is_err(), "{other:?}");
        }
    }

    #[test]
    fn g10_a_cursor_of_another_version_is_told_so() {
        let old = Cursors::new("x.", "bank-accounts", 1, "id", &[]).encode(&Place { score: 0, id: "acc-1".into() });
        let refused = Cursors::new("x.", "bank-accounts", 2, "id", &[]).decode(&old).unwrap_err();
        assert!(refused.contains("version 1") && refused.contains("version 2"), "{refused}");
    }

    #[test]
    fn g13_what_was_tampered_with_is_refused() {
        let cursors = Cursors::new("x.", "bank-accounts", 1, "id", &[]);
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
