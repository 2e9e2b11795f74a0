//! Redis: one, or a cluster of three with a replica each.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::child::{self, Program};
use crate::data_dir::DataDir;
use crate::layout::Layout;
use crate::probe::{self, Probe};
use crate::supervise::{Kind, Spec};

/// How to start the node or nodes.
pub fn prepare(layout: &Layout, data: &DataDir) -> Result<Vec<Spec>> {
    let server = child::find("redis-server")?;
    if layout.redis_cluster {
        keep_ports(layout, data)?;
    }
    let node = |(i, port): (usize, u16)| {
        let (name, dir) = if layout.redis_cluster {
            (format!("redis-{}", i + 1), format!("redis-cluster/{}", i + 1))
        } else {
            ("redis".to_owned(), "redis".to_owned())
        };
        let path = data.path.join(&dir);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Spec {
            kind: Kind::Redis,
            program: Program {
                path: server.clone(),
                args: args(port, &dir, layout.redis_cluster).into_iter().map(Into::into).collect(),
                env: Vec::new(),
                dir: data.path.clone(),
                log: data.log(&name),
            },
            name,
            ready: Probe::Redis(port),
        })
    };
    layout.redis().into_iter().enumerate().map(node).collect()
}

fn args(port: u16, dir: &str, cluster: bool) -> Vec<String> {
    let port = port.to_string();
    let mut args = vec!["--bind", "127.0.0.1", "--port", &port, "--dir", dir];
    args.extend(["--appendonly", "yes", "--save", ""]);
    // What is evicted would be missing from a view without anyone noticing.
    args.extend(["--maxmemory-policy", "noeviction"]);
    if cluster {
        args.extend(["--cluster-enabled", "yes", "--cluster-node-timeout", "5000"]);
    }
    args.into_iter().map(str::to_owned).collect()
}

/// A cluster's nodes remember each other's ports, so they can't move to others.
fn keep_ports(layout: &Layout, data: &DataDir) -> Result<()> {
    let dir = data.path.join("redis-cluster");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let file = dir.join("port-offset");
    let offset = layout.offset.to_string();
    match fs::read_to_string(&file) {
        Ok(made_with) => ensure!(
            made_with == offset,
            "the Redis cluster in {} was made with --port-offset {made_with} and cannot move: \
             use that one, or start empty with --fresh",
            data.path.display()
        ),
        Err(_) => fs::write(&file, offset).with_context(|| format!("writing {}", file.display()))?,
    }
    Ok(())
}

/// Makes the running nodes one cluster, unless they are one already, and waits until it works.
pub fn join_cluster(layout: &Layout, data: &DataDir) -> Result<()> {
    let ports = layout.redis();
    let first = *ports.first().context("a cluster without nodes")?;
    if probe::redis_command(first, "CLUSTER INFO")?.contains("cluster_known_nodes:1\r") {
        let mut args = vec!["--cluster".to_owned(), "create".to_owned()];
        args.extend(ports.iter().map(|port| format!("127.0.0.1:{port}")));
        args.extend(["--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned));
        Program {
            path: child::find("redis-cli")?,
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            dir: data.path.clone(),
            log: data.log("redis-cli"),
        }
        .complete(Duration::from_secs(60))
        .context("making a cluster of the Redis nodes")?;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    for port in ports {
        while !probe::redis_command(port, "CLUSTER INFO")?.contains("cluster_state:ok") {
            if Instant::now() > deadline {
                bail!("the Redis cluster did not come together; see redis-*.log in the data folder's logs");
            }
            sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_kept_and_never_evicted() {
        let line = args(6379, "redis", false).join(" ");
        assert!(line.contains("--appendonly yes"));
        assert!(line.contains("--maxmemory-policy noeviction"));
        assert!(line.contains("--bind 127.0.0.1"));
        assert!(!line.contains("cluster"));
        assert!(args(6379, "d", true).join(" ").contains("--cluster-enabled yes"));
    }
}
