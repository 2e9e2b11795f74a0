//! What follows on what a partition writes: the errands of a process, and what a process is told of their answers.
//!
//! They are commands in the same transaction as the event or the outcome that they follow on, so each is sent once, however
//! often the transaction is tried, and neither is there without the other. No consumer reads events or outcomes for it, and
//! nobody has to remember how far he has got.

use jiff::Timestamp;
use millrace_shared::{
    domain::{
        Aggregate,
        process::{Answer, Errand, StepId, When},
    },
    envelope::{CommandHeaders, names},
    kafka::{partition_of, topics::Topic},
    outcome::{Outcome, Verdict},
};

use super::{Order, Partition, Readable, caught, is_remembered, scheduling::Deadline};
use crate::{
    record::{OutRecord, Sink},
    types::CommandType,
};

/// A command that follows.
pub(super) struct Consequence {
    kind: usize,
    aggregate_id: String,
    command_id: String,
    /// Id of the event that it follows on; of the last one, when it follows on an outcome.
    cause: Option<String>,
    value: Vec<u8>,
}

/// What follows on events of a process.
#[derive(Default)]
pub(super) struct Consequences {
    pub(super) commands: Vec<Consequence>,
    pub(super) deadlines: Vec<Deadline>,
}

impl<A: Aggregate> Partition<A> {
    /// What is asked of others after events of which the first has this sequence.
    pub(super) fn errands(
        &self,
        id: &str,
        first: u64,
        at: Timestamp,
        events: &[A::Event],
    ) -> Result<Consequences, String> {
        let mut all = Consequences::default();
        if !A::IS_PROCESS {
            return Ok(all);
        }
        let mut state = self.aggregates.get(id).map(|entry| entry.state.clone()).unwrap_or_default();
        for (sequence, event) in (first..).zip(events) {
            let errands = caught(|| {
                let errands = A::react(id, &state, event);
                A::evolve(&mut state, event);
                Ok(errands)
            })?;
            for errand in errands {
                if errand.when != When::Now {
                    let deadline = self.deadline(id, (sequence, at), &errand)?;
                    all.deadlines.push(deadline);
                    continue;
                }
                all.commands.push(self.errand(id, sequence, errand)?);
            }
        }
        Ok(all)
    }

    /// An errand that is done at once, after the event with this sequence.
    pub(super) fn errand(&self, id: &str, sequence: u64, errand: Errand) -> Result<Consequence, String> {
        // Answers of the own type conclude nothing.
        let kind = self.kind_of(errand.aggregate_type).filter(|_| errand.aggregate_type != A::TYPE);
        let kind = kind.ok_or_else(|| format!("nobody serves {}, for {errand:?}", errand.aggregate_type))?;
        let step = StepId { aggregate_type: A::TYPE, aggregate_id: id, step: &errand.step_id(sequence) };
        Ok(Consequence {
            kind,
            command_id: step.to_string(),
            cause: (sequence > 0).then(|| format!("{}/{id}/{sequence}", A::TYPE)),
            value: self.settings.types[kind].encode_errand(&errand)?,
            aggregate_id: errand.aggregate_id,
        })
    }

    fn deadline(&self, id: &str, event: (u64, Timestamp), errand: &Errand) -> Result<Deadline, String> {
        if (errand.aggregate_type, errand.aggregate_id.as_str()) != (A::TYPE, id) {
            return Err(format!("a deadline is for the process itself, not for {errand:?}"));
        }
        let value = match errand.when {
            When::Never => Vec::new(),
            _ => self.context.encode_errand(errand)?,
        };
        Deadline::new((A::TYPE, id, errand.step), event, errand.when, value)
    }

    /// What a process is told when this is the outcome of an errand of its. An outcome that is not remembered may be another
    /// one next time, so it tells nothing.
    ///
    /// Its command id tells the answer: another one to the same step is another command.
    pub(super) fn conclusion(
        &self,
        command: &Readable<A::Command>,
        outcome: &Outcome,
    ) -> Result<Option<Consequence>, String> {
        // A process' own commands are no errands.
        let errand = self.step(command).filter(|(_, step)| step.aggregate_type != A::TYPE);
        let Some((kind, step)) = errand.filter(|_| is_remembered(outcome)) else { return Ok(None) };
        let (answer, told) = match outcome.outcome {
            Verdict::Accepted => (Answer::Accepted, "accepted"),
            Verdict::Rejected => (Answer::Refused(outcome.reason.as_deref().unwrap_or_default()), "refused"),
        };
        let value = caught(|| self.settings.types[kind].conclude(step.step, answer))?;
        let cause = (outcome.version > 0).then(|| format!("{}/{}/{}", A::TYPE, outcome.aggregate_id, outcome.version));
        Ok(value.map(|value| Consequence {
            kind,
            aggregate_id: step.aggregate_id.to_owned(),
            command_id: format!("{}-{told}", outcome.command_id),
            cause,
            value,
        }))
    }

    /// Whether a command that only a process may send has come under another command id than one of its steps.
    pub(super) fn is_forged(&self, command: &Readable<A::Command>) -> bool {
        let Order::Command(order) = &command.order else { return false };
        A::sender(command.aggregate_id.as_str(), order).is_some() && self.step(command).is_none()
    }

    /// Which step of which process a command is, and the index of its type. What anybody may send is none, under whatever id.
    pub(super) fn step<'a>(&self, command: &'a Readable<A::Command>) -> Option<(usize, StepId<'a>)> {
        let Order::Command(order) = &command.order else { return None };
        let sender = A::sender(command.aggregate_id.as_str(), order)?;
        let step = StepId::parse(&command.command_id)?;
        let kind = self.kind_of(step.aggregate_type)?;
        ((step.aggregate_type, step.aggregate_id) == sender).then_some((kind, step))
    }

    pub(super) fn send_consequence(
        &mut self,
        consequence: &Consequence,
        headers: &CommandHeaders,
        now_ms: i64,
        sink: &mut dyn Sink,
    ) {
        self.counts.consequences += 1;
        self.headers.clear();
        for (name, value) in [
            (names::ID, Some(consequence.command_id.as_str())),
            (names::CAUSATION_ID, consequence.cause.as_deref()),
            (names::CORRELATION_ID, headers.correlation_id.as_deref()),
            (names::TRACEPARENT, headers.traceparent.as_deref()),
        ] {
            if let Some(value) = value {
                self.headers.push(name.as_bytes(), Some(value.as_bytes()));
            }
        }
        let key = consequence.aggregate_id.as_bytes();
        let record = OutRecord {
            topic: Topic::Commands,
            partition: partition_of(key, self.settings.partitions),
            key: Some(key),
            value: Some(&consequence.value),
            headers: &self.headers,
            timestamp_ms: now_ms,
        };
        sink.send_to(consequence.kind, record);
    }

    fn kind_of(&self, aggregate_type: &str) -> Option<usize> {
        self.settings.types.iter().position(|kind| kind.info().aggregate_type == aggregate_type)
    }
}
