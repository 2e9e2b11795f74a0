//! Hashes of personal data: without the secret nobody can find out by trying what was hashed.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The secret of hashes. What was hashed with another one is not found again: README says what a change means.
#[derive(Clone)]
pub struct HashSecret(Hmac<Sha256>);

impl HashSecret {
    /// Shortest text that is taken for a secret.
    pub const MIN_BYTES: usize = 16;

    /// Takes a text that is long enough.
    ///
    /// # Errors
    /// Says how long it must be.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() < Self::MIN_BYTES {
            return Err(format!("must have {} characters at least (openssl rand -base64 32)", Self::MIN_BYTES));
        }
        Hmac::new_from_slice(text.as_bytes()).map(Self).map_err(|error| error.to_string())
    }

    /// HMAC-SHA-256 of a value, for a purpose: equal values have other hashes for other purposes.
    pub fn hash(&self, purpose: &str, value: &[u8]) -> [u8; 32] {
        let mac = self.0.clone().chain_update((purpose.len() as u64).to_be_bytes());
        mac.chain_update(purpose).chain_update(value).finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for HashSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashSecret(…)")
    }
}
