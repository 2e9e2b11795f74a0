//! The consumer group of a deployment's command topics, as an administrator sees and changes it.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    groups::GroupMemberInfo,
};

use crate::{Deployment, eventually};

const LIMIT: Duration = Duration::from_secs(30);

impl Deployment {
    /// Name of the group.
    pub fn group(&self) -> String {
        format!("{}.command", self.prefix)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.env["MILLRACE_KAFKA_BOOTSTRAP"]).set("group.id", self.group());
        config
    }

    fn consumer(&self) -> BaseConsumer {
        self.client().set("isolation.level", "read_uncommitted").create().expect("a consumer can be made")
    }

    /// Which instance the group has given each command partition to; nothing while it is rebalancing.
    pub fn owners(&self) -> BTreeMap<i32, String> {
        let Ok(groups) = self.consumer().fetch_group_list(Some(&self.group()), LIMIT) else { return BTreeMap::new() };
        let mut owners = BTreeMap::new();
        for group in groups.groups().iter().filter(|group| group.state() == "Stable") {
            for member in group.members() {
                let partitions = assigned(member.assignment().unwrap_or_default(), &self.topic("commands"));
                owners.extend(partitions.into_iter().flatten().map(|partition| (partition, instance(member))));
            }
        }
        owners
    }

    /// The instances that are members of the group.
    #[track_caller]
    pub fn members(&self) -> Vec<String> {
        let groups = self.consumer().fetch_group_list(Some(&self.group()), LIMIT).expect("the broker answers");
        groups.groups().iter().flat_map(|group| group.members()).map(instance).collect()
    }

    /// Waits until the group has given out every partition as it is to be.
    #[track_caller]
    pub fn wait_for_owners(&self, what: &str, fine: impl Fn(&BTreeMap<i32, String>) -> bool) -> BTreeMap<i32, String> {
        let all = usize::try_from(self.partitions).expect("a count");
        eventually(what, || {
            let owners = self.owners();
            if owners.len() == all && fine(&owners) { Ok(owners) } else { Err(format!("{owners:?}")) }
        })
    }

    /// Waits until one instance owns all partitions.
    #[track_caller]
    pub fn wait_for_owner(&self, instance: &str) {
        self.wait_for_owners(&format!("partitions that all belong to {instance}"), |owners| {
            owners.values().all(|owner| owner == instance)
        });
    }

    /// Deletes the group, with its committed offsets; it must have no members.
    #[track_caller]
    pub fn delete_group(&self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("a client can be made");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be made");
        let group = self.group();
        let deleted = runtime.block_on(admin.delete_groups(&[&group], &AdminOptions::new()));
        for result in deleted.expect("the broker answers") {
            result.expect("a group without members can be deleted");
        }
    }

    /// The committed offset of each command partition.
    #[track_caller]
    pub fn committed(&self) -> BTreeMap<i32, Option<i64>> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(&self.topic("commands"), 0, self.partitions - 1);
        let answered = self.consumer().committed_offsets(asked, LIMIT).expect("the broker answers");
        let offset = |offset| match offset {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        answered.elements().iter().map(|element| (element.partition(), offset(element.offset()))).collect()
    }

    /// Where a partition of a topic ends, open transactions included.
    #[track_caller]
    pub fn end_of(&self, suffix: &str, partition: i32) -> i64 {
        self.consumer().fetch_watermarks(&self.topic(suffix), partition, LIMIT).expect("the broker answers").1
    }

    /// Sets committed offsets; the group must have no members.
    #[track_caller]
    pub fn set_committed(&self, offsets: &BTreeMap<i32, i64>) {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&self.topic("commands"), *partition, Offset::Offset(*offset)).expect("an offset");
        }
        self.consumer().commit(&list, CommitMode::Sync).expect("offsets can be set");
    }
}

/// The instance that a member is.
fn instance(member: &GroupMemberInfo) -> String {
    member.client_id().trim_start_matches("millrace-command-").to_owned()
}

/// The partitions of a topic in an assignment of Kafka's consumer protocol: version, then for each topic its name and
/// partitions. `None` when it is cut short.
fn assigned(mut bytes: &[u8], wanted: &str) -> Option<Vec<i32>> {
    let _version: [u8; 2] = take(&mut bytes)?;
    let topics = i32::from_be_bytes(take(&mut bytes)?);
    for _ in 0..topics {
        let length = usize::try_from(i16::from_be_bytes(take(&mut bytes)?)).ok()?;
        let (name, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        let count = i32::from_be_bytes(take(&mut bytes)?);
        let partitions = (0..count).map(|_| take(&mut bytes).map(i32::from_be_bytes)).collect::<Option<Vec<_>>>()?;
        if name == wanted.as_bytes() {
            return Some(partitions);
        }
    }
    Some(Vec::new())
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}
