//! A Redis Cluster of one's own: three nodes with a replica each, that may be hurt.

use std::{net::TcpListener, process::Command, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    Stack,
    process::{self, Process, free_port, run},
    redis::Client,
    wait::{PATIENCE, eventually_within},
};

const NODES: usize = 6;
const LIMIT: Duration = PATIENCE;

/// It.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    port: u16,
    command: Command,
    process: Process,
}

/// What a node says of another one.
#[derive(Debug)]
struct Member {
    port: u16,
    master: bool,
    slots: Vec<(u16, u16)>,
}

/// Which node, by number.
pub type Number = usize;

impl RedisCluster {
    /// Starts six nodes and makes them one cluster.
    #[track_caller]
    pub fn start() -> Self {
        let nodes: Vec<Node> = (0..NODES).map(|_| Node::start()).collect();
        let cluster = Self { nodes };
        eventually_within(LIMIT, "nodes that answer", || cluster.info(0..NODES, "redis_version:").map(drop));
        let mut create = process::command("redis-cli");
        create.args(["--cluster", "create"]).args(cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let created = run(create, LIMIT);
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        cluster.wait_whole();
        cluster
    }

    /// For `MILLRACE_REDIS_URL`.
    pub fn urls(&self) -> String {
        self.nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
    }

    /// A connection to one node.
    #[track_caller]
    pub fn node(&self, number: Number) -> Client {
        Client::new(&self.nodes[number].url())
    }

    /// The node that has a key.
    #[track_caller]
    pub fn owner(&self, key: &str) -> Number {
        self.owner_says(self.alive(), key).expect("each slot has an owner")
    }

    /// The node that has a key, by what one of them says.
    fn owner_says(&self, number: Number, key: &str) -> Option<Number> {
        let slot = self.slot(key);
        let has =
            |member: &Member| member.master && member.slots.iter().any(|(from, to)| (*from..=*to).contains(&slot));
        let owner = self.members(number).into_iter().find(has)?;
        Some(self.number(owner.port))
    }

    /// Waits until all nodes but a dead one know who has a key now.
    #[track_caller]
    pub fn wait_taken_over(&self, key: &str, dead: Number) {
        eventually_within(LIMIT, "a replica in its place", || {
            let owners = (0..NODES).filter(|number| *number != dead).map(|number| self.owner_says(number, key));
            let owners: Vec<_> = owners.collect();
            let agree = owners.iter().all(|owner| owner.is_some_and(|owner| owner != dead) && *owner == owners[0]);
            if agree { Ok(()) } else { Err(format!("{owners:?}")) }
        });
    }

    /// A node with slots that isn't this one.
    #[track_caller]
    pub fn another_master(&self, than: Number) -> Number {
        let masters = self.members(self.alive()).into_iter().filter(|member| member.master && !member.slots.is_empty());
        masters.map(|member| self.number(member.port)).find(|number| *number != than).expect("there are three")
    }

    /// Begins to move a key's slot, and moves half of its keys.
    #[track_caller]
    pub fn begin_move(&self, key: &str, to: Number) {
        let (slot, from) = (self.slot(key).to_string(), self.owner(key));
        let (from_id, to_id) = (self.id(from), self.id(to));
        self.node(to).run::<()>("CLUSTER", &["SETSLOT", &slot, "IMPORTING", &from_id]);
        self.node(from).run::<()>("CLUSTER", &["SETSLOT", &slot, "MIGRATING", &to_id]);
        let half =
            eventually_within(LIMIT, "slot with keys to move and to leave", || match self.count(&slot, from) / 2 {
                0 => Err("there are fewer than two".to_owned()),
                half => Ok(half),
            });
        self.move_some(&slot, half, from, to);
    }

    /// Moves the rest, and gives the slot away.
    #[track_caller]
    pub fn end_move(&self, key: &str, to: Number) {
        let (slot, from, to_id) = (self.slot(key).to_string(), self.owner(key), self.id(to));
        while let left @ 1.. = self.count(&slot, from) {
            self.move_some(&slot, left, from, to);
        }
        for number in [to, from] {
            self.node(number).run::<()>("CLUSTER", &["SETSLOT", &slot, "NODE", &to_id]);
        }
    }

    fn move_some(&self, slot: &str, count: usize, from: Number, to: Number) {
        let mut node = self.node(from);
        let keys: Vec<String> = node.run("CLUSTER", &["GETKEYSINSLOT", slot, &count.to_string()]);
        let port = self.nodes[to].port.to_string();
        let words = ["127.0.0.1", &port, "", "0", "5000", "KEYS"].map(str::to_owned);
        node.run::<()>("MIGRATE", &[words.to_vec(), keys].concat());
    }

    /// Keys that a node has in a slot.
    fn count(&self, slot: &str, number: Number) -> usize {
        self.node(number).run("CLUSTER", &["COUNTKEYSINSLOT", slot])
    }

    /// kill -9.
    #[track_caller]
    pub fn kill(&mut self, number: Number) {
        self.nodes[number].process.end(Signal::SIGKILL, LIMIT);
    }

    /// Starts a node again after its end, and waits until all agree.
    #[track_caller]
    pub fn start_again(&mut self, number: Number) {
        let node = &mut self.nodes[number];
        node.process = Process::start(&node.command, &log(node.port));
        self.wait_whole();
    }

    #[track_caller]
    fn wait_whole(&self) {
        eventually_within(LIMIT, "a cluster whose nodes agree", || {
            let states = self.info(0..NODES, "cluster_state:")?;
            let known = self.info(0..NODES, "cluster_known_nodes:")?;
            let replicas = (0..NODES).flat_map(|number| self.members(number)).filter(|member| !member.master).count();
            let whole = states.iter().all(|state| state == "ok") && known.iter().all(|known| known == "6");
            if whole && replicas == NODES * 3 { Ok(()) } else { Err(format!("{states:?} {known:?} {replicas}")) }
        });
    }

    /// A line of what nodes say about themselves.
    fn info(&self, numbers: std::ops::Range<Number>, name: &str) -> Result<Vec<String>, String> {
        let of = |number: Number| {
            let client = redis::Client::open(self.nodes[number].url()).map_err(|error| error.to_string())?;
            let mut connection = client.get_connection().map_err(|error| error.to_string())?;
            let mut command = if name.starts_with("cluster_") { redis::cmd("CLUSTER") } else { redis::cmd("INFO") };
            if name.starts_with("cluster_") {
                command.arg("INFO");
            }
            let text: String = command.query(&mut connection).map_err(|error| error.to_string())?;
            let value = text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
            value.ok_or_else(|| format!("no {name} in {text}"))
        };
        numbers.map(of).collect()
    }

    fn slot(&self, key: &str) -> u16 {
        self.node(self.alive()).run("CLUSTER", &["KEYSLOT", key])
    }

    fn id(&self, number: Number) -> String {
        self.node(number).run("CLUSTER", &["MYID"])
    }

    /// Some node that runs.
    fn alive(&self) -> Number {
        let runs = |number: &Number| self.info(*number..number + 1, "redis_version:").is_ok();
        (0..NODES).find(runs).expect("some node runs")
    }

    fn number(&self, port: u16) -> Number {
        self.nodes.iter().position(|node| node.port == port).expect("it is one of ours")
    }

    /// What one node says of all.
    fn members(&self, number: Number) -> Vec<Member> {
        let text: String = self.node(number).run("CLUSTER", &["NODES"]);
        text.lines().filter_map(Member::read).collect()
    }
}

impl Member {
    /// `<id> <ip:port@bus> <flags> <master> <ping> <pong> <epoch> <state> <slots>…`
    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let (_, port) = words.get(1)?.split_once('@')?.0.rsplit_once(':')?;
        let flags: Vec<&str> = words.get(2)?.split(',').collect();
        let slot = |word: &&str| {
            let (from, to) = word.split_once('-').unwrap_or((word, word));
            Some((from.parse().ok()?, to.parse().ok()?))
        };
        Some(Self {
            port: port.parse().ok()?,
            master: flags.contains(&"master") && !flags.contains(&"fail"),
            slots: words.iter().skip(8).filter_map(slot).collect(),
        })
    }
}

fn log(port: u16) -> std::path::PathBuf {
    Stack::shared().log(&format!("redis-node-{port}"))
}

impl Node {
    fn start() -> Self {
        // The nodes' own bus is at a port 10,000 higher.
        let port = (0..100).map(|_| free_port()).find(|port| TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok());
        let port = port.expect("some port of two is free");
        let dir = Stack::shared().dir.join(format!("redis-node-{port}"));
        std::fs::create_dir_all(&dir).expect("the scratch folder is writable");
        let mut command = process::command("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--appendonly", "yes", "--save", ""]);
        command.args(["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0"]);
        command.args(["--maxmemory-policy", "noeviction", "--dir"]).arg(&dir);
        let process = Process::start(&command, &log(port));
        Self { port, command, process }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}
