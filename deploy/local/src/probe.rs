//! Asking a part whether it is ready, in its own language.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const TIMEOUT: Duration = Duration::from_secs(2);

/// How to find out whether a part is ready.
#[derive(Clone, Debug)]
pub enum Probe {
    /// A broker that answers a request.
    Kafka(u16),
    /// A Redis that has its data loaded.
    Redis(u16),
    /// A URL that answers 200.
    Http(String),
}

impl Probe {
    /// Asks once; the error says what is missing.
    pub fn ask(&self) -> Result<()> {
        match self {
            Probe::Kafka(port) => ask_kafka(*port),
            Probe::Redis(port) => ask_redis(*port),
            Probe::Http(url) => ask_http(url),
        }
    }
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| address.to_string())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// An ApiVersions request, version 0: a broker answers it only once it takes part in the cluster.
fn ask_kafka(port: u16) -> Result<()> {
    const CORRELATION_ID: [u8; 4] = *b"mill";
    let mut request = vec![0, 0, 0, 10, 0, 18, 0, 0];
    request.extend(CORRELATION_ID);
    request.extend([0xff, 0xff]); // no client id
    let mut stream = connect(port)?;
    stream.write_all(&request)?;
    let mut answer = [0; 10]; // length, correlation id, error code
    stream.read_exact(&mut answer).context("no answer yet")?;
    ensure!(
        answer[4..8] == CORRELATION_ID && answer[8..10] == [0, 0],
        "something that is no Kafka broker answers on port {port}"
    );
    Ok(())
}

fn ask_redis(port: u16) -> Result<()> {
    let answer = redis_command(port, "PING")?;
    ensure!(answer.starts_with("+PONG"), "Redis says: {}", answer.trim());
    Ok(())
}

/// Sends one command without arguments that need quoting; returns the answer as it came.
pub fn redis_command(port: u16, command: &str) -> Result<String> {
    let mut stream = connect(port)?;
    write!(stream, "{command}\r\nQUIT\r\n")?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Redis closes after QUIT; what came before is complete.
        Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(error.into()),
        _ => {}
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// An HTTP client for loopback: no proxy, whatever the environment says, and short time-outs.
pub fn http_client(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().proxy(None).timeout_global(Some(timeout)).http_status_as_error(false).build().into()
}

fn ask_http(url: &str) -> Result<()> {
    let mut response = http_client(TIMEOUT).get(url).call()?;
    let status = response.status();
    if status.as_u16() != 200 {
        let body = response.body_mut().read_to_string().unwrap_or_default();
        let body: String = body.trim().chars().take(300).collect();
        bail!("{url} answers {status} {body}");
    }
    Ok(())
}
