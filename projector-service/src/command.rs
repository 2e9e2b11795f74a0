//! Redis commands as data: what a batch writes is decided without Redis and sent in one script call.

/// Words of one command at most: Lua's `unpack` takes some 8,000.
pub const MAX_WORDS: usize = 4_000;

/// One command for Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    words: Vec<Vec<u8>>,
}

impl Command {
    /// A command whose keys come with its groups.
    pub fn bare(name: &str) -> Self {
        Self { words: vec![name.into()] }
    }

    /// A command on a key.
    pub fn new(name: &str, key: impl Into<Vec<u8>>) -> Self {
        Self { words: vec![name.into(), key.into()] }
    }

    /// With a further word.
    pub fn with(mut self, word: impl Into<Vec<u8>>) -> Self {
        self.words.push(word.into());
        self
    }

    /// The words in order.
    pub fn words(&self) -> &[Vec<u8>] {
        &self.words
    }

    /// The keys among the words.
    pub fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        let words = self.words.get(1..).unwrap_or_default();
        let (step, most) = match self.words[0].as_slice() {
            b"MSET" => (2, words.len()),
            b"UNLINK" => (1, words.len()),
            _ => (1, 1),
        };
        words.iter().step_by(step).take(most)
    }

    /// Commands that begin with the same words and share out the groups, so that none has too many words. A group
    /// (a member with its score, say) stays together.
    pub fn chunked<const GROUP: usize>(
        begin: &Self,
        groups: impl IntoIterator<Item = [Vec<u8>; GROUP]>,
    ) -> impl Iterator<Item = Self> {
        let mut groups = groups.into_iter().peekable();
        std::iter::from_fn(move || {
            groups.peek()?;
            let mut command = begin.clone();
            while command.words.len() + GROUP <= MAX_WORDS
                && let Some(group) = groups.next()
            {
                command.words.extend(group);
            }
            Some(command)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_other_words() {
        let keys = |command: &Command| -> Vec<String> {
            command.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
        };
        assert_eq!(keys(&Command::bare("MSET").with("a").with("1").with("b").with("2")), ["a", "b"]);
        assert_eq!(keys(&Command::bare("UNLINK").with("a").with("b")), ["a", "b"]);
        assert_eq!(keys(&Command::new("ZADD", "a").with("1").with("b")), ["a"]);
    }

    #[test]
    fn no_command_has_more_words_than_lua_takes_and_groups_stay_together() {
        let groups: Vec<[Vec<u8>; 2]> =
            (0..5_000).map(|n| [format!("k{n}").into_bytes(), format!("v{n}").into_bytes()]).collect();
        let commands: Vec<Command> = Command::chunked(&Command::new("HSET", "h"), groups.clone()).collect();
        assert!(commands.iter().all(|command| command.words.len() <= MAX_WORDS && command.words.len() % 2 == 0));
        let written: Vec<_> = commands.iter().flat_map(|command| command.words[2..].chunks(2)).collect();
        assert_eq!(written, groups);
        assert_eq!(Command::chunked(&Command::new("HSET", "h"), [] as [[Vec<u8>; 2]; 0]).count(), 0);
    }
}
