//! Commands: each that the group has passed led to one thing, an outcome, a dead letter or a forward, and its outcome
//! is about it.

use std::collections::HashMap;

use millrace_shared::{
    codec::{DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::{CommandHeaders, names},
    fingerprint::fingerprint_of,
    kafka::{bulk::Record, partition_of, topics::Topic},
};

use crate::partition::{cancel_fingerprint, is_sweep};

use super::{Error, Finding, Kind, Report, Unjudged, headers, outcomes::hash, partition::PartitionCheck};

/// What is known of the commands of a partition.
#[derive(Default)]
pub(super) struct Commands {
    first: i64,
    end: i64,
    /// By offset from the first on: about 9 bytes for each command.
    answers: Vec<Option<Answer>>,
    internal: Offsets,
    /// Answered by a repeat: they had no effect.
    repeats: Offsets,
    first_answered: Option<i64>,
    /// Dead letters by the place where their command first lay.
    letters: HashMap<(i32, i64), u32>,
    first_letter: Option<i64>,
    /// Commands before it are not judged.
    horizon: i64,
    /// Behind the last command that the group has passed.
    passed: i64,
    over: bool,
    crossing: Crossing,
}

/// What crosses partitions.
#[derive(Default)]
pub(super) struct Crossing {
    /// First command that is kept.
    first: i64,
    /// Commands with an outcome or a dead letter.
    handled: Offsets,
    /// Commands that belong elsewhere and must have been forwarded: offset, and partition.
    awaited: Vec<(i64, i32)>,
    /// Commands that came from elsewhere, by partition.
    arrived: HashMap<i32, Arrived>,
}

#[derive(Default)]
struct Arrived {
    offsets: Offsets,
    /// The first one of them.
    first: Option<i64>,
}

/// A set of offsets, one bit each.
#[derive(Default)]
struct Offsets {
    words: HashMap<i64, u64>,
}

impl Offsets {
    /// False when it was there already.
    fn insert(&mut self, offset: i64) -> bool {
        let word = self.words.entry(offset >> 6).or_default();
        let bit = 1 << (offset & 63);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn has(&self, offset: i64) -> bool {
        self.words.get(&(offset >> 6)).is_some_and(|word| word & (1 << (offset & 63)) != 0)
    }

    fn iter(&self) -> impl Iterator<Item = i64> {
        self.words
            .iter()
            .flat_map(|(at, word)| (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| at * 64 + bit))
    }
}

/// What an outcome and the command that it answers have in common.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Answer(std::num::NonZeroU64);

impl Answer {
    pub(super) fn new(aggregate_id: &str, command_id: &str, fingerprint: &[u8], origin: &str) -> Self {
        let hash = hash((aggregate_id, command_id, fingerprint, origin));
        Self(std::num::NonZeroU64::new(hash).unwrap_or(std::num::NonZeroU64::MIN))
    }
}

impl Commands {
    /// The topic begins and ends there.
    pub(super) fn begin(&mut self, (first, end): (i64, i64)) {
        (self.first, self.end, self.crossing.first) = (first, end, first);
    }

    /// Those before an offset were deleted meanwhile, and some may not have been read.
    pub(super) fn are_gone_before(&mut self, first: i64) {
        if self.over {
            return;
        }
        let gone = (first - self.first).clamp(0, self.answers.len() as i64);
        self.answers.drain(..gone as usize);
        (self.first, self.crossing.first) = (first, first);
        // What was forwarded to here and is kept begins anew.
        self.crossing.arrived.values_mut().for_each(|arrived| arrived.first = None);
    }

    /// An outcome answers this offset: the first one that is kept says from where on commands can be judged.
    pub(super) fn first_answered(&mut self, offset: i64) {
        self.first_answered.get_or_insert(offset);
    }

    /// Whether an outcome that was written before the commands' end was asked for can't be about this offset.
    pub(super) fn is_beyond(&self, offset: i64) -> bool {
        !self.over && offset >= self.end
    }

    /// A command has an outcome; false when it had one before.
    pub(super) fn answer(&mut self, offset: i64, answer: Answer, internal: bool, repeat: bool) -> bool {
        if self.over || offset < self.first {
            return true;
        }
        let at = (offset - self.first) as usize;
        if self.answers.len() <= at {
            self.answers.resize(at + 1, None);
        }
        if internal {
            self.internal.insert(offset);
        }
        if repeat {
            self.repeats.insert(offset);
        }
        self.answers[at].replace(answer).is_none()
    }

    /// What concerns other partitions.
    pub(super) fn crossing(self) -> Crossing {
        self.crossing
    }
}

impl<A: Aggregate> PartitionCheck<'_, A> {
    /// Takes a record of the dead-letter topic.
    pub(super) fn dead_letter(&mut self, record: &Record<'_>) {
        self.report.counts.dead_letters += 1;
        // The command's own headers come first, whatever their names are.
        let last = |name| record.headers().filter(|(header, _)| *header == name).last().and_then(|(_, value)| value);
        let text = |name| last(name).and_then(|value| std::str::from_utf8(value).ok());
        let topic = self.kind.topic(Topic::Commands);
        let place = text(names::ORIGIN).and_then(headers::place).filter(|(of, ..)| *of == topic);
        let (Some((_, partition, offset)), Some(_)) = (place, text(names::ERROR).filter(|text| !text.is_empty()))
        else {
            let detail = format!("{} or {} is missing or malformed", names::ERROR, names::ORIGIN);
            return self.found(Kind::Headers, record, None, detail);
        };
        if partition == self.partition {
            self.commands.first_letter.get_or_insert(offset);
        }
        *self.commands.letters.entry((partition, offset)).or_default() += 1;
    }

    /// Outcomes and dead letters are read, and the commands come now.
    pub(super) fn commands_follow(&mut self, first_letter: i64) {
        let trimmed = self.outcomes.trimmed();
        let commands = &mut self.commands;
        // Without a committed offset, the last outcome says what was handled; as a take-over reads it.
        let answered = commands.first + commands.answers.len() as i64;
        let passed = self.committed.unwrap_or(answered);
        commands.passed = passed.min(commands.end);
        let kept = |trimmed: bool, first: Option<i64>| if trimmed { first.unwrap_or(i64::MAX) } else { 0 };
        commands.horizon = kept(trimmed, commands.first_answered).max(kept(first_letter > 0, commands.first_letter));
        let end = commands.end;
        match self.committed {
            Some(committed) if committed > end => {
                let detail = format!("commands are to be read from offset {committed}, but the topic ends at {end}");
                self.found_at(Kind::OffsetBeyondEnd, Topic::Commands, committed, None, detail);
            }
            None if end > 0 => self.cannot_judge(Unjudged::PartitionsWithoutOffset, 1),
            _ => {}
        }
    }

    /// Takes a record of the command topic.
    pub(super) fn command(&mut self, record: &Record<'_>) -> Result<(), Error> {
        self.report.counts.commands += 1;
        let offset = record.offset();
        let headers = CommandHeaders::read(record.headers());
        let id = record.key().and_then(|key| std::str::from_utf8(key).ok());
        let own_topic = self.kind.topic(Topic::Commands);
        let is_forwarded = record.headers().any(|(name, _)| name == names::FORWARDED);
        let came_from = record.headers().filter(|(name, _)| *name == names::ORIGIN).last();
        let came_from = came_from.and_then(|(_, value)| std::str::from_utf8(value?).ok()).and_then(headers::place);
        // Anybody may write these headers; as command-service does, only what it could have written is believed.
        let came_from = came_from.filter(|(topic, ..)| is_forwarded && *topic == own_topic);
        let (partition, from) = came_from.map_or((self.partition, offset), |(_, partition, from)| (partition, from));
        // What had to wait comes once more from where it first lay.
        let is_released = record.headers().any(|(name, _)| name == names::RELEASED);
        if came_from.is_some() && partition != self.partition && !is_released {
            self.report.counts.forwarded += 1;
            let arrived = self.commands.crossing.arrived.entry(partition).or_default();
            arrived.first.get_or_insert(from);
            if arrived.offsets.insert(from) {
                // The first time.
            } else if self.commands.repeats.has(offset) {
                // What lies behind the last outcome of a partition is forwarded again after the group's offsets were lost.
                self.report.counts.forwarded_again += 1;
            } else {
                let detail = format!("it was forwarded from {own_topic}/{partition}/{from} more than once");
                self.found(Kind::HandledTwice, record, id, detail);
            }
        }
        self.put_back(record)?;
        if A::IS_PERSONAL && is_sweep(record.value(), record.headers().map(|(name, _)| name)) {
            self.commands.crossing.handled.insert(offset);
            return Ok(());
        }
        let lives_in = record
            .key()
            .filter(|key| !key.is_empty())
            .map(|key| partition_of(key, self.check.partitions))
            .filter(|partition| *partition != self.partition);
        let at = (offset - self.commands.first) as usize;
        let answer = self.commands.answers.get_mut(at).and_then(Option::take);
        if let Some(answer) = answer {
            self.commands.crossing.handled.insert(offset);
            if let Some(lives_in) = lives_in {
                let detail = format!("it has an outcome, though its aggregate lives in partition {lives_in}");
                self.found(Kind::WrongPartition, record, id, detail);
                return Ok(());
            }
            let origin = format!("{own_topic}/{partition}/{from}");
            if let Err(detail) = self.is_answered_by(record, headers, &origin, answer)? {
                self.found(Kind::OutcomeDiffers, record, id, detail);
            }
            if self.commands.internal.has(offset) {
                self.take_letter(partition, from);
            }
            return Ok(());
        }
        if self.take_letter(partition, from) {
            self.commands.crossing.handled.insert(offset);
            return Ok(());
        }
        if offset >= self.commands.passed {
            self.report.counts.waiting += 1;
        } else if offset < self.commands.horizon {
            self.cannot_judge(Unjudged::CommandsWithoutKeptOutcome, 1);
        } else if let Some(lives_in) = lives_in.filter(|_| !is_forwarded) {
            // The end of that partition is known to lie behind only where this one's offset was committed before.
            if self.committed.is_some() {
                self.commands.crossing.awaited.push((offset, lives_in));
            }
        } else {
            let detail = "the group has passed it, but it has no outcome and no dead letter";
            self.found(Kind::CommandLost, record, id, detail);
        }
        Ok(())
    }

    /// Whether there is a dead letter of a command, which is used up.
    fn take_letter(&mut self, partition: i32, offset: i64) -> bool {
        match self.commands.letters.get_mut(&(partition, offset)) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    /// Whether an outcome is about this command.
    fn is_answered_by(
        &self,
        record: &Record<'_>,
        headers: Result<CommandHeaders, String>,
        origin: &str,
        answer: Answer,
    ) -> Result<Result<(), String>, Error> {
        let cancels = headers.as_ref().ok().and_then(|headers| headers.cancels.clone());
        let fingerprint = match (record.value(), cancels) {
            (None, Some(cancels)) => cancel_fingerprint(&cancels),
            (value, _) => {
                let value = value.unwrap_or_default();
                match self.kind.commands.decode(value, Foreign::Resolve, &self.check.runtime) {
                    Ok(_) if A::IS_PERSONAL && self.check.hash.is_none() => return Ok(Ok(())),
                    Ok(command) => fingerprint_of::<A>(&command, self.check.hash.as_ref()),
                    Err(DecodeError::Unavailable(reason)) => return Err(Error::Schema(reason)),
                    Err(error) => return Ok(Err(format!("it has an outcome, but can't be read: {error}"))),
                }
            }
        };
        let expected: Result<_, String> = (|| {
            let aggregate_id = AggregateId::from_key(record.key())?;
            let fingerprint = fingerprint.map_err(|error| error.to_string())?;
            let command_id = headers?.id.unwrap_or_else(|| origin.to_owned());
            Ok(Answer::new(aggregate_id.as_str(), &command_id, &fingerprint, origin))
        })();
        Ok(match expected {
            Ok(expected) if expected == answer => Ok(()),
            Ok(_) => Err("its outcome has another aggregate, command id, fingerprint or origin".into()),
            Err(reason) => Err(format!("it has an outcome, but is no command: {reason}")),
        })
    }

    /// All commands are read.
    pub(super) fn commands_end(&mut self) {
        let commands = &mut self.commands;
        commands.over = true;
        let answers = std::mem::take(&mut commands.answers);
        let (first, end) = (commands.first, commands.end);
        let letters = std::mem::take(&mut commands.letters);
        for (offset, _) in (first..).zip(answers).filter(|(_, answer)| answer.is_some()) {
            let detail = "there is an outcome of a command at this position, but no command".to_owned();
            self.found_at(Kind::OutcomeDiffers, Topic::Commands, offset, None, detail);
        }
        let mut left: Vec<_> = letters.into_iter().filter(|(_, count)| *count > 0).map(|(place, _)| place).collect();
        left.sort_unstable();
        for (partition, offset) in left {
            // Of commands that came after the end, or are deleted already. Where others were forwarded from is no
            // matter of offsets here.
            let may_be_read = if partition == self.partition { (first..end).contains(&offset) } else { first == 0 };
            if may_be_read {
                self.report.add(Finding {
                    kind: Kind::HandledTwice,
                    topic: self.kind.topic(Topic::Commands).to_owned(),
                    partition,
                    offset,
                    aggregate: None,
                    detail: format!("it has more dead letters in partition {} than it should", self.partition),
                });
            }
        }
    }
}

/// Compares what was to be forwarded with what arrived.
pub(super) fn forwards_that_are_missing(topic: &str, crossings: &HashMap<i32, Crossing>, report: &mut Report) {
    let mut partitions: Vec<_> = crossings.keys().copied().collect();
    partitions.sort_unstable();
    for from in partitions {
        let Some(crossing) = crossings.get(&from) else { continue };
        let finding = |kind, offset, detail: String| Finding {
            kind,
            topic: topic.to_owned(),
            partition: from,
            offset,
            aggregate: None,
            detail,
        };
        for &(offset, to) in &crossing.awaited {
            let Some(target) = crossings.get(&to) else { continue };
            let arrived = target.arrived.get(&from);
            if arrived.is_some_and(|arrived| arrived.offsets.has(offset)) {
                continue;
            }
            // They are forwarded in order, so behind the first one that is kept none may be missing.
            let first = arrived.and_then(|arrived| arrived.first);
            if target.first == 0 || first.is_some_and(|first| offset > first) {
                let detail = format!("the group has passed it, but it was not forwarded to partition {to}");
                report.add(finding(Kind::CommandLost, offset, detail));
            } else {
                report.cannot_judge(Unjudged::CommandsWithoutKeptOutcome, 1);
            }
        }
        let mut arrived: Vec<_> = crossings
            .iter()
            .filter_map(|(to, crossing)| Some((to, crossing.arrived.get(&from)?)))
            .flat_map(|(to, arrived)| arrived.offsets.iter().map(move |offset| (offset, to)))
            .filter(|(offset, _)| crossing.handled.has(*offset))
            .collect();
        arrived.sort_unstable();
        for (offset, to) in arrived {
            let detail = format!("it was forwarded to partition {to}, and handled here as well");
            report.add(finding(Kind::HandledTwice, offset, detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_are_deleted_meanwhile_are_not_judged_and_those_behind_them_are() {
        let mut commands = Commands::default();
        commands.begin((10, 20));
        for offset in 10..14 {
            assert!(commands.answer(offset, Answer::new("u", &offset.to_string(), b"f", "o"), false, false));
        }
        commands.are_gone_before(12);
        assert_eq!((commands.first, commands.answers.len()), (12, 2));
        assert!(commands.answers[1] == Some(Answer::new("u", "13", b"f", "o")));
        assert!(!commands.answer(13, Answer::new("u", "13", b"f", "o"), false, false), "it has one");
        commands.are_gone_before(30);
        assert!(commands.answers.is_empty());
    }
}
