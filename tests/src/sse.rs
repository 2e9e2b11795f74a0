//! A client of server-sent events, as browsers have one: what comes, and the id to resume from.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
};

use serde_json::Value;

use crate::wait::PATIENCE;

/// Something that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What it is: `change`, `reset`.
    pub name: String,
    /// The id, as browsers keep it.
    pub id: String,
    /// What it says.
    pub data: Value,
}

impl Event {
    /// The aggregate and the sequence.
    #[track_caller]
    pub fn about(&self) -> (&str, u64) {
        let about = || Some((self.data["id"].as_str()?, self.data["sequence"].as_u64()?));
        about().unwrap_or_else(|| panic!("not about a change: {self:?}"))
    }
}

/// What was read off the wire.
enum Taken {
    Event(Event),
    /// An id without event, or a comment.
    Quiet(String),
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    /// Status line and headers.
    pub head: String,
    socket: TcpStream,
    read: Receiver<Taken>,
    last_id: String,
}

impl Stream {
    /// Opens one, from behind an id where there is one, as browsers do it.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn open(base_url: &str, path: &str, last_id: Option<&str>) -> Self {
        let stream = Self::try_open(base_url, path, last_id).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(stream.head.starts_with("HTTP/1.1 200 "), "{path}: {}", stream.head);
        stream
    }

    /// Opens one; the error is one of the transport.
    pub fn try_open(base_url: &str, path: &str, last_id: Option<&str>) -> Result<Self, String> {
        let open = || {
            let host = base_url.trim_start_matches("http://");
            let mut socket = TcpStream::connect(host)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let resume = last_id.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
            write!(socket, "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n{resume}\r\n")?;
            let mut lines = BufReader::new(socket.try_clone()?);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if lines.read_line(&mut head)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            socket.set_read_timeout(None)?;
            Ok((head, socket, lines))
        };
        let (head, socket, lines) = open().map_err(|error: std::io::Error| error.to_string())?;
        let (sender, read) = mpsc::channel();
        let mut last_id = last_id.unwrap_or_default().to_owned();
        let known = last_id.clone();
        let chunked = head.contains("transfer-encoding: chunked");
        thread::spawn(move || {
            let mut lines = BufReader::new(Chunks { inner: lines, left: 0, chunked });
            while let Some(block) = block(&mut lines) {
                let (mut name, mut data) = ("message".to_owned(), String::new());
                for line in block.lines() {
                    let (field, value) = line.split_once(": ").unwrap_or((line, ""));
                    match field {
                        "id" => value.clone_into(&mut last_id),
                        "event" => value.clone_into(&mut name),
                        "data" => data.push_str(value),
                        _ => {}
                    }
                }
                let read = match serde_json::from_str(&data) {
                    Ok(data) => Taken::Event(Event { name, id: last_id.clone(), data }),
                    Err(error) if !data.is_empty() => panic!("no JSON ({error}): {data}"),
                    Err(_) => Taken::Quiet(last_id.clone()),
                };
                if sender.send(read).is_err() {
                    return;
                }
            }
        });
        Ok(Self { head, socket, read, last_id: known })
    }

    /// The next event; `None` when the stream has ended.
    #[track_caller]
    pub fn event(&mut self) -> Option<Event> {
        loop {
            match self.read.recv_timeout(PATIENCE) {
                Ok(Taken::Event(event)) => {
                    self.last_id.clone_from(&event.id);
                    return Some(event);
                }
                Ok(Taken::Quiet(id)) => self.last_id = id,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("nothing came within {PATIENCE:?}, after {:?}", self.last_id),
            }
        }
    }

    /// Events until one of an aggregate has this sequence.
    #[track_caller]
    pub fn until(&mut self, id: &str, sequence: u64) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.event().unwrap_or_else(|| panic!("it ended before {id} {sequence}: {events:?}"));
            let last = event.name == "change" && event.about() == (id, sequence);
            events.push(event);
            if last {
                return events;
            }
        }
    }

    /// Where to resume from, of what was taken so far; waits until there is such an id.
    #[track_caller]
    pub fn last_id(&mut self) -> String {
        while self.last_id.is_empty() {
            match self.read.recv_timeout(PATIENCE) {
                Ok(Taken::Quiet(id)) => self.last_id = id,
                Ok(Taken::Event(event)) => panic!("an event before there is an id: {event:?}"),
                Err(error) => panic!("no id: {error}"),
            }
        }
        self.last_id.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Lines up to an empty one.
fn block(lines: &mut impl BufRead) -> Option<String> {
    let mut block = String::new();
    loop {
        let begun = block.len();
        match lines.read_line(&mut block) {
            Ok(0) | Err(_) => return None,
            Ok(_) if &block[begun..] == "\n" => return Some(block),
            Ok(_) => {}
        }
    }
}

/// A body in chunks, as one.
struct Chunks<R> {
    inner: R,
    left: usize,
    chunked: bool,
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !self.chunked {
            return self.inner.read(buffer);
        }
        while self.left == 0 {
            let mut line = String::new();
            if self.inner.read_line(&mut line)? == 0 {
                return Ok(0);
            }
            if line.trim().is_empty() {
                continue;
            }
            let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            if size == 0 {
                return Ok(0);
            }
            self.left = size;
        }
        let most = buffer.len().min(self.left);
        let read = self.inner.read(&mut buffer[..most])?;
        self.left -= read;
        Ok(read)
    }
}

/// A stream that nobody reads, until somebody does.
#[derive(Debug)]
pub struct Idle(TcpStream);

impl Idle {
    /// Opens one; its head has come.
    #[track_caller]
    pub fn open(base_url: &str, path: &str) -> Self {
        let host = base_url.trim_start_matches("http://");
        let mut socket = TcpStream::connect(host).unwrap_or_else(|error| panic!("{host}: {error}"));
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket has time-outs");
        write!(socket, "GET {path} HTTP/1.0\r\n\r\n").expect("it listens");
        let mut idle = Self(socket);
        idle.wait_for("\r\n\r\n");
        idle
    }

    /// Reads until a text has come.
    #[track_caller]
    pub fn wait_for(&mut self, wanted: &str) {
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains(wanted) {
            let mut piece = [0; 4_096];
            let more = self.0.read(&mut piece).unwrap_or_else(|error| panic!("no {wanted:?}: {error}"));
            assert!(more > 0, "it ended before {wanted:?}");
            read.extend_from_slice(&piece[..more]);
        }
    }

    /// Everything that comes until it is ended.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        let mut read = Vec::new();
        // A reset ends it as well.
        let _ = self.0.read_to_end(&mut read);
        String::from_utf8_lossy(&read).into_owned()
    }
}
