//! The parts' log files: the end of one for error messages, and new lines worth showing.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Read at most this much of a log at once.
const CHUNK_BYTES: u64 = 64 * 1024;
/// Show at most this many lines of one part at once.
const MAX_LINES: usize = 10;

/// The last lines of a log, indented; a sentence when there are none.
pub fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(CHUNK_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("    ({} cannot be read: {error})", path.display()),
    };
    let all: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    if all.is_empty() {
        return format!("    ({} is empty)", path.display());
    }
    let shown = &all[all.len().saturating_sub(lines)..];
    shown.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Keeps the log of the previous run as `<log>.1` and starts an empty one.
pub fn rotate(path: &Path) -> std::io::Result<()> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    match fs::rename(path, PathBuf::from(old)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Follows a log and picks the lines that a person at the terminal should see.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
    /// Parts that a service was said not to have, and was not yet said to have again.
    missing: usize,
}

impl Follower {
    pub fn new(path: PathBuf) -> Follower {
        Follower { path, offset: 0, partial: Vec::new(), missing: 0 }
    }

    /// Warnings and errors written since the last call, and that what was amiss is so no longer.
    pub fn poll(&mut self) -> Vec<String> {
        // A log that can't be read now is read next time; it is not worth stopping a run for.
        let bytes = self.read_on().unwrap_or_default();
        self.partial.extend(bytes);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.partial.split_off(end + 1);
        let complete = std::mem::replace(&mut self.partial, rest);
        let text = String::from_utf8_lossy(&complete);
        let mut shown: Vec<_> = text.lines().filter(|line| self.is_news(line)).collect();
        let left_out = shown.len().saturating_sub(MAX_LINES);
        shown.truncate(MAX_LINES);
        let mut shown: Vec<_> = shown.into_iter().map(str::to_owned).collect();
        if left_out > 0 {
            shown.push(format!("… and {left_out} more in {}", self.path.display()));
        }
        shown
    }

    /// Whether a line matters, or says that a service has a part again. A start says so of every part: that is no news.
    fn is_news(&mut self, line: &str) -> bool {
        let recovered = self.missing > 0 && says(line, "ready");
        self.missing -= usize::from(recovered);
        self.missing += usize::from(says(line, "not ready"));
        recovered || matters(line)
    }

    fn read_on(&mut self) -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }
}

/// Whether a line of a service's log, as text or JSON, is a warning, an error or a panic.
fn matters(line: &str) -> bool {
    let mut head = line.split_ascii_whitespace().take(3);
    head.any(|word| word == "WARN" || word == "ERROR")
        || line.contains(r#""level":"WARN""#)
        || line.contains(r#""level":"ERROR""#)
        || line.contains("panicked at")
}

/// Whether a line of a service's log, as text or JSON, says this of one of the parts that it needs.
fn says(line: &str, message: &str) -> bool {
    let text = line.split_ascii_whitespace().skip(2).collect::<Vec<_>>().join(" ");
    text.starts_with(&format!("{message} part=")) || line.contains(&format!(r#""message":"{message}","part":"#))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn warnings_errors_and_panics_matter_in_both_formats() {
        assert!(matters("2026-01-01T00:00:00.000000Z  WARN projector: slow"));
        assert!(matters(r#"{"timestamp":"…","level":"ERROR","fields":{}}"#));
        assert!(matters("thread 'main' (7) panicked at src/main.rs:1:1:"));
        assert!(!matters("2026-01-01T00:00:00.000000Z  INFO http: GET /ERROR"));
        assert!(!matters("2026-01-01T00:00:00.000000Z  INFO a b c WARN"));
    }

    #[test]
    fn a_part_that_is_there_again_is_news_and_the_start_is_none() {
        for (ready, not_ready) in [
            (r#"t  INFO ready part="redis""#, r#"t  WARN not ready part="redis" reason="gone""#),
            (
                r#"{"level":"INFO","fields":{"message":"ready","part":"redis"}}"#,
                r#"{"level":"WARN","fields":{"message":"not ready","part":"redis","reason":"gone"}}"#,
            ),
        ] {
            let mut follower = Follower::new(PathBuf::new());
            assert!(!follower.is_news(ready));
            assert!(follower.is_news(not_ready));
            assert!(!follower.is_news("t  INFO serving"));
            assert!(follower.is_news(ready));
            assert!(!follower.is_news(ready));
        }
    }

    #[test]
    fn a_follower_waits_for_whole_lines_and_a_tail_is_indented() {
        let path = std::env::temp_dir().join(format!("millrace-logs-{}", std::process::id()));
        let mut follower = Follower::new(path.clone());
        assert!(follower.poll().is_empty(), "there is no log yet");

        let mut log = File::create(&path).unwrap();
        write!(log, "t INFO up\nt WARN ha").unwrap();
        assert!(follower.poll().is_empty());
        writeln!(log, "lf").unwrap();
        assert_eq!(follower.poll(), ["t WARN half"]);
        assert!(follower.poll().is_empty());
        assert_eq!(tail(&path, 1), "    t WARN half");
        fs::remove_file(&path).unwrap();
    }
}
