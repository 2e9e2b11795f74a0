//! The network between one instance and the brokers, which can be cut, fall silent, or be slow.
//!
//! Kafka sends clients to the addresses that it advertises, so brokers have a listener of their own for those who come
//! this way (`millrace-local run --proxied`).

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use crate::Stack;

/// Seen from a broker's port: where it listens for clients of a proxy, and where such a proxy has to be.
const BEHIND: u16 = 1;
const PROXY: u16 = 101;

/// What the network lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything.
    Open,
    /// Everything, so much later.
    Slow(Duration),
    /// Requests reach the brokers, answers don't come back: nobody knows what was done.
    Deaf,
    /// Nothing, and nobody is told. What was sent arrives when it opens again.
    Silent,
    /// Nothing: connections break.
    Cut,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToBroker,
    ToClient,
}

/// A proxy in front of every broker.
#[derive(Debug)]
pub struct Proxy {
    /// Bootstrap address for those who come this way.
    pub bootstrap: String,
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    network: Mutex<Network>,
    changed: Condvar,
    connections: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// The one of this program. Who uses it holds the [`crate::brokers::Brokers`].
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Proxy> = OnceLock::new();
        SHARED.get_or_init(|| {
            let line =
                Line { network: Mutex::new(Network::Open), changed: Condvar::new(), connections: Mutex::default() };
            let line = Arc::new(line);
            let brokers = Stack::shared().kafka.split(',');
            let ports: Vec<u16> = brokers.map(|address| address.rsplit(':').next().unwrap().parse().unwrap()).collect();
            for port in &ports {
                let listener = TcpListener::bind(("127.0.0.1", port + PROXY)).expect("the proxy's port is free");
                let (line, target) = (line.clone(), port + BEHIND);
                thread::spawn(move || {
                    for client in listener.incoming().flatten() {
                        // A broker that does not run: the connection just ends.
                        let Ok(broker) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                        line.clone().connect(client, broker);
                    }
                });
            }
            let addresses: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{}", port + PROXY)).collect();
            Self { bootstrap: addresses.join(","), line }
        })
    }

    /// Lets through what is asked, from now on.
    pub fn set(&self, network: Network) {
        *self.line.network.lock().unwrap_or_else(PoisonError::into_inner) = network;
        self.line.changed.notify_all();
        if network == Network::Cut {
            for connection in self.line.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                // One that has ended already can't be cut.
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Line {
    fn connect(self: Arc<Self>, client: TcpStream, broker: TcpStream) {
        let double = |stream: &TcpStream| stream.try_clone().expect("a handle can be doubled");
        {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            if *self.network.lock().unwrap_or_else(PoisonError::into_inner) == Network::Cut {
                return;
            }
            connections.extend([double(&client), double(&broker)]);
        }
        for stream in [&client, &broker] {
            stream.set_nodelay(true).expect("an option that every socket has");
        }
        let (line, from, to) = (self.clone(), double(&client), double(&broker));
        thread::spawn(move || line.pass(from, to, Direction::ToBroker));
        thread::spawn(move || self.pass(broker, client, Direction::ToClient));
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, direction: Direction) {
        let mut buffer = [0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            self.wait(direction);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        for stream in [from, to] {
            // One that has ended already need not end.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Returns when this may pass; what belongs to a connection that was cut may pass into nothing.
    fn wait(&self, direction: Direction) {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *network {
                Network::Open | Network::Cut => return,
                Network::Deaf if direction == Direction::ToBroker => return,
                Network::Slow(delay) => {
                    drop(network);
                    return thread::sleep(delay);
                }
                Network::Deaf | Network::Silent => {
                    network = self.changed.wait(network).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}
