//! Keys: one for each person, and the master keys that these are wrapped with.

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Generate, Key, Payload},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Error;
use crate::records;

/// Of what was sealed: its form, the key's mark, the nonce; then the ciphertext.
const FORM: u8 = 1;
const MARK_BYTES: usize = 4;
const NONCE_BYTES: usize = 12;
const KEY_BYTES: usize = 32;
/// Of a wrapped key, behind its form: the nonce, the key, and what tells that nothing was changed.
const WRAPPED_BYTES: usize = NONCE_BYTES + KEY_BYTES + 16;

records! {
    /// The one record of the key topics.
    pub enum KeyRecord in "millrace" {
        /// The key of a person.
        WrappedKey { WrappedKey = "../schemas/WrappedKey.v1.avsc" },
    }
}

/// The key of a person, as the key topic holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Name of the master key that wraps it.
    pub master: String,
    /// The key, sealed.
    #[serde(with = "apache_avro::serde::bytes")]
    pub wrapped: Vec<u8>,
}

/// The key of a person.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey([u8; KEY_BYTES]);

impl DataKey {
    /// A new one.
    pub fn generate() -> Self {
        Self(Key::<Aes256Gcm>::generate().into())
    }

    /// Seals a value for the place that it belongs to.
    pub fn seal_bytes(&self, plain: &[u8], place: &str) -> Vec<u8> {
        Lock::from(self).seal(plain, place)
    }

    /// Opens it; `None`: another key has sealed it, which is no more.
    ///
    /// # Errors
    /// When it was changed, or is of another place.
    pub fn open_bytes(&self, sealed: &[u8], place: &str) -> Result<Option<Vec<u8>>, Error> {
        Lock::from(self).open(sealed, place)
    }
}

/// The key of a person, ready to be used. To make it ready costs more than a field does, so it is done once for all of
/// an event; but it is ten times as large.
pub struct Lock {
    cipher: Aes256Gcm,
    /// What tells this key's values from those of one before, which was destroyed.
    mark: [u8; MARK_BYTES],
}

impl From<&DataKey> for Lock {
    fn from(key: &DataKey) -> Self {
        let digest = Sha256::new_with_prefix(b"millrace key mark").chain_update(key.0).finalize();
        Self { cipher: cipher(&key.0), mark: std::array::from_fn(|at| digest[at]) }
    }
}

impl Lock {
    pub(super) fn seal(&self, plain: &[u8], place: &str) -> Vec<u8> {
        let mut sealed = vec![FORM];
        sealed.extend_from_slice(&self.mark);
        encrypt(&self.cipher, plain, place, &mut sealed);
        sealed
    }

    pub(super) fn open(&self, sealed: &[u8], place: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some((&[FORM], rest)) = sealed.split_first_chunk() else { return Err(Error::NotOurs) };
        let (mark, rest) = rest.split_first_chunk::<MARK_BYTES>().ok_or(Error::NotOurs)?;
        if *mark != self.mark {
            return Ok(None);
        }
        decrypt(&self.cipher, rest, place).map(Some)
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(…)")
    }
}

/// Why a person's key can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The master key of this name is not there.
    #[error("it is encrypted with master key {0}, which MILLRACE_MASTER_KEYS lacks")]
    Missing(String),
    /// It has the form of one, but the master key of this name is not the one that it was wrapped with, or it was changed.
    #[error("it does not open with the master key that MILLRACE_MASTER_KEYS has under the name {0}")]
    Refused(String),
    /// It is none, or one of a later release.
    #[error("it is damaged, or of a later release")]
    Malformed,
}

/// The master keys: the first wraps new keys, all of them unwrap.
#[derive(Clone)]
pub struct MasterKeys(Vec<(String, Aes256Gcm)>);

impl MasterKeys {
    /// Reads `<name>:<base64 of 32 bytes>`, separated by commas or lines.
    ///
    /// # Errors
    /// Says what is wrong, without quoting a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<(String, Aes256Gcm)> = Vec::new();
        for one in text.split([',', '\n']).map(str::trim).filter(|one| !one.is_empty()) {
            let (name, key) = one.split_once(':').ok_or("each must be <name>:<key>")?;
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if !(1..=64).contains(&name.len()) || !name.bytes().all(allowed) {
                return Err("a key's name must be 1 to 64 of A-Z a-z 0-9 . _ -".to_owned());
            }
            let bytes = STANDARD.decode(key).ok().and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok());
            let bytes =
                bytes.ok_or_else(|| format!("key {name} is not 32 bytes in base64 (openssl rand -base64 32)"))?;
            if keys.iter().any(|(known, _)| known == name) {
                return Err(format!("key {name} is there twice"));
            }
            keys.push((name.to_owned(), cipher(&bytes)));
        }
        if keys.is_empty() { Err("there must be one at least".to_owned()) } else { Ok(Self(keys)) }
    }

    /// Wraps the key of the person at a place.
    pub fn wrap(&self, key: &DataKey, place: &str) -> KeyRecord {
        let (name, master) = &self.0[0];
        let mut wrapped = vec![FORM];
        encrypt(master, &key.0, place, &mut wrapped);
        KeyRecord::WrappedKey(WrappedKey { master: name.clone(), wrapped })
    }

    /// Unwraps it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn unwrap(&self, record: &KeyRecord, place: &str) -> Result<DataKey, KeyError> {
        let KeyRecord::WrappedKey(WrappedKey { master, wrapped }) = record;
        let named = self.0.iter().find(|(name, _)| name == master);
        let (_, cipher) = named.ok_or_else(|| KeyError::Missing(master.clone()))?;
        let (&[form], rest) = wrapped.split_first_chunk().ok_or(KeyError::Malformed)?;
        if form != FORM || rest.len() != WRAPPED_BYTES {
            return Err(KeyError::Malformed);
        }
        let plain = decrypt(cipher, rest, place).ok().and_then(|plain| plain.try_into().ok());
        plain.map(DataKey).ok_or_else(|| KeyError::Refused(master.clone()))
    }

    /// Whether new keys would be wrapped otherwise than this one.
    pub fn is_outdated(&self, record: &KeyRecord) -> bool {
        let KeyRecord::WrappedKey(key) = record;
        key.master != self.0[0].0
    }
}

impl std::fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

fn cipher(key: &[u8; KEY_BYTES]) -> Aes256Gcm {
    Aes256Gcm::new(&(*key).into())
}

/// Appends a fresh nonce and the ciphertext.
#[allow(clippy::expect_used, reason = "only a plain text of 64 GiB is refused")]
fn encrypt(cipher: &Aes256Gcm, plain: &[u8], place: &str, out: &mut Vec<u8>) {
    let nonce = Nonce::generate();
    let payload = Payload { msg: plain, aad: place.as_bytes() };
    out.extend_from_slice(&nonce);
    out.extend(cipher.encrypt(&nonce, payload).expect("a value is small"));
}

fn decrypt(cipher: &Aes256Gcm, sealed: &[u8], place: &str) -> Result<Vec<u8>, Error> {
    let (nonce, msg) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(Error::NotOurs)?;
    cipher.decrypt(&(*nonce).into(), Payload { msg, aad: place.as_bytes() }).map_err(|_| Error::NotOurs)
}
