//! The container's output on its way to a file: cut into records, written, rotated.

mod file;
mod json_file;
mod local;
mod split;

use crate::config::{LogConfig, LogDriver};
use file::LogFile;
use split::Splitter;

/// Where a piece of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line, or a piece of a line that is too long for one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) stream: Stream,
    /// Without the newline.
    pub(crate) line: &'a [u8],
    /// Absent for a whole line.
    pub(crate) part: Option<Part>,
    /// Nanoseconds since 1970.
    pub(crate) at_ns: u64,
}

/// The place of a piece in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Nanoseconds since 1970 of the first piece: names the line.
    pub(crate) id: u64,
    /// From 1.
    pub(crate) ordinal: u32,
    pub(crate) last: bool,
}

/// How records of one driver look in the file.
#[derive(Debug)]
enum Form {
    JsonFile { attrs: Vec<u8> },
    Local,
}

/// The log of one container.
#[derive(Debug)]
pub(crate) struct Log {
    output: Option<(Form, LogFile)>,
    stdout: Splitter,
    stderr: Splitter,
    batch: Vec<u8>,
}

impl Log {
    pub(crate) fn open(config: &LogConfig) -> std::io::Result<Self> {
        let form = match config.driver {
            LogDriver::None => None,
            LogDriver::JsonFile => {
                Some(Form::JsonFile { attrs: json_file::attributes(&config.attrs) })
            }
            LogDriver::Local => Some(Form::Local),
        };
        let output = match form {
            Some(form) => Some((form, LogFile::open(config)?)),
            None => None,
        };
        Ok(Self {
            output,
            stdout: Splitter::new(Stream::Stdout),
            stderr: Splitter::new(Stream::Stderr),
            batch: Vec::new(),
        })
    }

    /// Takes a piece of output. A full disk costs records, never the container.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8], at_ns: u64) {
        let Some((form, file)) = &mut self.output else { return };
        let splitter = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let batch = &mut self.batch;
        splitter.feed(bytes, at_ns, |record| append(form, file, batch, &record));
        file.write(&mut self.batch);
    }

    /// Writes the lines that never got a newline.
    pub(crate) fn finish(&mut self, at_ns: u64) {
        let Some((form, file)) = &mut self.output else { return };
        let batch = &mut self.batch;
        for splitter in [&mut self.stdout, &mut self.stderr] {
            splitter.finish(at_ns, |record| append(form, file, batch, &record));
        }
        file.write(&mut self.batch);
    }
}

fn append(form: &Form, file: &mut LogFile, batch: &mut Vec<u8>, record: &Record<'_>) {
    if file.is_full_with(batch.len()) {
        file.write(batch);
        file.rotate();
    }
    match form {
        Form::JsonFile { attrs } => json_file::append(record, attrs, batch),
        Form::Local => local::append(record, batch),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn config(directory: &std::path::Path, max_size: Option<u64>, max_file: u32) -> LogConfig {
        LogConfig {
            driver: LogDriver::JsonFile,
            path: directory.join("log"),
            max_size,
            max_file,
            ..LogConfig::default()
        }
    }

    #[test]
    fn records_look_as_docker_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(&config(directory.path(), None, 1)).unwrap();
        log.write(Stream::Stdout, b"one <&> \"two\"\nthr", 1_000_000_000);
        log.write(Stream::Stderr, b"bad \xff\x01\n", 1_500_000_000);
        log.write(Stream::Stdout, b"ee", 2_000_000_000);
        log.finish(3_000_000_000);
        let text = fs::read_to_string(directory.path().join("log")).unwrap();
        let expected = r#"{"log":"one \u003c\u0026\u003e \"two\"\n","stream":"stdout","time":"1970-01-01T00:00:01Z"}
{"log":"bad \ufffd\u0001\n","stream":"stderr","time":"1970-01-01T00:00:01.5Z"}
{"log":"three\n","stream":"stdout","time":"1970-01-01T00:00:03Z"}
"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn attributes_stand_in_every_record() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path(), None, 1);
        config.attrs.insert("tag".to_owned(), "a\"b".to_owned());
        let mut log = Log::open(&config).unwrap();
        log.write(Stream::Stdout, b"x\n", 0);
        let text = fs::read_to_string(directory.path().join("log")).unwrap();
        let expected = "{\"log\":\"x\\n\",\"stream\":\"stdout\",\"attrs\":{\"tag\":\"a\\\"b\"},\
                        \"time\":\"1970-01-01T00:00:00Z\"}\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_full_file_is_rotated_and_old_ones_go() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(&config(directory.path(), Some(100), 3)).unwrap();
        for number in 0..10 {
            log.write(Stream::Stdout, format!("line {number} {}\n", "x".repeat(60)).as_bytes(), 0);
        }
        let mut names: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let newest = fs::read_to_string(directory.path().join("log")).unwrap();
        let before = fs::read_to_string(directory.path().join("log.1")).unwrap();
        assert!(newest.contains("line 9") && before.contains("line 8"), "{newest}{before}");
    }

    #[test]
    fn one_write_of_many_lines_is_rotated_too() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(&config(directory.path(), Some(200), 2)).unwrap();
        let many: String = (0..50).map(|number| format!("line {number}\n")).collect();
        log.write(Stream::Stdout, many.as_bytes(), 0);
        let newest = fs::metadata(directory.path().join("log")).unwrap().len();
        assert!(newest < 400, "{newest}");
        assert!(directory.path().join("log.1").exists());
    }

    #[test]
    fn a_log_is_continued_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        for word in ["one\n", "two\n"] {
            let mut log = Log::open(&config(directory.path(), None, 1)).unwrap();
            log.write(Stream::Stdout, word.as_bytes(), 0);
        }
        let text = fs::read_to_string(directory.path().join("log")).unwrap();
        assert_eq!(text.lines().count(), 2);
    }
}
