//! Where the views are: in one Redis, or in a cluster. All keys of a partition have one hash tag, so what is asked of one
//! partition is the same for both; this is what isn't.

use redis::{Arg, Client, Cmd, Pipeline, cluster::ClusterClient};

/// How often the cluster's client follows a redirection or tries another node before an error is told: who asks tries
/// again anyway, and knows what may be done twice.
const RETRIES: u32 = 3;

/// One Redis, or a cluster.
#[derive(Clone)]
pub enum Address {
    /// One.
    One(Client),
    /// A cluster.
    Cluster(Box<ClusterClient>),
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Addresses may hold passwords.
        f.write_str("Address")
    }
}

impl Address {
    /// By URL; of a cluster by those of some of its nodes, with commas between.
    ///
    /// # Errors
    /// When a URL is none.
    pub fn new(url: &str, cluster: bool) -> redis::RedisResult<Self> {
        if cluster {
            let nodes = url.split(',').map(str::trim);
            return Ok(Self::Cluster(Box::new(ClusterClient::builder(nodes).retries(RETRIES).build()?)));
        }
        Ok(Self::One(Client::open(url)?))
    }
}

/// A pipeline of one partition, with the places of its answers among all.
pub type Part = (Vec<usize>, Pipeline);

/// A pipeline cut into those of one partition each.
pub fn by_partition(pipe: &Pipeline) -> Vec<Part> {
    let mut parts: Vec<(Option<&[u8]>, Part)> = Vec::new();
    for (at, command) in pipe.cmd_iter().enumerate() {
        let tag = tag(command);
        let part = match parts.iter().position(|part| part.0 == tag) {
            Some(part) => part,
            None => {
                let mut part = redis::pipe();
                if pipe.is_transaction() {
                    part.atomic();
                }
                parts.push((tag, (Vec::new(), part)));
                parts.len() - 1
            }
        };
        let (places, pipe) = &mut parts[part].1;
        places.push(at);
        pipe.add_command(command.clone());
    }
    parts.into_iter().map(|(_, part)| part).collect()
}

/// The hash tag of a command's first key. Nothing before it has a brace.
fn tag(command: &Cmd) -> Option<&[u8]> {
    command.args_iter().find_map(|arg| {
        let Arg::Simple(word) = arg else { return None };
        let begin = word.iter().position(|byte| *byte == b'{')?;
        let length = word[begin..].iter().position(|byte| *byte == b'}')?;
        Some(&word[begin..begin + length])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_is_cut_by_partitions_and_remembers_the_order() {
        let mut pipe = redis::pipe();
        pipe.cmd("GET").arg("{v.v1:1}:view:a");
        pipe.cmd("EVALSHA").arg("0123").arg(1).arg("{v.v1:2}:sort:id:asc").arg("{v.v1:1}");
        pipe.cmd("GET").arg("{v.v1:1}:view:{b}");
        let parts: Vec<_> = by_partition(&pipe).into_iter().map(|(places, pipe)| (places, pipe.len())).collect();
        assert_eq!(parts, [(vec![0, 2], 2), (vec![1], 1)]);
    }

    #[test]
    fn a_url_is_told_from_none() {
        assert!(Address::new("redis://127.0.0.1:6379", false).is_ok());
        assert!(Address::new("redis://127.0.0.1:6379,redis://127.0.0.1:6380", true).is_ok());
        assert!(Address::new("redis://127.0.0.1:6379,redis:/127", true).is_err());
        assert!(Address::new("127.0.0.1", false).is_err());
    }
}
