//! The token of an accepted command: what a query takes in `after=` to see that command's effect.
//!
//! It stands for an aggregate and a sequence, not for a position in a topic or a projection's version, so it holds
//! across rebuilds, instances and recreated topics. Those of another deployment (topic prefix) are none. Opaque to callers.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

const CHECK_BYTES: usize = 4;

/// An aggregate and the sequence that must have been reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Aggregate type, e.g. `bank-account`.
    pub aggregate_type: String,
    /// Aggregate id.
    pub aggregate_id: String,
    /// Sequence to be reached.
    pub sequence: u64,
}

impl Token {
    /// The text that callers of a deployment see, which is told by its prefix of topics and keys.
    pub fn encode(&self, deployment: &str) -> String {
        let plain = format!("1 {} {} {}", self.aggregate_type, self.sequence, self.aggregate_id);
        let mut bytes = check(deployment, &plain).to_vec();
        bytes.extend_from_slice(plain.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token; `None` when it is none of this deployment.
    pub fn decode(text: &str, deployment: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let plain = std::str::from_utf8(bytes.get(CHECK_BYTES..)?).ok()?;
        let mut parts = plain.splitn(4, ' ');
        let (Some("1"), Some(aggregate_type), Some(sequence), Some(id)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        let token = Self {
            aggregate_type: aggregate_type.to_owned(),
            aggregate_id: crate::domain::AggregateId::new(id).ok()?.into(),
            sequence: sequence.parse().ok()?,
        };
        // One spelling only: "+1" or "01" parse as well. And what was mistyped, cut off or changed has another check.
        (token.encode(deployment) == text).then_some(token)
    }
}

/// It is no secret: who forges a token only chooses what to wait for.
fn check(deployment: &str, plain: &str) -> [u8; CHECK_BYTES] {
    let digest: [u8; 32] = Sha256::new_with_prefix(deployment).chain_update("\n").chain_update(plain).finalize().into();
    std::array::from_fn(|at| digest[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back() {
        let token = Token { aggregate_type: "bank-account".into(), aggregate_id: "acc-42".into(), sequence: 7 };
        assert_eq!(Token::decode(&token.encode("a."), "a."), Some(token));
    }

    #[test]
    fn refuses_what_is_none() {
        let made = |plain: &str| {
            let text = URL_SAFE_NO_PAD.encode([&check("a.", plain), plain.as_bytes()].concat());
            Token::decode(&text, "a.")
        };
        assert!(made("1 bank-account 1 a").is_some());
        assert_eq!(Token::decode("%%%", "a."), None);
        assert_eq!(Token::decode("", "a."), None);
        for plain in [
            "",
            "1",
            "1 bank-account 1",
            "2 bank-account 1 a",
            "1 bank-account 01 a",
            "1 bank-account +1 a",
            "1 bank-account -1 a",
            "1 bank-account 1 a b",
            "1 bank-account 1 ../x",
            "1 bank-account 99999999999999999999 a",
        ] {
            assert_eq!(made(plain), None, "{plain}");
        }
        let token = Token { aggregate_type: "bank-account".into(), aggregate_id: "acc-42".into(), sequence: 7 };
        let good = token.encode("a.");
        for other in ["", "a", "b."] {
            assert_eq!(Token::decode(&good, other), None, "{other}");
        }
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(Token::decode(&String::from_utf8(bytes).unwrap(), "a."), None, "{at}");
        }
    }
}
