//! Committed offsets that are lost or set back: what was decided is learnt from the outcomes.

use std::collections::BTreeMap;

use millrace_tests::{
    Deployment, commands, eventually,
    kafka::{Draft, Producer},
    ledger,
    load::Load,
    services::{new_id, open_at},
    side_by_side,
};

use crate::deployment;

/// What becomes of the group's offsets while no instance runs.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Deleted,
    SetBack,
    /// Of one partition only, and by a little.
    OneSetBack,
}

#[test]
fn g01_g02_lost_offsets_are_repaired_from_the_outcomes() {
    side_by_side(&[Fate::Deleted, Fate::SetBack, Fate::OneSetBack], |fate| {
        // A local store that is written behind a forwarded command knows that it was handled; outcomes don't.
        let deployment = deployment().with("MILLRACE_STORE_INTERVAL_MS", "3600000");
        let mut service = deployment.command_service("c1");
        let load = Load::start(vec![service.url()], 4, 12);
        load.wait_for_more(60);
        let (told, _) = load.stop();
        // The last things that happen to a partition leave no outcome there: forwarded commands, and one without an id.
        let (topic, producer) = (deployment.topic("commands"), Producer::new("murmur2_random"));
        let id = new_id();
        producer.send(&topic, &Draft::new(&id, commands::open("Grace", "EUR")).header("ce_id", "open"));
        for partition in (0..deployment.partitions).chain(0..deployment.partitions) {
            producer.send(&topic, &Draft::new(&id, commands::deposit(1)).to(partition));
        }
        let deposits = 2 * usize::try_from(deployment.partitions).expect("a count");
        eventually("all deposits", || match deployment.events(&id).len() - 1 {
            found if found == deposits => Ok(()),
            found => Err(format!("{found} of {deposits}")),
        });
        service.terminate();
        let before = deployment.committed();
        let was = |partition| before[&partition].expect("it was committed");
        // Waits for its instance as well.
        producer.send(&topic, &Draft::new(&id, commands::deposit(1)).header("ce_id", "meanwhile"));
        let ended = deployment.read("events").len();
        match fate {
            Fate::Deleted => deployment.delete_group(),
            Fate::SetBack => deployment.set_committed(&(0..deployment.partitions).map(|p| (p, 0)).collect()),
            Fate::OneSetBack => {
                let partition = deployment.partition_of(&id);
                deployment.set_committed(&BTreeMap::from([(partition, was(partition) - 4)]));
            }
        }
        service.start_again();
        deployment.outcome("meanwhile");
        // The partition whose offset is set back is the account's own, from which nothing is forwarded.
        let again = if matches!(fate, Fate::OneSetBack) { 0 } else { 1 };
        // Behind all that there was to be read again; and once more, behind what that may have forwarded.
        for partition in (0..deployment.partitions).chain(0..deployment.partitions) {
            open_at(&service, &deployment.id_in(partition), "Ada");
        }
        only_forwarded_twice(&deployment, again);
        ledger::compare(&deployment, &told, &service, 100);
        let opened = 2 * usize::try_from(deployment.partitions).expect("a count");
        let events = deployment.read("events").len();
        assert_eq!(events, ended + 1 + opened, "something was decided twice, or not at all");
        // Once something is decided in each partition, the group's offsets are as they should be again.
        let load = Load::start(vec![service.url()], 2, 12);
        load.wait_for_more(30);
        let (told, _) = load.stop();
        service.terminate();
        let after = deployment.committed();
        for (partition, offset) in &after {
            assert!(*offset > Some(was(*partition)), "{partition}: {offset:?} after {before:?}");
        }
        service.start_again();
        only_forwarded_twice(&deployment, again);
        ledger::compare(&deployment, &told, &service, 30);
    });
}

/// What was forwarded behind the last outcome of its partition is forwarded again: that leaves no outcome there. The
/// second one is a repeat where it arrives, and decided once, so the log check counts it and finds nothing.
#[track_caller]
fn only_forwarded_twice(deployment: &Deployment, at_least: u64) {
    let checked = deployment.log_check_json();
    assert_eq!(checked["findings"], 0, "{checked}");
    let again = checked["types"]["bank-account"]["records"]["forwarded_again"].as_u64();
    assert!(again.is_some_and(|again| again >= at_least), "{checked}");
}
