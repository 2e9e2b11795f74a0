//! Which part listens where. Everything is on loopback; every port is its default plus an offset.

use std::net::TcpListener;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

/// The Kafka nodes that vote; further ones are plain brokers.
const MAX_CONTROLLERS: u16 = 3;
const REDIS_CLUSTER_NODES: u16 = 6;
/// A Redis node of a cluster also listens here, seen from its own port.
const REDIS_BUS: u16 = 10_000;

/// A proxy in front of a broker listens here, seen from the broker's port for it.
const PROXY: u16 = 100;

/// The shape of one run: how many of what, and the offset of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub offset: u16,
    pub brokers: u16,
    pub instances: u16,
    pub redis_cluster: bool,
    pub infra_only: bool,
    /// Whether brokers listen a second time, for clients that come through a proxy.
    pub proxied: bool,
}

/// The two listeners of a service; the projector has no public one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePorts {
    pub http: Option<u16>,
    pub ops: u16,
}

impl Layout {
    /// Refuses a shape that has no ports: `--port-offset` too large, two brokers and the like.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.brokers == 1 || (3..=9).contains(&self.brokers),
            "--brokers takes 1, or 3 to 9 (two would stop when either does)"
        );
        ensure!((1..=10).contains(&self.instances), "--instances takes 1 to 10");
        let highest = self.defaults().into_iter().map(|(port, _)| port).max().unwrap_or(0);
        ensure!(
            u32::from(highest) + u32::from(self.offset) <= u32::from(u16::MAX),
            "--port-offset {} is too large: the highest port here is {highest}, so at most {}",
            self.offset,
            u16::MAX - highest
        );
        Ok(())
    }

    pub fn controllers(&self) -> u16 {
        self.brokers.min(MAX_CONTROLLERS)
    }

    /// The port of the Kafka broker `id` (from 1) for clients.
    pub fn broker(&self, id: u16) -> u16 {
        9092 + 2 * (id - 1) + self.offset
    }

    /// The port of the Kafka broker `id` (from 1) for a proxy.
    pub fn behind_proxy(&self, id: u16) -> u16 {
        self.broker(id) + 1
    }

    /// Where a proxy in front of the Kafka broker `id` (from 1) has to listen.
    pub fn proxy(&self, id: u16) -> u16 {
        self.behind_proxy(id) + PROXY
    }

    /// The port of the Kafka controller `id` (from 1).
    pub fn controller(&self, id: u16) -> u16 {
        19092 + 2 * (id - 1) + self.offset
    }

    pub fn registry(&self) -> u16 {
        8090 + self.offset
    }

    /// The ports of Redis: one, or those of a cluster's nodes.
    pub fn redis(&self) -> Vec<u16> {
        let nodes = if self.redis_cluster { REDIS_CLUSTER_NODES } else { 1 };
        (0..nodes).map(|node| 6379 + node + self.offset).collect()
    }

    /// The ports of instance `i` (from 0) of the three services.
    pub fn command_service(&self, i: u16) -> ServicePorts {
        self.service(Some(8080), 9080, i)
    }

    pub fn query_service(&self, i: u16) -> ServicePorts {
        self.service(Some(8081), 9081, i)
    }

    pub fn projector_service(&self, i: u16) -> ServicePorts {
        self.service(None, 9082, i)
    }

    fn service(&self, http: Option<u16>, ops: u16, i: u16) -> ServicePorts {
        let moved = |port| port + 100 * i + self.offset;
        ServicePorts { http: http.map(moved), ops: moved(ops) }
    }

    pub fn kafka_bootstrap(&self) -> String {
        let brokers: Vec<_> = (1..=self.brokers).map(|id| format!("127.0.0.1:{}", self.broker(id))).collect();
        brokers.join(",")
    }

    pub fn registry_url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.registry())
    }

    /// Of a cluster all are named: any leads to the others, as long as it is there.
    pub fn redis_url(&self) -> String {
        let nodes: Vec<_> = self.redis().into_iter().map(|port| format!("redis://127.0.0.1:{port}")).collect();
        nodes.join(",")
    }

    pub fn command_url(&self) -> String {
        format!("http://127.0.0.1:{}", 8080 + self.offset)
    }

    pub fn query_url(&self) -> String {
        format!("http://127.0.0.1:{}", 8081 + self.offset)
    }

    /// Every port of this run with what it is for.
    pub fn ports(&self) -> Vec<(u16, String)> {
        let moved = |(port, what)| (port + self.offset, what);
        self.defaults().into_iter().map(moved).collect()
    }

    fn defaults(&self) -> Vec<(u16, String)> {
        let at_zero = Layout { offset: 0, ..*self };
        let mut ports = Vec::new();
        for id in 1..=self.brokers {
            ports.push((at_zero.broker(id), format!("Kafka broker {id}")));
            if self.proxied {
                ports.push((at_zero.behind_proxy(id), format!("Kafka broker {id} behind a proxy")));
                ports.push((at_zero.proxy(id), format!("a proxy in front of Kafka broker {id}")));
            }
        }
        for id in 1..=self.controllers() {
            ports.push((at_zero.controller(id), format!("Kafka controller {id}")));
        }
        ports.push((at_zero.registry(), "the registry".to_owned()));
        for port in at_zero.redis() {
            ports.push((port, "Redis".to_owned()));
            if self.redis_cluster {
                ports.push((port + REDIS_BUS, "Redis's cluster bus".to_owned()));
            }
        }
        if !self.infra_only {
            for i in 0..self.instances {
                let services = [
                    ("command-service", at_zero.command_service(i)),
                    ("query-service", at_zero.query_service(i)),
                    ("projector-service", at_zero.projector_service(i)),
                ];
                for (name, listeners) in services {
                    ports.extend(listeners.http.map(|port| (port, name.to_owned())));
                    ports.push((listeners.ops, format!("{name}'s operations listener")));
                }
            }
        }
        ports
    }

    /// Refuses to start when another program listens on a port of ours.
    pub fn check_free(&self) -> Result<()> {
        // A run that was just killed may need a moment until its ports are free.
        let deadline = Instant::now() + Duration::from_secs(1);
        for (port, what) in self.ports() {
            while let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
                if error.kind() != std::io::ErrorKind::AddrInUse || Instant::now() > deadline {
                    bail!(
                        "port {port} is needed for {what}, but cannot be had: {error}\n\
                         Stop the program that uses it, or run beside it with \
                         --port-offset N (added to every port; now {})",
                        self.offset
                    );
                }
                sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const ONE: Layout =
        Layout { offset: 0, brokers: 1, instances: 1, redis_cluster: false, infra_only: false, proxied: false };

    #[test]
    fn defaults_are_those_the_services_use_on_their_own() {
        assert_eq!(ONE.kafka_bootstrap(), "127.0.0.1:9092");
        assert_eq!(ONE.registry_url(), "http://127.0.0.1:8090/apis/ccompat/v7");
        assert_eq!(ONE.redis_url(), "redis://127.0.0.1:6379");
        let (http, ops) = (Some(8080), 9080);
        assert_eq!(ONE.command_service(0), ServicePorts { http, ops });
        let (http, ops) = (Some(8081), 9081);
        assert_eq!(ONE.query_service(0), ServicePorts { http, ops });
        let (http, ops) = (None, 9082);
        assert_eq!(ONE.projector_service(0), ServicePorts { http, ops });
    }

    #[test]
    fn the_offset_moves_every_port_alike() {
        let all = Layout { brokers: 3, instances: 3, redis_cluster: true, ..ONE };
        let moved = Layout { offset: 700, ..all };
        for ((port, what), (other, same)) in all.ports().into_iter().zip(moved.ports()) {
            assert_eq!((port + 700, what), (other, same));
        }
        assert_eq!(moved.kafka_bootstrap(), "127.0.0.1:9792,127.0.0.1:9794,127.0.0.1:9796");
    }

    #[test]
    fn no_port_is_used_twice_in_the_largest_layout() {
        let largest = Layout { brokers: 9, instances: 10, redis_cluster: true, proxied: true, ..ONE };
        largest.check().unwrap();
        let mut seen = HashSet::new();
        for (port, what) in largest.ports() {
            assert!(seen.insert(port), "{port} ({what}) twice");
        }
    }

    #[test]
    fn impossible_layouts_are_refused_with_the_flag_named() {
        let refusal = |layout: Layout| layout.check().unwrap_err().to_string();
        assert!(refusal(Layout { brokers: 2, ..ONE }).contains("--brokers"));
        assert!(refusal(Layout { instances: 0, ..ONE }).contains("--instances"));
        let far = refusal(Layout { offset: 60_000, ..ONE });
        assert!(far.contains("--port-offset") && far.contains("46443"), "{far}");
    }

    #[test]
    fn a_taken_port_is_named_with_its_purpose() {
        // Others on this machine may have another port of the layout at the moment, so there are a few tries.
        let is_told = (0..20).any(|_| {
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = taken.local_addr().unwrap().port();
            // An ephemeral port is far above 6379.
            let layout = Layout { offset: port - 6379, infra_only: true, ..ONE };
            layout.check().is_ok() && {
                let error = layout.check_free().unwrap_err().to_string();
                error.contains(&format!("port {port} is needed for Redis")) && error.contains("--port-offset")
            }
        });
        assert!(is_told, "the port and its purpose are named");
    }
}
