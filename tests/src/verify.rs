//! `projector-service verify`, which says whether a deployment's views equal its log.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{Deployment, eventually, kafka, tool::Ran};

/// What a difference is about: aggregate, kind, key without its hash tag, field.
pub type Place = (Option<String>, String, String, Option<String>);

impl Deployment {
    /// Verifies the views; services may run meanwhile.
    ///
    /// # Panics
    /// When it finds anything, with all of it.
    #[track_caller]
    pub fn verify(&self) {
        let verified = self.run_verify(&[]);
        assert_eq!(
            (verified.code, verified.output.as_str()),
            (Some(0), ""),
            "the verification:\n{}\n{}",
            verified.output,
            verified.errors
        );
    }

    /// Waits until everything in the log is projected, and verifies the views.
    #[track_caller]
    pub fn verify_all(&self) {
        let topic = self.topic("events");
        let ends: Vec<i64> = (0..self.partitions).map(|partition| kafka::end(&topic, partition)).collect();
        let mut redis = self.redis();
        for (partition, end) in (0..).zip(ends) {
            eventually(&format!("projection of partition {partition} up to {end}"), || {
                let offset: Option<i64> = redis.run("HGET", &[self.view_key(partition, "meta"), "offset".to_owned()]);
                if offset >= Some(end) { Ok(()) } else { Err(format!("{offset:?}")) }
            });
        }
        self.verify();
    }

    /// Runs it with flags.
    #[track_caller]
    pub fn run_verify(&self, flags: &[&str]) -> Ran {
        self.run_projector_tool(&[&["verify", "bank-accounts"], flags].concat())
    }

    /// Verifies the views of the transfers.
    #[track_caller]
    pub fn verify_transfers(&self) {
        let verified = self.run_projector_tool(&["verify", "transfers"]);
        assert_eq!(verified.code, Some(0), "{}\n{}", verified.output, verified.errors);
    }
}

impl Ran {
    /// The places of all differences that were found.
    #[track_caller]
    pub fn differences(&self) -> BTreeSet<Place> {
        let text = |line: &Value, name: &str| line[name].as_str().map(str::to_owned);
        let place = |line: &Value| {
            let key = text(line, "key").expect("differences have keys");
            let key = key.split_once("}:").map_or(key.clone(), |(_, rest)| rest.to_owned());
            (text(line, "id"), text(line, "kind").expect("differences have kinds"), key, text(line, "field"))
        };
        self.json_lines().iter().map(place).collect()
    }
}
