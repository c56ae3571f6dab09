//! The Dockerfile instructions that `docker import --change` and `docker commit --change` take.
//!
//! Pure: a configuration and a line in, a configuration or an error out.

use std::iter::Peekable;
use std::str::Chars;

use docker_types::Empty;
use docker_types::container::HealthConfig;

use super::config::RunConfig;

/// Longest instruction, in bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Most ports of one range.
const PORTS_MAX: usize = 65_536;

/// Why an instruction was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("{0} is not a valid change command")]
    Command(String),
    #[error("{0} requires at least one argument")]
    NoArgument(&'static str),
    #[error("{0} requires exactly one argument")]
    OneArgument(&'static str),
    #[error("{0} names can not be blank")]
    BlankName(&'static str),
    #[error("Syntax error - can't find = in {0:?}. Must be of the form: name=value")]
    NoEquals(String),
    #[error("invalid containerPort: {0}")]
    Port(String),
    #[error("invalid signal: {0}")]
    Signal(String),
    #[error("unknown flag: {0}")]
    Flag(String),
    #[error("time: invalid duration {0:?}")]
    Duration(String),
    #[error("unknown instruction in HEALTHCHECK: {0}")]
    Healthcheck(String),
    #[error("chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")]
    ChainedOnBuild,
    #[error("{0} isn't allowed as an ONBUILD trigger")]
    OnBuildTrigger(String),
    #[error("unterminated quote")]
    Quote,
    #[error("instruction is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

/// Applies `lines` in turn.
///
/// # Errors
/// The first line that is wrong; `config` is then partly changed.
pub fn apply(config: &mut RunConfig, lines: &[String]) -> Result<(), ParseError> {
    for line in lines {
        // The CLI allows several instructions in one value.
        for line in join_continued(line)?.lines().map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                apply_line(config, line)?;
            }
        }
    }
    Ok(())
}

fn join_continued(text: &str) -> Result<String, ParseError> {
    if text.len() > LINE_BYTES_MAX {
        return Err(ParseError::TooLong);
    }
    Ok(text.replace("\\\n", ""))
}

fn apply_line(config: &mut RunConfig, line: &str) -> Result<(), ParseError> {
    let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    match command.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = command_line(rest),
        "ENTRYPOINT" => config.entrypoint = command_line(rest),
        "ENV" => {
            for (name, value) in pairs("ENV", rest, config)? {
                set_env(&mut config.env, &name, &value);
            }
        }
        "LABEL" => config.labels.extend(pairs("LABEL", rest, config)?),
        "EXPOSE" => {
            for port in words("EXPOSE", rest, config)? {
                let ports = expand_port(&port)?;
                config.exposed_ports.extend(ports.into_iter().map(|p| (p, Empty {})));
            }
        }
        "USER" => config.user = expand(one("USER", rest)?, config),
        "VOLUME" => {
            let volumes = match json_list(rest) {
                Some(volumes) => volumes,
                None => words("VOLUME", rest, config)?,
            };
            config.volumes.extend(volumes.into_iter().map(|v| (v, Empty {})));
        }
        "WORKDIR" => {
            let dir = expand(one("WORKDIR", rest)?, config);
            config.working_dir = join_path(&config.working_dir, &dir);
        }
        "STOPSIGNAL" => {
            let signal = expand(one("STOPSIGNAL", rest)?, config);
            if !is_signal(&signal) {
                return Err(ParseError::Signal(signal));
            }
            config.stop_signal = Some(signal);
        }
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest)?),
        "ONBUILD" => config.on_build.push(on_build(rest)?),
        _ => return Err(ParseError::Command(command.to_owned())),
    }
    Ok(())
}

/// Sets a variable in a list of `NAME=value`, keeping its place.
pub fn set_env(env: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    let known = env.iter_mut().find(|e| e.split('=').next() == Some(name));
    match known {
        Some(known) => *known = entry,
        None => env.push(entry),
    }
}

/// A JSON list as it is, other text as a line for the shell.
fn command_line(rest: &str) -> Option<Vec<String>> {
    match json_list(rest) {
        Some(list) => Some(list),
        None if rest.is_empty() => None,
        None => Some(["/bin/sh", "-c", rest].map(str::to_owned).to_vec()),
    }
}

fn json_list(rest: &str) -> Option<Vec<String>> {
    rest.starts_with('[').then(|| serde_json::from_str(rest).ok()).flatten()
}

fn one<'a>(command: &'static str, rest: &'a str) -> Result<&'a str, ParseError> {
    if rest.is_empty() { Err(ParseError::OneArgument(command)) } else { Ok(rest) }
}

fn words(command: &'static str, rest: &str, config: &RunConfig) -> Result<Vec<String>, ParseError> {
    let words: Vec<String> = rest.split_whitespace().map(|w| expand(w, config)).collect();
    if words.is_empty() { Err(ParseError::NoArgument(command)) } else { Ok(words) }
}

/// `name=value` words, or the old form of one name, a space and its value.
fn pairs(
    command: &'static str,
    rest: &str,
    config: &RunConfig,
) -> Result<Vec<(String, String)>, ParseError> {
    let words = quoted_words(rest)?;
    let Some(first) = words.first() else { return Err(ParseError::NoArgument(command)) };
    if !first.contains('=') {
        let (name, value) =
            rest.split_once(char::is_whitespace).ok_or(ParseError::NoArgument(command))?;
        return Ok(vec![(name.to_owned(), expand(value.trim(), config))]);
    }
    let mut pairs = Vec::with_capacity(words.len());
    for word in &words {
        let (name, value) =
            word.split_once('=').ok_or_else(|| ParseError::NoEquals(word.clone()))?;
        if name.is_empty() {
            return Err(ParseError::BlankName(command));
        }
        pairs.push((expand(name, config), expand(value, config)));
    }
    Ok(pairs)
}

/// Splits at blanks outside of quotes; the quotes stay, for [`expand`] to take away.
fn quoted_words(text: &str) -> Result<Vec<String>, ParseError> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                word.push(c);
                word.extend(chars.next());
            }
            (c, Some(open)) => {
                word.push(c);
                if c == open {
                    quote = None;
                }
            }
            ('"' | '\'', None) => {
                quote = Some(c);
                word.push(c);
            }
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, None) => word.push(c),
        }
    }
    if quote.is_some() {
        return Err(ParseError::Quote);
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// Takes quotes and backslashes away and puts the image's variables in.
fn expand(text: &str, config: &RunConfig) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\'', Some('\'')) | ('"', Some('"')) => quote = None,
            (c, Some('\'')) => out.push(c),
            ('\'' | '"', None) => quote = Some(c),
            ('\\', Some(_)) if !matches!(chars.peek(), Some('"' | '$' | '\\')) => out.push('\\'),
            ('\\', _) => out.extend(chars.next()),
            ('$', _) => expand_variable(&mut chars, config, &mut out),
            (c, _) => out.push(c),
        }
    }
    out
}

/// `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+alternative}`.
fn expand_variable(chars: &mut Peekable<Chars<'_>>, config: &RunConfig, out: &mut String) {
    let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    let value = |name: &str| {
        let entries = config.env.iter().filter_map(|entry| entry.split_once('='));
        entries.filter(|(n, _)| *n == name).map(|(_, v)| v.to_owned()).next_back()
    };
    if chars.next_if_eq(&'{').is_none() {
        let name: String = std::iter::from_fn(|| chars.next_if(is_name)).collect();
        if name.is_empty() {
            out.push('$');
        }
        out.push_str(&value(&name).unwrap_or_default());
        return;
    }
    let inner: String = chars.by_ref().take_while(|c| *c != '}').collect();
    if let Some((name, default)) = inner.split_once(":-") {
        let value = value(name).filter(|v| !v.is_empty());
        out.push_str(&value.unwrap_or_else(|| default.to_owned()));
    } else if let Some((name, alternative)) = inner.split_once(":+") {
        if value(name).is_some_and(|v| !v.is_empty()) {
            out.push_str(alternative);
        }
    } else {
        out.push_str(&value(&inner).unwrap_or_default());
    }
}

/// `80`, `80/udp`, `8000-8010/tcp`; a host part before a colon means nothing to an image.
fn expand_port(text: &str) -> Result<Vec<String>, ParseError> {
    let bad = || ParseError::Port(text.to_owned());
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    let ports = ports.rsplit(':').next().unwrap_or(ports);
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let first: u16 = first.parse().map_err(|_| bad())?;
    let last: u16 = last.parse().map_err(|_| bad())?;
    if last < first {
        return Err(bad());
    }
    Ok((first..=last).take(PORTS_MAX).map(|port| format!("{port}/{protocol}")).collect())
}

/// A number up to 64, or a name with or without `SIG`. Whether the platform has a signal of that
/// name is seen when a container is made.
fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'-')
}

fn join_path(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn healthcheck(rest: &str) -> Result<HealthConfig, ParseError> {
    let mut check = HealthConfig::default();
    let mut rest = rest;
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        match name {
            "interval" => check.interval = duration(value)?,
            "timeout" => check.timeout = duration(value)?,
            "start-period" => check.start_period = duration(value)?,
            "start-interval" => check.start_interval = duration(value)?,
            "retries" => {
                let retries = value.parse().ok().filter(|n| *n >= 1);
                check.retries = retries.ok_or_else(|| ParseError::Flag(flag.to_owned()))?;
            }
            _ => return Err(ParseError::Flag(name.to_owned())),
        }
        rest = after.trim_start();
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = match (kind.to_ascii_uppercase().as_str(), command.trim()) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("CMD", "") | ("", _) => return Err(ParseError::NoArgument("HEALTHCHECK")),
        ("CMD", command) => match json_list(command) {
            Some(list) => [vec!["CMD".to_owned()], list].concat(),
            None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        },
        _ => return Err(ParseError::Healthcheck(kind.to_owned())),
    };
    Ok(check)
}

fn on_build(rest: &str) -> Result<String, ParseError> {
    let trigger = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    match trigger.as_str() {
        "" => Err(ParseError::NoArgument("ONBUILD")),
        "ONBUILD" => Err(ParseError::ChainedOnBuild),
        "MAINTAINER" | "FROM" => Err(ParseError::OnBuildTrigger(trigger)),
        _ => Ok(rest.to_owned()),
    }
}

/// Nanoseconds of a Go duration: `1m30s`, `1.5h`, `200ms`. Not negative.
fn duration(text: &str) -> Result<i64, ParseError> {
    let bad = || ParseError::Duration(text.to_owned());
    if text == "0" {
        return Ok(0);
    }
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        let after = &rest[digits..];
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        total += number
            * match &after[..end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(bad()),
            };
        rest = &after[end..];
    }
    // 2^53 nanoseconds are 104 days; beyond it a health check makes no sense, nor does the sum.
    if text.is_empty() || total > 9e15 {
        return Err(bad());
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 2^53")]
    Ok(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(lines: &[&str]) -> Result<RunConfig, ParseError> {
        let mut config = RunConfig::default();
        let lines: Vec<String> = lines.iter().map(|l| (*l).to_owned()).collect();
        apply(&mut config, &lines).map(|()| config)
    }

    fn changed(lines: &[&str]) -> serde_json::Value {
        let mut value = serde_json::to_value(applied(lines).unwrap()).unwrap();
        let fields = value.as_object_mut().unwrap();
        fields.retain(|_, v| !v.is_null() && *v != serde_json::json!([]) && *v != "");
        value
    }

    #[test]
    fn each_instruction_sets_its_field() {
        for (lines, expected) in [
            (&["CMD top -b"][..], r#"{"Cmd":["/bin/sh","-c","top -b"]}"#),
            (&[r#"cmd ["top", "-b"]"#], r#"{"Cmd":["top","-b"]}"#),
            (&[r#"ENTRYPOINT ["/app"]"#], r#"{"Entrypoint":["/app"]}"#),
            (&["ENV A=1 B=\"two 2\" C='x y'"], r#"{"Env":["A=1","B=two 2","C=x y"]}"#),
            (&["ENV A some value"], r#"{"Env":["A=some value"]}"#),
            (&["ENV A=1 B=0", "ENV A=2"], r#"{"Env":["A=2","B=0"]}"#),
            (
                &["ENV A=/a", "WORKDIR $A/b", "WORKDIR ../c"],
                r#"{"Env":["A=/a"],"WorkingDir":"/a/c"}"#,
            ),
            (&["USER ${U:-nobody}"], r#"{"User":"nobody"}"#),
            (
                &["ENV P=90", "EXPOSE ${P} 53/udp"],
                r#"{"Env":["P=90"],"ExposedPorts":{"90/tcp":{},"53/udp":{}}}"#,
            ),
            (&["EXPOSE 80-82"], r#"{"ExposedPorts":{"80/tcp":{},"81/tcp":{},"82/tcp":{}}}"#),
            (&["LABEL a=b \"c d\"=e\\ f"], r#"{"Labels":{"a":"b","c d":"e f"}}"#),
            (&["VOLUME /a /b"], r#"{"Volumes":{"/a":{},"/b":{}}}"#),
            (&[r#"VOLUME ["/a b"]"#], r#"{"Volumes":{"/a b":{}}}"#),
            (&["STOPSIGNAL SIGKILL"], r#"{"StopSignal":"SIGKILL"}"#),
            (&["ONBUILD RUN make"], r#"{"OnBuild":["RUN make"]}"#),
            (
                &["HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f x"],
                r#"{"Healthcheck":{"Test":["CMD-SHELL","curl -f x"],"Interval":90000000000,"Retries":3}}"#,
            ),
            (&["HEALTHCHECK NONE"], r#"{"Healthcheck":{"Test":["NONE"]}}"#),
            (&["USER a\n# comment\nCMD \\\nx"], r#"{"User":"a","Cmd":["/bin/sh","-c","x"]}"#),
        ] {
            let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
            assert_eq!(changed(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn wrong_instructions_say_what_is_wrong() {
        for (line, message) in [
            ("RUN x", "RUN is not a valid change command"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV A=1 B", "Syntax error - can't find = in \"B\". Must be of the form: name=value"),
            ("LABEL =x", "LABEL names can not be blank"),
            ("EXPOSE x", "invalid containerPort: x"),
            ("EXPOSE 70000", "invalid containerPort: 70000"),
            ("STOPSIGNAL 99", "invalid signal: 99"),
            ("HEALTHCHECK --interval=x CMD y", "time: invalid duration \"x\""),
            ("HEALTHCHECK RUN y", "unknown instruction in HEALTHCHECK: RUN"),
            ("ONBUILD ONBUILD x", "chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
            ("ENV A=\"x", "unterminated quote"),
            ("WORKDIR", "WORKDIR requires exactly one argument"),
        ] {
            assert_eq!(applied(&[line]).unwrap_err().to_string(), message, "{line}");
        }
    }
}
