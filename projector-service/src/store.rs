//! All access to Redis: claiming a partition, writing a batch, reading what is there.

use std::time::{Duration, Instant};

use millrace_shared::views::{
    Keys,
    address::Address,
    errors::is_passing,
    meta, script,
    versions::{self, Versions},
};
use redis::{ErrorKind, RedisError, RedisResult, Script, from_redis_value};

use crate::{
    command::Command,
    link::{Link, Node},
};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Redis is not asked again for so long after it could not be reached, so that many partitions don't each wait for it.
const PAUSE: Duration = Duration::from_millis(200);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Whether it was done is not known, or it certainly was not: look at the checkpoint, then try again.
    #[error("Redis: {0}")]
    Again(String),
    /// Trying again can't help.
    #[error("Redis refuses: {0}")]
    Refused(String),
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        if is_passing(&error) { Self::Again(error.to_string()) } else { Self::Refused(error.to_string()) }
    }
}

/// What `…:meta` says of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The present owner's number; 0 where there is none.
    pub epoch: u64,
    /// Next offset to read.
    pub offset: Option<i64>,
    /// Topic id that the offset belongs to.
    pub topic_id: Option<String>,
    /// Whether it has caught up once.
    pub live: bool,
    /// Version of the code that folded what is there.
    pub fold: Option<u32>,
    /// Whether somebody has begun to free it.
    pub dropping: bool,
}

/// What came of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The partition is the caller's, by this epoch.
    Granted(Meta),
    /// A tool has it for a moment.
    Lent,
    /// The caller had it, and nothing is there any more.
    Gone,
    /// Another projector has taken it over.
    OtherOwner,
}

/// One fenced write.
#[derive(Debug)]
pub struct Write<'a> {
    /// Our number.
    pub epoch: u64,
    /// Topic id.
    pub topic_id: &'a str,
    /// The checkpoint that must be there.
    pub expected: Option<i64>,
    /// The checkpoint afterwards.
    pub next: i64,
    /// What is written.
    pub commands: &'a [Command],
}

/// What came of a fenced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Everything is written.
    Written,
    /// Nothing is: the epoch is another one.
    OtherOwner,
    /// Nothing is: the checkpoint is another one.
    OtherCheckpoint,
}

/// The next cursor, and fields with their values.
pub type SomeFields = (u64, Vec<(String, Vec<u8>)>);

/// How far a look through all keys is.
#[derive(Debug, Default)]
pub struct Scan {
    /// The nodes that are left; `None` before it has begun.
    nodes: Option<Vec<Node>>,
    cursor: u64,
}

/// A connection to Redis that is made again when it is lost. One thread's own.
pub struct Store {
    address: Address,
    timeout: Duration,
    link: Option<Link>,
    not_before: Option<(Instant, String)>,
    claim: Script,
    extend: Script,
    apply: Script,
    trim: Script,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Connects when first used. `timeout` bounds each answer.
    pub fn new(address: Address, timeout: Duration) -> Self {
        Self {
            address,
            timeout,
            link: None,
            not_before: None,
            claim: script::claim(),
            extend: script::extend(),
            apply: script::apply(),
            trim: script::trim_outcomes(),
        }
    }

    /// Asks Redis something.
    pub fn ask<T>(&mut self, question: impl FnOnce(&mut Link) -> RedisResult<T>) -> Result<T, Error> {
        if let Some((until, reason)) = &self.not_before
            && Instant::now() < *until
        {
            return Err(Error::Again(reason.clone()));
        }
        let answered = self.connect().and_then(question);
        if let Err(error) = &answered
            && is_passing(error)
        {
            // A late answer would be taken for the answer to the next question.
            self.link = None;
            self.not_before = Some((Instant::now() + PAUSE, error.to_string()));
        }
        Ok(answered?)
    }

    fn connect(&mut self) -> RedisResult<&mut Link> {
        if self.link.is_none() {
            self.link = Some(Link::open(&self.address, CONNECT_TIMEOUT.min(self.timeout), self.timeout)?);
        }
        self.not_before = None;
        self.link.as_mut().ok_or_else(|| RedisError::from((ErrorKind::Io, "no connection")))
    }

    /// Whether it answers.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.ask(|redis| redis::cmd("PING").query(redis))
    }

    /// What each of its nodes says of itself by this name.
    pub fn info(&mut self, name: &str) -> Result<Vec<String>, Error> {
        // CONFIG GET is often forbidden where Redis is somebody else's; INFO is not.
        let infos: Vec<String> = self.ask(|redis| redis.all_nodes(&redis::cmd("INFO")))?;
        let value = |info: &String| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or("unknown").trim().to_owned()
        };
        Ok(infos.iter().map(value).collect())
    }

    /// Makes this process the owner of a partition. `ours` is the epoch by which we had it last: when somebody else has
    /// claimed it since, it is refused. Without one, whoever has it loses it.
    pub fn claim(&mut self, keys: &Keys, ours: Option<u64>) -> Result<Claim, Error> {
        self.claim_for(keys, ours, Duration::ZERO)
    }

    /// Makes this process the owner of a partition for a moment: its projector waits for the loan's end and goes on.
    pub fn borrow(&mut self, keys: &Keys, time: Duration) -> Result<Claim, Error> {
        self.claim_for(keys, None, time)
    }

    fn claim_for(&mut self, keys: &Keys, ours: Option<u64>, lend: Duration) -> Result<Claim, Error> {
        let script = self.claim.clone();
        let mut call = script.key(keys.meta());
        call.arg(ours.map(|epoch| epoch.to_string()).unwrap_or_default()).arg(lend.as_millis() as u64);
        let (granted, rest): (i64, Vec<String>) = self.ask(|redis| {
            let answer: Vec<redis::Value> = call.invoke(redis)?;
            let mut words = answer.into_iter();
            let granted = redis::from_redis_value(words.next().unwrap_or(redis::Value::Nil))?;
            Ok((granted, words.map(redis::from_redis_value).collect::<Result<_, _>>()?))
        })?;
        match (granted, &rest[..]) {
            (1, [epoch, offset, topic_id, state, fold]) => Ok(Claim::Granted(Meta {
                epoch: epoch
                    .parse()
                    .map_err(|_| Error::Refused(format!("{} is damaged: epoch {epoch}", keys.meta())))?,
                offset: offset.parse().ok(),
                topic_id: (!topic_id.is_empty()).then(|| topic_id.clone()),
                live: state == meta::LIVE,
                fold: fold.parse().ok(),
                dropping: state == meta::DROPPING,
            })),
            (-1, _) => Ok(Claim::Lent),
            (-2, _) => Ok(Claim::Gone),
            _ => Ok(Claim::OtherOwner),
        }
    }

    /// Extends a loan by `time` from now; zero ends it. False when it was over already and somebody has claimed.
    pub fn extend(&mut self, keys: &Keys, epoch: u64, time: Duration) -> Result<bool, Error> {
        let script = self.extend.clone();
        let mut call = script.key(keys.meta());
        call.arg(epoch).arg(time.as_millis() as u64);
        self.ask(|redis| call.invoke(redis))
    }

    /// What is there for several partitions.
    pub fn metas(&mut self, keys: &[&Keys]) -> Result<Vec<Meta>, Error> {
        type Fields = (Option<u64>, Option<i64>, Option<String>, Option<String>, Option<u32>);
        let mut pipe = redis::pipe();
        for keys in keys {
            pipe.cmd("HMGET").arg(keys.meta()).arg(&[
                meta::EPOCH,
                meta::OFFSET,
                meta::TOPIC_ID,
                meta::STATE,
                meta::FOLD,
            ]);
        }
        let all: Vec<Fields> =
            self.ask(|redis| redis.each(&pipe)?.into_iter().map(|meta| Ok(from_redis_value(meta)?)).collect())?;
        let of = |(epoch, offset, topic_id, state, fold): Fields| Meta {
            epoch: epoch.unwrap_or_default(),
            offset,
            topic_id,
            live: state.as_deref() == Some(meta::LIVE),
            fold,
            dropping: state.as_deref() == Some(meta::DROPPING),
        };
        Ok(all.into_iter().map(of).collect())
    }

    /// Writes a batch and moves the checkpoint, both or neither.
    pub fn apply(&mut self, keys: &Keys, write: &Write<'_>) -> Result<Applied, Error> {
        let script = self.apply.clone();
        let mut call = script.key(keys.meta());
        let expected = write.expected.map(|offset| offset.to_string()).unwrap_or_default();
        call.arg(write.epoch).arg(write.topic_id).arg(expected).arg(write.next);
        if matches!(self.address, Address::Cluster(_)) {
            // A cluster that moves the slot refuses a script whose keys it hasn't all, if it was told of them: before it
            // runs, not in the middle of it.
            for key in write.commands.iter().flat_map(Command::keys) {
                call.key(key);
            }
        }
        for command in write.commands {
            call.arg(command.words().len());
            for word in command.words() {
                call.arg(word.as_slice());
            }
        }
        let answer: i64 = self.ask(|redis| call.invoke(redis))?;
        match answer {
            1 => Ok(Applied::Written),
            0 => Ok(Applied::OtherOwner),
            _ => Ok(Applied::OtherCheckpoint),
        }
    }

    /// Drops the oldest outcomes; returns how many bytes are left.
    pub fn trim_outcomes(&mut self, keys: &Keys, max_bytes: u64, at_most: usize) -> Result<u64, Error> {
        let script = self.trim.clone();
        let mut call = script.key(keys.meta());
        call.key(keys.order()).arg(max_bytes).arg(at_most);
        self.ask(|redis| call.invoke(redis))
    }

    /// Which versions of a projection there are.
    pub fn versions(&mut self, redis_prefix: &str, projection: &str) -> Result<Versions, Error> {
        Versions::read(self.hash(&versions::key(redis_prefix, projection))?).map_err(Error::Refused)
    }

    /// The values of strings.
    pub fn strings(&mut self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(|redis| redis::cmd("MGET").arg(keys).query(redis))
    }

    /// The first entries of a list.
    pub fn list(&mut self, key: &str, count: u64) -> Result<Vec<Vec<u8>>, Error> {
        self.ask(|redis| redis::cmd("LRANGE").arg(key).arg(0).arg(count as i64 - 1).query(redis))
    }

    /// Some fields of a hash.
    pub fn fields(&mut self, key: &str, fields: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(|redis| redis::cmd("HMGET").arg(key).arg(fields).query(redis))
    }

    /// Some fields of a hash and their values, from a cursor on (0 at first), and the next cursor (0 after the last). One may
    /// come twice.
    pub fn some_fields(&mut self, key: &str, cursor: u64) -> Result<SomeFields, Error> {
        self.ask(|redis| redis::cmd("HSCAN").arg(key).arg(cursor).arg("COUNT").arg(1_000).query(redis))
    }

    /// Some keys that fit a pattern, from all nodes; `None` after the last. One may come twice.
    pub fn scan(&mut self, scan: &mut Scan, pattern: &str, count: usize) -> Result<Option<Vec<Vec<u8>>>, Error> {
        if scan.nodes.is_none() {
            scan.nodes = Some(self.ask(Link::masters)?);
        }
        let Some(node) = scan.nodes.as_ref().and_then(|nodes| nodes.last()) else { return Ok(None) };
        let mut command = redis::cmd("SCAN");
        command.arg(scan.cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(count);
        let (next, names) = self.ask(|redis| redis.ask_node(node, &command))?;
        scan.cursor = next;
        if next == 0 {
            scan.nodes.as_mut().and_then(Vec::pop);
        }
        Ok(Some(names))
    }

    /// The fields of a hash.
    pub fn hash(&mut self, key: &str) -> Result<Vec<(String, String)>, Error> {
        self.ask(|redis| redis::cmd("HGETALL").arg(key).query(redis))
    }
}
