//! Going through the sorted sets of all partitions in one order.

use std::{cmp::Ordering, collections::VecDeque};

use millrace_shared::{
    domain::{Aggregate, Projection, Sort},
    problem::Problem,
    views::{BY_ID, script},
};
use redis::Script;

use crate::{
    cursor::Place,
    edition::Edition,
    service::{Service, View},
};

/// Entries of one partition that are read at a time, at least and at most.
const CHUNK: std::ops::RangeInclusive<usize> = 16..=256;

/// The order of a list.
pub struct Order<A: Aggregate> {
    /// By what.
    pub sort: &'static Sort<View<A>>,
    /// From large to small.
    pub descending: bool,
}

impl<A: Aggregate> Order<A> {
    /// Reads `balance_minor` or `-balance_minor`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, descending) = text.strip_prefix('-').map_or((text, false), |name| (name, true));
        let sorts = A::Projection::SORTS;
        let sort = sorts.iter().find(|sort| sort.name == name).ok_or_else(|| {
            let names: Vec<&str> = sorts.iter().map(|sort| sort.name).collect();
            format!("must be one of {}, with a - before it to descend", names.join(", "))
        })?;
        Ok(Self { sort, descending })
    }

    /// As the caller spells it.
    pub fn name(&self) -> String {
        format!("{}{}", if self.descending { "-" } else { "" }, self.sort.name)
    }

    /// Where a view stands.
    pub fn place(&self, id: &str, view: &View<A>) -> Place {
        let key = (self.sort.key)(view);
        Place { score: if self.descending { -key } else { key }, id: id.to_owned() }
    }

    /// Whether ids run backwards: only where the id is what is sorted by; as a tie-break they always rise.
    fn ids_descend(&self) -> bool {
        self.descending && self.sort.name == BY_ID
    }

    /// Which of two places comes first.
    pub fn compare(&self, a: &Place, b: &Place) -> Ordering {
        let ids = if self.ids_descend() { b.id.cmp(&a.id) } else { a.id.cmp(&b.id) };
        a.score.cmp(&b.score).then(ids)
    }
}

/// Merges the partitions' sets.
pub struct Scan<'a, A: Aggregate> {
    service: &'a Service<A>,
    edition: &'a Edition,
    order: &'a Order<A>,
    script: Script,
    partitions: Vec<Partition>,
    chunk: usize,
    /// Entries that were read.
    pub read: usize,
}

struct Partition {
    ahead: VecDeque<Place>,
    /// Where the next chunk begins: behind this.
    behind: Option<Place>,
    ended: bool,
}

impl<'a, A: Aggregate> Scan<'a, A> {
    /// From behind a place on, or from the beginning. `wanted`: about how many will be taken.
    pub fn new(
        service: &'a Service<A>,
        edition: &'a Edition,
        order: &'a Order<A>,
        behind: Option<&Place>,
        wanted: usize,
    ) -> Self {
        let partitions: Vec<Partition> = edition
            .keys
            .iter()
            .map(|_| Partition { ahead: VecDeque::new(), behind: behind.cloned(), ended: false })
            .collect();
        let chunk = (wanted * 2 / partitions.len().max(1)).clamp(*CHUNK.start(), *CHUNK.end());
        Self { service, edition, order, script: script::page(), partitions, chunk, read: 0 }
    }

    /// The next `count` places in order, with their partitions; fewer at the end.
    pub async fn next(&mut self, count: usize) -> Result<Vec<(usize, Place)>, Problem> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let starved = |partition: &Partition| partition.ahead.is_empty() && !partition.ended;
            if self.partitions.iter().any(starved) {
                self.refill().await?;
                continue;
            }
            let order = self.order;
            let heads = self.partitions.iter().enumerate().filter_map(|(at, p)| Some((at, p.ahead.front()?)));
            let Some((first, _)) = heads.min_by(|(_, a), (_, b)| order.compare(a, b)) else { break };
            taken.extend(self.partitions[first].ahead.pop_front().map(|place| (first, place)));
        }
        Ok(taken)
    }

    async fn refill(&mut self) -> Result<(), Problem> {
        let mut pipe = redis::pipe();
        let mut asked = Vec::new();
        for (at, partition) in self.partitions.iter().enumerate() {
            if !partition.ahead.is_empty() || partition.ended {
                continue;
            }
            asked.push(at);
            let behind = partition.behind.as_ref();
            if self.order.sort.name == BY_ID {
                let key = self.edition.keys[at].sort(BY_ID, false);
                let (command, begin, end) =
                    if self.order.ids_descend() { ("ZREVRANGEBYLEX", "+", "-") } else { ("ZRANGEBYLEX", "-", "+") };
                let begin = behind.map_or_else(|| begin.to_owned(), |place| format!("({}", place.id));
                pipe.cmd(command).arg(key).arg(begin).arg(end).arg("LIMIT").arg(0).arg(self.chunk);
            } else {
                let key = self.edition.keys[at].sort(self.order.sort.name, self.order.descending);
                let (score, id) =
                    behind.map_or_else(Default::default, |place| (place.score.to_string(), place.id.clone()));
                pipe.invoke_script(self.script.key(key).arg(score).arg(id).arg(self.chunk));
            }
        }
        let pages: Vec<Vec<String>> = self.service.means.store.ask_with(&pipe, &self.script).await?;
        for (at, page) in asked.into_iter().zip(pages) {
            let places: Vec<Place> = if self.order.sort.name == BY_ID {
                page.into_iter().map(|id| Place { score: 0, id }).collect()
            } else {
                page.chunks_exact(2)
                    .filter_map(|pair| Some(Place { score: score(&pair[1])?, id: pair[0].clone() }))
                    .collect()
            };
            self.read += places.len();
            let partition = &mut self.partitions[at];
            partition.ended = places.len() < self.chunk;
            partition.behind = places.last().cloned().or_else(|| partition.behind.take());
            partition.ahead = places.into();
        }
        // Who goes on reading reads much.
        self.chunk = (self.chunk * 2).min(*CHUNK.end());
        Ok(())
    }
}

/// Redis writes a score as `42`, or as `4.2e+16`; ours are whole and below 2^53.
fn score(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| text.parse::<f64>().ok().map(|score| score as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_shared::domain::bank_account::BankAccount;

    fn order(text: &str) -> Order<BankAccount> {
        Order::parse(text).unwrap()
    }

    fn place(score: i64, id: &str) -> Place {
        Place { score, id: id.into() }
    }

    #[test]
    fn ties_go_by_id_in_both_directions_and_ids_alone_follow_theirs() {
        for name in ["balance_minor", "-balance_minor", "id"] {
            assert_eq!(order(name).compare(&place(1, "a"), &place(1, "b")), Ordering::Less, "{name}");
            assert_eq!(order(name).name(), name);
        }
        assert_eq!(order("-id").compare(&place(0, "a"), &place(0, "b")), Ordering::Greater);
    }

    #[test]
    fn g13_only_the_orders_of_the_domain_are_known() {
        for bad in ["", "-", "owner", "--id", "ID"] {
            assert!(Order::<BankAccount>::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn scores_are_read_however_redis_writes_them() {
        assert_eq!(score("-42"), Some(-42));
        assert_eq!(score("1.7e+15"), Some(1_700_000_000_000_000));
    }
}
