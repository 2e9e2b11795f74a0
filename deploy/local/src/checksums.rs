//! The list of files that make up Kafka and the registry, each with its SHA-256, in the format of
//! `sha256sum`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// Path below the parts folder → SHA-256 in lower-case hex.
pub type Checksums = BTreeMap<String, String>;

/// Reads lines of `<64 hex digits>  <path>`.
pub fn parse(text: &str) -> Result<Checksums> {
    let mut checksums = Checksums::new();
    for (number, line) in text.lines().enumerate() {
        let (sum, path) =
            line.split_once("  ").with_context(|| format!("line {}: expected '<sha256>  <path>'", number + 1))?;
        ensure!(
            sum.len() == 64 && sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
            "line {}: '{sum}' is no SHA-256",
            number + 1
        );
        ensure!(
            checksums.insert(path.to_owned(), sum.to_owned()).is_none(),
            "line {}: {path} is listed twice",
            number + 1
        );
    }
    Ok(checksums)
}

/// Checks that `dir` holds exactly the listed files with exactly the listed contents.
pub fn verify(dir: &Path, checksums: &Checksums) -> Result<()> {
    for path in files_below(dir)? {
        let name = path.strip_prefix(dir)?.to_string_lossy().into_owned();
        let Some(expected) = checksums.get(&name) else {
            bail!("{name} was downloaded but is not in checksums.sha256");
        };
        let actual = sha256(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(actual == *expected, "{name} is not the expected file: SHA-256 {actual}, expected {expected}");
    }
    for name in checksums.keys() {
        ensure!(dir.join(name).is_file(), "{name} is missing");
    }
    Ok(())
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = dir.read_dir().with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = HashWriter(Sha256::new());
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hex(&hasher.0.finalize()))
}

/// Lower-case hex of the SHA-256 of `bytes`.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct HashWriter(Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_list_in_the_repository_is_well_formed() {
        let checksums = parse(crate::fetch::CHECKSUMS).unwrap();
        assert!(checksums.contains_key("kafka/kafka_2.13-4.1.2.jar"));
        assert!(checksums.keys().any(|path| path.starts_with("registry/")));
    }

    #[test]
    fn malformed_and_doubled_lines_are_named() {
        let short = parse("abc  file").unwrap_err().to_string();
        assert!(short.contains("line 1") && short.contains("abc"), "{short}");
        let doubled = parse(&format!("{EMPTY}  a\n{EMPTY}  a")).unwrap_err();
        assert!(doubled.to_string().contains("line 2"), "{doubled}");
        assert!(parse(&format!("{EMPTY} a")).is_err(), "one space only");
    }

    #[test]
    fn a_missing_a_changed_and_an_unknown_file_are_each_found() {
        let dir = std::env::temp_dir().join(format!("millrace-checksums-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("kafka")).unwrap();
        let list = parse(&format!("{EMPTY}  kafka/a.jar")).unwrap();
        let error = || verify(&dir, &list).unwrap_err().to_string();

        assert!(error().contains("kafka/a.jar is missing"));
        std::fs::write(dir.join("kafka/a.jar"), "half").unwrap();
        assert!(error().contains("not the expected file"));
        std::fs::write(dir.join("kafka/a.jar"), "").unwrap();
        verify(&dir, &list).unwrap();
        std::fs::write(dir.join("kafka/b.jar"), "").unwrap();
        assert!(error().contains("kafka/b.jar was downloaded but is not in"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
