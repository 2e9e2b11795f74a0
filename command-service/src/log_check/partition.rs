//! One partition: its topics in their order, and what they tell about each other.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use millrace_shared::{
    domain::Aggregate,
    kafka::{
        bulk::Record,
        partition_of,
        source::{self, Source},
        topics::Topic,
    },
};

use super::{
    Check, Error, Finding, Kind, Report, Surroundings, Type, Unjudged,
    commands::{Commands, Crossing},
    events::Pending,
    outcomes::Outcomes,
    waiting::Waiting,
};

/// See the top of `log_check`.
pub(super) struct PartitionCheck<'a, A: Aggregate> {
    pub(super) kind: &'a Type<A>,
    pub(super) check: &'a Check,
    pub(super) partition: i32,
    pub(super) topic_id: &'a str,
    /// The group's committed offset.
    pub(super) committed: Option<i64>,
    pub(super) aggregates: Aggregates<A::State>,
    pub(super) outcomes: Outcomes,
    pub(super) commands: Commands,
    pub(super) pending: Pending,
    pub(super) waiting: Waiting,
    pub(super) report: Report,
}

/// What is known of the aggregates, by a number that is shorter than their ids.
pub(super) struct Aggregates<S> {
    numbers: HashMap<Arc<str>, u32>,
    all: Vec<OneAggregate<S>>,
}

/// What is known of one of them.
pub(super) struct OneAggregate<S> {
    pub(super) id: Arc<str>,
    pub(super) state: S,
    /// Sequence of its last event.
    pub(super) version: u64,
    pub(super) last_time: Timestamp,
    /// Something is wrong with what came before, so rules can't be judged any more.
    pub(super) broken: bool,
    /// Version that its last outcome says, once there was one.
    pub(super) judged_at: Option<u64>,
    /// It was erased.
    pub(super) erased: bool,
}

impl<S: Default> Aggregates<S> {
    /// The number of an aggregate.
    pub(super) fn number(&mut self, id: &str) -> u32 {
        if let Some(number) = self.numbers.get(id) {
            return *number;
        }
        let (number, id) = (self.all.len() as u32, Arc::<str>::from(id));
        self.numbers.insert(id.clone(), number);
        self.all.push(OneAggregate {
            id,
            state: S::default(),
            version: 0,
            last_time: Timestamp::MIN,
            broken: false,
            judged_at: None,
            erased: false,
        });
        number
    }

    /// One of them.
    pub(super) fn get(&mut self, number: u32) -> &mut OneAggregate<S> {
        &mut self.all[number as usize]
    }
}

impl<'a, A: Aggregate> PartitionCheck<'a, A> {
    pub(super) fn new(kind: &'a Type<A>, check: &'a Check, surroundings: &'a Surroundings, partition: i32) -> Self {
        Self {
            kind,
            check,
            partition,
            topic_id: &surroundings.topic_id,
            committed: surroundings.committed[partition as usize],
            aggregates: Aggregates { numbers: HashMap::new(), all: Vec::new() },
            outcomes: Outcomes::default(),
            commands: Commands::default(),
            pending: Pending::default(),
            waiting: Waiting::default(),
            report: Report::default(),
        }
    }

    /// Reads everything; the order is what makes it right on a live system (see the top of `log_check`).
    pub(super) fn run(mut self, source: &mut Source<'_>) -> Result<(Report, Crossing), Error> {
        let (kind, partition) = (self.kind, self.partition);
        let topic = |topic| kind.topic(topic);

        let (outcomes_first, outcomes_end) = source.watermarks(topic(Topic::Outcomes), partition)?;
        let commands = source.watermarks(topic(Topic::Commands), partition)?;
        self.outcomes.begin(outcomes_first);
        self.commands.begin(commands);
        source
            .read(topic(Topic::Outcomes), partition, (outcomes_first, outcomes_end), |record| self.outcome(record))?;

        let letters = source.watermarks(topic(Topic::DeadLetters), partition)?;
        source.read(topic(Topic::DeadLetters), partition, letters, |record| {
            self.dead_letter(record);
            Ok::<_, Error>(())
        })?;
        self.commands_follow(letters.0);
        self.read_commands(source, commands, Self::command)?;
        self.commands_end();

        if self.waiting.any() {
            let scheduled = source.watermarks(topic(Topic::Scheduled), partition)?;
            source.read(topic(Topic::Scheduled), partition, scheduled, |record| {
                self.scheduled(record);
                Ok::<_, Error>(())
            })?;
            let (_, end) = source.watermarks(topic(Topic::Commands), partition)?;
            self.read_commands(source, (commands.1, end), Self::put_back)?;
        }
        // Also when none had to wait: those that the outcomes read last tell of are not looked for.
        self.waiting.end();
        let events = source.watermarks(topic(Topic::Events), partition)?;
        self.events_follow(events.0);
        source.read(topic(Topic::Events), partition, events, |record| self.event(record))?;
        if self.pending.any() || self.waiting.any() {
            let (_, end) = source.watermarks(topic(Topic::Outcomes), partition)?;
            source.read(topic(Topic::Outcomes), partition, (outcomes_end, end), |record| self.outcome(record))?;
        }
        self.events_end(outcomes_end);
        self.waiting_end();
        self.report.counts.aggregates = self.aggregates.all.len() as u64;
        Ok((self.report, self.commands.crossing()))
    }

    /// Commands with personal data are deleted as soon as they are handled, also while they are to be read: what is gone
    /// can't be judged.
    fn read_commands(
        &mut self,
        source: &mut Source<'_>,
        (mut next, end): (i64, i64),
        each: fn(&mut Self, &Record<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let topic = self.kind.topic(Topic::Commands);
        loop {
            let read = source.read(topic, self.partition, (next, end), |record| {
                // Some of the last read may still come.
                if record.offset() < next {
                    return Ok(());
                }
                next = record.offset() + 1;
                each(self, record)
            });
            let Err(Error::Source(source::Error::Deleted(_))) = read else { return read };
            let (first, _) = source.watermarks(topic, self.partition)?;
            if first <= next {
                return read;
            }
            self.commands.are_gone_before(first);
            next = first;
        }
    }

    /// Reports a record.
    pub(super) fn found(
        &mut self,
        kind: Kind,
        record: &Record<'_>,
        aggregate: Option<&str>,
        detail: impl Into<String>,
    ) {
        self.report.add(Finding {
            kind,
            topic: record.topic().to_owned(),
            partition: record.partition(),
            offset: record.offset(),
            aggregate: aggregate.map(str::to_owned),
            detail: detail.into(),
        });
    }

    /// Reports what lies at an offset of a topic.
    pub(super) fn found_at(&mut self, kind: Kind, topic: Topic, offset: i64, aggregate: Option<&str>, detail: String) {
        self.report.add(Finding {
            kind,
            topic: self.kind.topic(topic).to_owned(),
            partition: self.partition,
            offset,
            aggregate: aggregate.map(str::to_owned),
            detail,
        });
    }

    /// Whether an aggregate lives here; else reports the record.
    pub(super) fn lives_here(&mut self, record: &Record<'_>, aggregate_id: &str) -> bool {
        let partition = partition_of(aggregate_id.as_bytes(), self.check.partitions);
        if partition != self.partition {
            let detail = format!("its aggregate lives in partition {partition}");
            self.found(Kind::WrongPartition, record, Some(aggregate_id), detail);
        }
        partition == self.partition
    }

    pub(super) fn cannot_judge(&mut self, what: Unjudged, count: u64) {
        self.report.cannot_judge(what, count);
    }
}
