//! The settings of topics that were there already: what Millrace needs, against what they have.
//!
//! Topics outlive releases, and operators change them. What would break a guarantee is refused, what endangers one is
//! warned of, each with the command that mends it. Everything else is the operators' own: tiered storage, compression,
//! segments and so on are neither looked at nor changed.

use std::{collections::HashMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
};

use super::{
    Logged, REQUEST_TIMEOUT,
    topics::{Error, MAX_COMMAND_BYTES, Names, Shape, Topic, futures_block, outcome_retention},
};
use crate::domain::AggregateInfo;

/// Kafka's default for `max.message.bytes`, up to which our producers fill a batch.
const DEFAULT_MAX_BYTES: i64 = 1_048_588;

/// A setting that is not as it should be.
#[derive(Debug, PartialEq)]
struct Difference {
    setting: &'static str,
    actual: String,
    wanted: String,
    why: &'static str,
    /// Whether a guarantee is broken, rather than endangered.
    breaks: bool,
}

/// Compares all topics of the types. Blocks.
pub(super) fn compare(
    (bootstrap, watcher, admin): (&str, &BaseConsumer<Logged>, &AdminClient<DefaultClientContext>),
    names: &Names,
    types: &[AggregateInfo],
    shape: &Shape,
) -> Result<(), Error> {
    let named = |of: &AggregateInfo| {
        let aggregate_type = of.aggregate_type;
        Topic::of(of.is_personal).map(move |topic| (names.topic(aggregate_type, topic), topic))
    };
    let topics: Vec<(String, Topic)> = types.iter().flat_map(named).collect();
    let asked: Vec<_> = topics.iter().map(|(name, _)| ResourceSpecifier::Topic(name)).collect();
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let answers = futures_block(admin.describe_configs(&asked, &options))?;
    let mut broken = Vec::new();
    for answer in answers {
        let resource = match answer {
            Ok(resource) => resource,
            Err(error) => {
                tracing::warn!(%error, "the settings of a topic can't be read, so they are not checked");
                continue;
            }
        };
        let OwnedResourceSpecifier::Topic(name) = &resource.specifier else { continue };
        let Some((_, topic)) = topics.iter().find(|(known, _)| known == name) else { continue };
        let metadata = watcher.fetch_metadata(Some(name), REQUEST_TIMEOUT)?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let replicas = partitions.map(|partition| partition.replicas().len()).min().unwrap_or(0);
        let found = differences(*topic, shape, replicas, &values(&resource));
        if found.is_empty() {
            continue;
        }
        let breaks = found.iter().any(|difference| difference.breaks);
        let text = told(bootstrap, name, &found);
        if breaks {
            broken.push(text);
        } else {
            tracing::warn!("{text}");
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Error::Settings(broken.join("\n"))) }
}

fn values(resource: &ConfigResource) -> HashMap<&str, &str> {
    resource.entries.iter().filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?))).collect()
}

fn told(bootstrap: &str, name: &str, found: &[Difference]) -> String {
    let each: Vec<_> =
        found.iter().map(|d| format!("{} is {}, but should be {}: {}", d.setting, d.actual, d.wanted, d.why)).collect();
    let wanted: Vec<_> = found.iter().map(|d| format!("{}={}", d.setting, d.wanted)).collect();
    format!(
        "topic {name}: {}. To mend it: kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics \
         --entity-name {name} --add-config {}",
        each.join("; "),
        wanted.join(",")
    )
}

/// What is wrong with a topic. A setting that its broker does not know is left out.
fn differences(topic: Topic, shape: &Shape, replicas: usize, have: &HashMap<&str, &str>) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut differs = |setting: &'static str, wanted: String, why: &'static str, breaks: bool| {
        let actual = have.get(setting).map(|value| (*value).to_owned()).unwrap_or_default();
        found.push(Difference { setting, actual, wanted, why, breaks });
    };
    let number = |setting: &str| have.get(setting).and_then(|value| value.parse::<i64>().ok());
    let is = |setting: &str, value: &str| have.get(setting).is_some_and(|actual| *actual == value);

    let policy = |policy: &str| have.get("cleanup.policy").is_some_and(|all| all.split(',').any(|one| one == policy));
    if matches!(topic, Topic::Snapshots | Topic::Scheduled | Topic::Keys) {
        let why = match topic {
            Topic::Scheduled => "commands that wait for long would be deleted",
            Topic::Keys => "keys would be deleted, and everybody's personal data would be lost with them",
            _ => "states of quiet aggregates would be deleted",
        };
        if !policy("compact") || policy("delete") {
            differs("cleanup.policy", "compact".into(), why, true);
        }
    } else if policy("compact") {
        let why = match topic {
            Topic::Events => "compaction deletes all but the last event of each aggregate",
            Topic::Commands => "compaction deletes commands before they are decided",
            Topic::Outcomes => "compaction deletes answers, and then a repeated command has a second effect",
            Topic::DeadLetters => "a compacted topic takes no record without a key, and its partition would stop",
            Topic::Snapshots | Topic::Scheduled | Topic::Keys => "",
        };
        differs("cleanup.policy", "delete".into(), why, true);
    }

    let kept_below = |setting: &str, least: i64| number(setting).is_some_and(|kept| (0..least).contains(&kept));
    match topic {
        Topic::Events => {
            for setting in ["retention.ms", "retention.bytes"] {
                if kept_below(setting, i64::MAX) {
                    differs(setting, "-1".into(), "events are the only truth, and Kafka would delete them", true);
                }
            }
        }
        Topic::Commands => {
            for setting in ["retention.ms", "retention.bytes"] {
                if kept_below(setting, i64::MAX) {
                    let why = "Kafka would delete commands that wait, and those of an import at once, as it counts from \
                               their time stamps; command-service deletes what was handled";
                    differs(setting, "-1".into(), why, false);
                }
            }
        }
        Topic::Outcomes => {
            let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
            let wanted = millis(outcome_retention(shape));
            if kept_below("retention.ms", millis(shape.idempotency_window)) {
                let why = "it is shorter than MILLRACE_IDEMPOTENCY_WINDOW, and a repeated command would have a second \
                           effect after a restart";
                differs("retention.ms", wanted.to_string(), why, true);
            } else if kept_below("retention.ms", wanted) {
                let why = "it is shorter than commands are kept, and then some are never deleted";
                differs("retention.ms", wanted.to_string(), why, false);
            }
            if kept_below("retention.bytes", i64::MAX) {
                let why = "answers may be deleted before MILLRACE_IDEMPOTENCY_WINDOW has passed";
                differs("retention.bytes", "-1".into(), why, false);
            }
        }
        Topic::Keys => {
            for setting in ["segment.ms", "max.compaction.lag.ms"] {
                let wanted = i64::try_from(shape.forget_within.as_millis()).unwrap_or(i64::MAX);
                if number(setting).is_some_and(|actual| actual > wanted) {
                    let why = "destroyed keys would lie in the brokers' files for longer than MILLRACE_FORGET_WITHIN";
                    differs(setting, wanted.to_string(), why, false);
                }
            }
        }
        Topic::Snapshots | Topic::DeadLetters | Topic::Scheduled => {}
    }

    if is("message.timestamp.type", "LogAppendTime") {
        let mut differs = |why, breaks| differs("message.timestamp.type", "CreateTime".into(), why, breaks);
        match topic {
            Topic::Commands => {
                differs(
                    "commands lose their own time stamps, by which their events are dated, and imports their past",
                    false,
                );
            }
            Topic::Outcomes => {
                let why = "a restart looks for the window's first answers by time stamps; by a broker's clock that is \
                           behind it would miss some, and a repeated command would have a second effect";
                differs(why, true);
            }
            Topic::Events | Topic::Snapshots | Topic::DeadLetters | Topic::Scheduled | Topic::Keys => {}
        }
    }
    if number("message.timestamp.after.max.ms").is_some_and(|limit| limit < i64::MAX) {
        let why = "a partition would stop while a clock is set back by more than that";
        differs("message.timestamp.after.max.ms", i64::MAX.to_string(), why, false);
    }
    let max_bytes = number("max.message.bytes").unwrap_or(i64::MAX);
    match topic {
        Topic::Commands => {}
        Topic::DeadLetters if max_bytes < 2 * MAX_COMMAND_BYTES as i64 => {
            let why = "a large command that can't be handled could not be kept, and its partition would stop";
            differs("max.message.bytes", (2 * MAX_COMMAND_BYTES).to_string(), why, false);
        }
        Topic::Events | Topic::Outcomes | Topic::Snapshots | Topic::Scheduled | Topic::Keys
            if max_bytes < DEFAULT_MAX_BYTES =>
        {
            let why = "full batches are larger, and their partition would stop";
            differs("max.message.bytes", DEFAULT_MAX_BYTES.to_string(), why, false);
        }
        Topic::Events | Topic::Outcomes | Topic::Snapshots | Topic::DeadLetters | Topic::Scheduled | Topic::Keys => {}
    }
    if replicas > 1 {
        let in_sync = number("min.insync.replicas").unwrap_or(2);
        if in_sync < 2 {
            let why = "what was acknowledged may lie on one broker only, and be lost with it";
            differs("min.insync.replicas", "2".into(), why, false);
        }
        if is("unclean.leader.election.enable", "true") {
            let why = "a broker that lags may become leader, and what it lacks is lost";
            differs("unclean.leader.election.enable", "false".into(), why, false);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const SHAPE: Shape = Shape {
        partitions: 3,
        replication_factor: -1,
        idempotency_window: DAY,
        commands_retention: DAY,
        forget_within: Duration::from_secs(600),
    };

    /// Settings that differ, and whether that breaks something.
    fn found(topic: Topic, replicas: usize, have: &[(&str, &str)]) -> Vec<(&'static str, bool)> {
        let have = have.iter().copied().collect();
        differences(topic, &SHAPE, replicas, &have).into_iter().map(|d| (d.setting, d.breaks)).collect()
    }

    #[test]
    fn g01_a_topic_as_we_make_it_has_no_differences() {
        for topic in Topic::ALL {
            let settings = topic.settings(&SHAPE);
            let have: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(found(topic, 1, &have), [], "{topic:?}");
            let others = [("remote.storage.enable", "true"), ("local.retention.ms", "1000"), ("segment.ms", "1")];
            assert_eq!(found(topic, 3, &[&have[..], &others, &[("min.insync.replicas", "2")]].concat()), []);
        }
    }

    #[test]
    fn g01_what_breaks_a_guarantee_is_told_from_what_endangers_one() {
        use Topic::{Commands, DeadLetters, Events, Keys, Outcomes, Snapshots};
        for (topic, setting, value, breaks) in [
            (Events, "cleanup.policy", "compact", true),
            (Events, "cleanup.policy", "compact,delete", true),
            (Events, "retention.ms", "604800000", true),
            (Events, "retention.bytes", "1000000", true),
            (Events, "max.message.bytes", "1000", false),
            (Commands, "cleanup.policy", "compact", true),
            (Commands, "retention.ms", "604800000", false),
            (Commands, "message.timestamp.type", "LogAppendTime", false),
            (Outcomes, "cleanup.policy", "compact", true),
            (Outcomes, "retention.ms", "3600000", true),
            (Outcomes, "retention.ms", "90000000", false),
            (Outcomes, "message.timestamp.type", "LogAppendTime", true),
            (Outcomes, "message.timestamp.after.max.ms", "3600000", false),
            (DeadLetters, "cleanup.policy", "compact", true),
            (DeadLetters, "max.message.bytes", "1048588", false),
        ] {
            assert_eq!(found(topic, 1, &[(setting, value)]), [(setting, breaks)], "{topic:?} {setting}={value}");
        }
        assert_eq!(found(Snapshots, 1, &[("cleanup.policy", "delete")]), [("cleanup.policy", true)]);
        assert_eq!(found(Keys, 1, &[("cleanup.policy", "compact,delete")]), [("cleanup.policy", true)]);
        assert_eq!(
            found(Keys, 1, &[("cleanup.policy", "compact"), ("segment.ms", "604800000")]),
            [("segment.ms", false)]
        );
        let have = [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")];
        assert_eq!(found(Events, 1, &have), []);
        assert_eq!(found(Events, 3, &have), have.map(|(setting, _)| (setting, false)));
    }
}
