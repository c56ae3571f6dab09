//! Reading while a writer appends and rotates.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use tokio::sync::watch;

use super::{LogOptions, Watcher, read};
use crate::containers::{Phase, Status};

/// Writes a log as the shim does: one JSON line per write, rotation by rename.
struct Writer {
    base: PathBuf,
    written: u32,
    keep: usize,
}

impl Writer {
    fn new(directory: &Path) -> Self {
        Self { base: directory.join("x-json.log"), written: 0, keep: 3 }
    }

    fn line(&mut self) {
        let stream = if self.written.is_multiple_of(2) { "stdout" } else { "stderr" };
        let time = format!("2026-11-20T10:00:00.{:09}Z", self.written + 1);
        let entry = format!(
            "{{\"log\":\"{}\\n\",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n",
            self.written
        );
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.base).unwrap();
        file.write_all(entry.as_bytes()).unwrap();
        self.written += 1;
    }

    fn lines(&mut self, count: u32) -> &mut Self {
        (0..count).for_each(|_| self.line());
        self
    }

    fn rotate(&mut self) -> &mut Self {
        let named = |n: usize| PathBuf::from(format!("{}.{n}", self.base.display()));
        for n in (1..self.keep).rev() {
            let _ = fs::rename(named(n), named(n + 1));
        }
        fs::rename(&self.base, named(1)).unwrap();
        self
    }
}

fn all() -> LogOptions {
    LogOptions { stdout: true, stderr: true, ..LogOptions::default() }
}

async fn numbers(base: &Path, options: LogOptions) -> Vec<u32> {
    read(base.to_owned(), options, None)
        .map(|record| String::from_utf8_lossy(&record.unwrap().line).trim().parse::<u32>().unwrap())
        .collect()
        .await
}

#[tokio::test]
async fn all_files_are_read_from_the_oldest_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    assert!(numbers(&writer.base, all()).await.is_empty());
    writer.lines(5).rotate().lines(5).rotate().lines(5);
    assert_eq!(numbers(&writer.base, all()).await, (0..15).collect::<Vec<_>>());
    let errors = LogOptions { stdout: false, ..all() };
    assert_eq!(numbers(&writer.base, errors).await, [1, 3, 5, 7, 9, 11, 13]);
}

#[tokio::test]
async fn the_tail_reaches_back_over_files_plain_and_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.lines(5).rotate().lines(5).rotate().lines(5);
    for wanted in 0..17 {
        let options = LogOptions { tail: Some(wanted), ..all() };
        let expected: Vec<u32> = (15 - u32::try_from(wanted.min(15)).unwrap()..15).collect();
        assert_eq!(numbers(&writer.base, options).await, expected, "{wanted}");
    }
    let oldest = PathBuf::from(format!("{}.2", writer.base.display()));
    let packed = fs::File::create(format!("{}.gz", oldest.display())).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    encoder.write_all(&fs::read(&oldest).unwrap()).unwrap();
    encoder.finish().unwrap();
    fs::remove_file(&oldest).unwrap();
    for (wanted, first) in [(12, 3), (20, 0), (10, 5)] {
        let options = LogOptions { tail: Some(wanted), ..all() };
        assert_eq!(numbers(&writer.base, options).await, (first..15).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn since_and_until_cut_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.lines(10);
    let at = |n: u32| Some(format!("2026-11-20T10:00:00.{:09}Z", n + 1).parse().unwrap());
    let options = LogOptions { since: at(3), until: at(6), ..all() };
    assert_eq!(numbers(&writer.base, options).await, [3, 4, 5, 6]);
}

#[tokio::test]
async fn following_loses_nothing_over_rotations_and_ends_with_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.lines(3);
    let watcher = Watcher::open().unwrap();
    let running = Status { phase: Phase::Running, ..Status::default() };
    let (status, follower) = watch::channel(running);
    let options = LogOptions { follow: true, ..all() };
    let mut records = Box::pin(read(writer.base.clone(), options, Some((watcher, follower))));
    let mut next = async || {
        let record = records.next().await?.unwrap();
        Some(String::from_utf8_lossy(&record.line).trim().parse::<u32>().unwrap())
    };
    assert_eq!(next().await, Some(0));
    // Written, rotated twice and written again, while the follower sleeps.
    writer.lines(2).rotate().lines(4).rotate().lines(1);
    for expected in 1..10 {
        assert_eq!(next().await, Some(expected));
    }
    writer.rotate();
    writer.lines(1);
    assert_eq!(next().await, Some(10));
    writer.lines(2);
    status.send_modify(|status| status.phase = Phase::Exited);
    assert_eq!((next().await, next().await, next().await), (Some(11), Some(12), None));
}

#[tokio::test]
async fn a_torn_line_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.lines(2);
    let mut file = fs::OpenOptions::new().append(true).open(&writer.base).unwrap();
    file.write_all(b"{\"log\":\"torn\n").unwrap();
    writer.lines(1);
    assert_eq!(numbers(&writer.base, all()).await, [0, 1, 2]);
}
