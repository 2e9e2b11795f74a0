//! The load on a server: kept connections that ask again as soon as they are answered, or streams that only read. All
//! from one thread, with as little work as can be: on few cores the client takes a share of what it measures, from ours
//! and from the raw server alike.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
};

use crate::random::Random;

/// A connection that is kept.
pub struct Connection {
    stream: TcpStream,
    host: String,
    sent: Vec<u8>,
    read: Vec<u8>,
}

impl Connection {
    /// To a server.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, host: to.to_string(), sent: Vec::new(), read: Vec::new() })
    }

    /// Asks, and returns the body of the answer, which must be 200.
    pub async fn get(&mut self, path: &str) -> Result<&[u8]> {
        self.ask("GET", path).await
    }

    /// The same with a method.
    pub async fn ask(&mut self, method: &str, path: &str) -> Result<&[u8]> {
        self.sent.clear();
        for part in [method, " ", path, " HTTP/1.1\r\nhost: ", &self.host, "\r\n\r\n"] {
            self.sent.extend_from_slice(part.as_bytes());
        }
        self.stream.write_all(&self.sent).await?;
        self.read.clear();
        let mut whole = None;
        loop {
            let read = self.stream.read_buf(&mut self.read).await?;
            ensure!(read > 0, "{path}: the connection was closed");
            if whole.is_none() {
                whole = extent(&self.read).with_context(|| format!("{path} was answered by {}", self.said()))?;
            }
            match whole {
                Some((head, all)) if self.read.len() >= all => return Ok(&self.read[head..all]),
                _ => {}
            }
        }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

/// Length of an answer's head and of all of it, once the head is there.
fn extent(read: &[u8]) -> Result<Option<(usize, usize)>> {
    const LENGTH: &[u8] = b"content-length: ";
    let Some(head) = read.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    ensure!(read.starts_with(b"HTTP/1.1 200 "), "another status than 200");
    let at = read[..head].windows(LENGTH.len()).position(|part| part == LENGTH).context("no length")?;
    let digits = read[at + LENGTH.len()..head].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    Ok(Some((head + 4, head + 4 + length)))
}

/// Runs on one thread.
pub fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

/// Answers per second to so many connections, each of which asks for one path after another.
pub fn saturate(to: SocketAddr, connections: usize, duration: Duration, paths: &[String]) -> Result<f64> {
    run(async {
        let paths: Rc<[String]> = paths.into();
        let mut all = Vec::new();
        for number in 0..connections {
            all.push((Connection::open(to).await?, Random::new(number as u64)));
        }
        let begin = Instant::now();
        let asking = all.into_iter().map(|(mut connection, mut random)| {
            let paths = paths.clone();
            tokio::task::spawn_local(async move {
                let mut answers = 0;
                while begin.elapsed() < duration {
                    connection.get(&paths[random.below(paths.len())]).await?;
                    answers += 1;
                }
                anyhow::Ok(answers)
            })
        });
        let mut answers = 0;
        for asking in asking.collect::<Vec<_>>() {
            answers += asking.await??;
        }
        Ok(f64::from(answers) / begin.elapsed().as_secs_f64())
    })
}

/// A byte that is twice in each change as query-service sends it, and nowhere else.
const MARK: u8 = b'}';
const MARKS: u64 = 2;

/// Streams that count what comes.
pub struct Streams {
    count: usize,
    marks: Rc<Cell<u64>>,
    ended: Rc<Cell<Option<String>>>,
}

impl Streams {
    /// Opens so many; to be called within [`run`].
    pub async fn open(to: SocketAddr, path: &str, count: usize) -> Result<Self> {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        ensure!(most > count as u64 + 200, "{most} files may be open, too few for {count} streams: raise `ulimit -Hn`");
        let streams = Self { count, marks: Rc::default(), ended: Rc::default() };
        let buffer = Rc::new(RefCell::new(vec![0; 64 << 10]));
        for _ in 0..count {
            let mut stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {to}\r\n\r\n").as_bytes()).await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            ensure!(head.starts_with(b"HTTP/1.1 200 "), "{path}: {}", String::from_utf8_lossy(&head));
            let (marks, ended, buffer) = (streams.marks.clone(), streams.ended.clone(), buffer.clone());
            tokio::task::spawn_local(async move {
                let reason = loop {
                    if let Err(error) = stream.readable().await {
                        break error.to_string();
                    }
                    let buffer = &mut *buffer.borrow_mut();
                    match stream.try_read(buffer) {
                        Ok(0) => break "a stream was ended".to_owned(),
                        Ok(read) => {
                            let found = buffer[..read].iter().filter(|byte| **byte == MARK).count();
                            marks.set(marks.get() + found as u64);
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(error) => break error.to_string(),
                    }
                };
                ended.set(Some(reason));
            });
        }
        Ok(streams)
    }

    /// Waits until all together have got so many changes each, on average.
    pub async fn wait(&self, changes: u64) -> Result<()> {
        let wanted = changes * self.count as u64 * MARKS;
        let begin = Instant::now();
        while self.marks.get() < wanted {
            if let Some(reason) = self.ended.take() {
                bail!("{reason}");
            }
            ensure!(begin.elapsed() < Duration::from_secs(60), "{} of {wanted} marks came", self.marks.get());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\ndate: x\r\n\r\n";
        assert_eq!(extent(text).unwrap(), Some((text.len(), text.len() + 12)));
        assert_eq!(extent(&text[..text.len() - 1]).unwrap(), None);
        assert!(extent(b"HTTP/1.1 503 x\r\ncontent-length: 1\r\n\r\n").is_err());
        assert!(extent(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
