//! How far a reader of changes has got, and the opaque text that stands for it.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

const CHECK_BYTES: usize = 6;

/// The id of an entry of a feed: the offset of the event, and an ordinal. Everything at or before it has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// Offset in the topic.
    pub offset: u64,
    /// From 1 on; above that where parked events were applied.
    pub ordinal: u64,
}

impl FromStr for EntryId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (offset, ordinal) = text.split_once('-')?;
            Some(Self { offset: offset.parse().ok()?, ordinal: ordinal.parse().ok()? })
        };
        read().ok_or_else(|| format!("{text:?} is no id of a stream's entry"))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.offset, self.ordinal)
    }
}

/// Which build of a projection a position is of: it changes with the version that answers, and when Redis was emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build(u64);

impl Build {
    /// Of somebody who has not got all views yet: he has to begin again.
    pub const NONE: Self = Self(0);

    /// Of a version, and of when each of its partitions was begun.
    pub fn of(version: u32, born: &[u64]) -> Self {
        let mut digest = Sha256::new_with_prefix(version.to_be_bytes());
        for born in born {
            digest.update(born.to_be_bytes());
        }
        let digest: [u8; 32] = digest.finalize().into();
        Self(digest[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)) | 1)
    }
}

/// How far somebody has got in the feed of each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Of which build.
    pub build: Build,
    /// By partition.
    pub at: Vec<EntryId>,
}

impl Position {
    /// Whether the other one has got as far at least, everywhere.
    pub fn is_reached_by(&self, other: &Self) -> bool {
        self.at.iter().zip(&other.at).all(|(own, other)| own <= other)
    }
}

/// Writes and reads the ids of one projection's changes.
///
/// An id is base64 of: check (6 bytes) | build (8) | for each partition the offset, doubled, plus 1 when an ordinal other
/// than 1 follows (both LEB128). With twelve partitions of a million events each that are 68 characters.
#[derive(Debug)]
pub struct Ids {
    scope: String,
    partitions: usize,
}

impl Ids {
    /// Those of one deployment.
    pub fn new(redis_prefix: &str, projection: &str, partitions: usize) -> Self {
        Self { scope: format!("{redis_prefix} {projection} {partitions}"), partitions }
    }

    /// The text that callers see.
    pub fn encode(&self, position: &Position) -> String {
        let mut bytes = vec![0; CHECK_BYTES];
        bytes.extend_from_slice(&position.build.0.to_be_bytes());
        for EntryId { offset, ordinal } in &position.at {
            let plain = *ordinal == 1;
            number(&mut bytes, offset << 1 | u64::from(!plain));
            if !plain {
                number(&mut bytes, *ordinal);
            }
        }
        let check = self.check(&bytes[CHECK_BYTES..]);
        bytes[..CHECK_BYTES].copy_from_slice(&check);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads an id; `None` when it is none of ours.
    pub fn decode(&self, text: &str) -> Option<Position> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (check, plain) = bytes.split_at_checked(CHECK_BYTES)?;
        if check != self.check(plain) {
            return None;
        }
        let (build, mut rest) = plain.split_first_chunk::<8>()?;
        let mut at = Vec::with_capacity(self.partitions);
        for _ in 0..self.partitions {
            let packed = take(&mut rest)?;
            let ordinal = if packed & 1 == 0 { 1 } else { take(&mut rest)? };
            at.push(EntryId { offset: packed >> 1, ordinal });
        }
        rest.is_empty().then_some(Position { build: Build(u64::from_be_bytes(*build)), at })
    }

    /// Finds out what was mistyped, cut off, or taken from elsewhere. It is no secret: who forges an id only chooses
    /// where to begin.
    fn check(&self, plain: &[u8]) -> [u8; CHECK_BYTES] {
        let digest: [u8; 32] =
            Sha256::new_with_prefix(&self.scope).chain_update(b"\n").chain_update(plain).finalize().into();
        std::array::from_fn(|at| digest[at])
    }
}

fn number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0, 0u32);
    loop {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if *byte < 0x80 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        let at = [(0, 0), (1, 1), (1_000_000, 1), (u64::MAX >> 1, 7)];
        let at = at.map(|(offset, ordinal)| EntryId { offset, ordinal }).to_vec();
        Position { build: Build::of(3, &[1, 2, 3, 4]), at }
    }

    #[test]
    fn g09_an_id_holds_the_position_of_every_partition() {
        let ids = Ids::new("x.", "bank-accounts", 4);
        assert_eq!(ids.decode(&ids.encode(&position())), Some(position()));
        let many = Position { at: vec![EntryId { offset: 1_000_000, ordinal: 1 }; 12], ..position() };
        assert_eq!(Ids::new("", "bank-accounts", 12).encode(&many).len(), 67);
    }

    #[test]
    fn g09_builds_differ_by_version_and_by_birth() {
        let build = Build::of(1, &[1, 2]);
        assert_eq!(build, Build::of(1, &[1, 2]));
        for other in [Build::of(2, &[1, 2]), Build::of(1, &[1, 3]), Build::NONE] {
            assert_ne!(build, other);
        }
    }

    #[test]
    fn g13_what_is_no_id_of_this_feed_is_refused() {
        let ids = Ids::new("x.", "bank-accounts", 4);
        let text = ids.encode(&position());
        for other in
            [Ids::new("y.", "bank-accounts", 4), Ids::new("x.", "users", 4), Ids::new("x.", "bank-accounts", 3)]
        {
            assert_eq!(other.decode(&text), None, "{other:?}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(ids.decode(&String::from_utf8(bytes).unwrap()), None, "{at}");
        }
        for bad in ["", "x", "%%%", &text[1..], &format!("{text}AAAA")] {
            assert_eq!(ids.decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn entries_are_in_order() {
        let of = |text: &str| text.parse::<EntryId>();
        assert!(of("5-1") < of("5-2") && of("5-2") < of("10-1"));
        assert_eq!(of("5-2").unwrap().to_string(), "5-2");
        for bad in ["", "5", "-1", "5-", "a-b"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
