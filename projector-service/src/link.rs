//! A connection to Redis, or to a cluster.

use std::time::Duration;

use millrace_shared::views::address::{Address, by_partition};
use redis::{
    Cmd, Connection, ConnectionLike, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Value,
    cluster::{ClusterConfig, ClusterConnection},
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo},
    from_redis_value,
};

/// It. What is asked of one partition goes through it as through any connection.
pub enum Link {
    /// To one Redis.
    One(Box<Connection>),
    /// To a cluster.
    Cluster(Box<ClusterConnection>),
}

/// One that has keys; `None`: the only one.
pub type Node = Option<(String, u16)>;

impl Link {
    /// Connects. `timeout` bounds each answer.
    pub fn open(address: &Address, connect_timeout: Duration, timeout: Duration) -> RedisResult<Self> {
        match address {
            Address::One(client) => {
                let connection = client.get_connection_with_timeout(connect_timeout)?;
                connection.set_read_timeout(Some(timeout))?;
                connection.set_write_timeout(Some(timeout))?;
                Ok(Self::One(Box::new(connection)))
            }
            Address::Cluster(client) => {
                let config = ClusterConfig::new().set_connection_timeout(connect_timeout).set_response_timeout(timeout);
                let connection = client.get_connection_with_config(config)?;
                connection.set_read_timeout(Some(timeout))?;
                connection.set_write_timeout(Some(timeout))?;
                Ok(Self::Cluster(Box::new(connection)))
            }
        }
    }

    /// Asks several partitions at once.
    pub fn each(&mut self, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
        if let Self::One(connection) = self {
            return pipe.query(&mut **connection);
        }
        let mut all = vec![Value::Nil; pipe.len()];
        for (places, part) in by_partition(pipe) {
            let answers: Vec<Value> = part.query(self)?;
            for (place, answer) in places.into_iter().zip(answers) {
                all[place] = answer;
            }
        }
        Ok(all)
    }

    /// Asks every node, replicas too.
    pub fn all_nodes<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<Vec<T>> {
        Ok(self.of_nodes(command, MultipleNodeRoutingInfo::AllNodes)?.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Those that have keys.
    pub fn masters(&mut self) -> RedisResult<Vec<Node>> {
        let asked: Vec<(Node, Value)> = self.of_nodes(&redis::cmd("PING"), MultipleNodeRoutingInfo::AllMasters)?;
        Ok(asked.into_iter().map(|(node, _)| node).collect())
    }

    /// Asks one of [`Link::masters`].
    pub fn ask_node<T: FromRedisValue>(&mut self, node: &Node, command: &Cmd) -> RedisResult<T> {
        match (self, node) {
            (Self::Cluster(connection), Some((host, port))) => {
                let route = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
                Ok(from_redis_value(connection.route_command(command, RoutingInfo::SingleNode(route))?)?)
            }
            (link, _) => command.query(link),
        }
    }

    fn of_nodes<T: FromRedisValue>(
        &mut self,
        command: &Cmd,
        nodes: MultipleNodeRoutingInfo,
    ) -> RedisResult<Vec<(Node, T)>> {
        let Self::Cluster(connection) = self else { return Ok(vec![(None, command.query(self)?)]) };
        let answers = connection.route_command(command, RoutingInfo::MultiNode((nodes, None)))?;
        let answers: Vec<(String, Value)> = from_redis_value(answers)?;
        let of = |(address, answer): (String, Value)| {
            let node = address.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
            let node = node.ok_or_else(|| RedisError::from((ErrorKind::Client, "a node has no address", address)))?;
            Ok((Some(node), from_redis_value(answer)?))
        };
        answers.into_iter().map(of).collect()
    }
}

impl ConnectionLike for Link {
    fn req_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::One(connection) => connection.req_command(command),
            Self::Cluster(connection) => connection.req_command(command),
        }
    }

    fn req_packed_command(&mut self, command: &[u8]) -> RedisResult<Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands(&mut self, commands: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(commands, offset, count),
            // By the first one's key: they are of one partition.
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }

    fn supports_pipelining(&self) -> bool {
        true
    }

    fn check_connection(&mut self) -> bool {
        match self {
            Self::One(connection) => connection.check_connection(),
            Self::Cluster(connection) => ConnectionLike::check_connection(&mut **connection),
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Self::One(connection) => connection.is_open(),
            Self::Cluster(connection) => connection.is_open(),
        }
    }
}
