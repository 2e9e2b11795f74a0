//! Which versions of a projection there are, and which one queries are answered from.
//!
//! One hash a projection, `{<prefix>bank-accounts}:versions`: `active` is the number of the version that answers,
//! `previous` the one that did before, and each version that exists has a field of its number with its [`State`].
//! Without the hash there is version 1, and it is active: so it is at first, and again when Redis was emptied.

use std::collections::BTreeMap;

use redis::Script;

/// The number of the active version.
pub const ACTIVE: &str = "active";
/// The number of the version that was active before.
pub const PREVIOUS: &str = "previous";
/// The version that is there without anybody's doing.
pub const FIRST: u32 = 1;

/// What is done with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A rebuild fills it.
    Filling,
    /// The projectors follow the log with it.
    Following,
    /// As that, but it was found to be wrong, so it is not to answer.
    Refused,
    /// Its keys are being deleted.
    Dropping,
}

impl State {
    /// As the hash says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Following => "following",
            Self::Refused => "refused",
            Self::Dropping => "dropping",
        }
    }
}

/// The versions of a projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The one that answers.
    pub active: u32,
    /// The one that answered before.
    pub previous: Option<u32>,
    /// All that there are.
    pub states: BTreeMap<u32, State>,
}

impl Versions {
    /// Reads the fields of the hash.
    ///
    /// # Errors
    /// Says what in it this release does not know.
    pub fn read(fields: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let (mut active, mut previous, mut states) = (None, None, BTreeMap::new());
        for (name, value) in fields {
            let unknown = || format!("this release does not know {name} {value:?} among a projection's versions");
            let number = |text: &str| text.parse::<u32>().map_err(|_| unknown());
            match name.as_str() {
                ACTIVE => active = Some(number(&value)?),
                PREVIOUS => previous = Some(number(&value)?),
                _ => {
                    let state = [State::Filling, State::Following, State::Refused, State::Dropping];
                    let state = state.into_iter().find(|state| state.name() == value).ok_or_else(unknown)?;
                    states.insert(number(&name)?, state);
                }
            }
        }
        if active.is_none() && states.is_empty() {
            states.insert(FIRST, State::Following);
        }
        Ok(Self { active: active.unwrap_or(FIRST), previous, states })
    }

    /// Those that the projectors keep up with the log.
    pub fn projected(&self) -> impl Iterator<Item = u32> + '_ {
        let projected = self.states.iter().filter(|(_, state)| matches!(state, State::Following | State::Refused));
        projected.map(|(number, _)| *number)
    }
}

/// The hash of a projection.
pub fn key(redis_prefix: &str, projection: &str) -> String {
    format!("{{{redis_prefix}{projection}}}:versions")
}

/// What a rebuild that is under way says of itself, as JSON: it expires when the rebuild has been silent for a while.
pub fn rebuild_key(redis_prefix: &str, projection: &str) -> String {
    format!("{{{redis_prefix}{projection}}}:rebuild")
}

/// Changes some fields if some are as the caller believes: all or nothing, so that two who change versions at once
/// never both do. Returns 1 when done, else 0.
///
/// KEYS: the hash. ARGV: number of expected fields, then each with its value, then each field that is set with its
/// value. An empty value means that there is no such field.
pub fn change() -> Script {
    Script::new(
        r"
        local expected = tonumber(ARGV[1])
        for at = 2, expected * 2, 2 do
            if (redis.call('HGET', KEYS[1], ARGV[at]) or '') ~= ARGV[at + 1] then return 0 end
        end
        for at = expected * 2 + 2, #ARGV, 2 do
            if ARGV[at + 1] == '' then
                redis.call('HDEL', KEYS[1], ARGV[at])
            else
                redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
            end
        end
        return 1
        ",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &str)]) -> Result<Versions, String> {
        Versions::read(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn g10_without_a_list_the_first_version_is_active_and_followed() {
        let versions = read(&[]).unwrap();
        assert_eq!((versions.active, versions.previous), (1, None));
        assert_eq!(versions.projected().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn g10_only_what_follows_is_projected() {
        let versions = read(&[
            ("active", "2"),
            ("previous", "1"),
            ("1", "dropping"),
            ("2", "following"),
            ("3", "filling"),
            ("4", "refused"),
        ]);
        let versions = versions.unwrap();
        assert_eq!((versions.active, versions.previous), (2, Some(1)));
        assert_eq!(versions.projected().collect::<Vec<_>>(), [2, 4]);
        assert_eq!(versions.states.len(), 4);
    }

    #[test]
    fn what_a_later_release_wrote_is_refused() {
        for bad in [("active", "x"), ("1", "resting"), ("pinned", "1")] {
            assert!(read(&[bad]).is_err(), "{bad:?}");
        }
    }
}
