//! A container's life under the shim: start, streams, log, exec, end, and daemons that come and go.

#![allow(clippy::unwrap_used, reason = "a helper of a test may end it")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use common::{Bundle, Reader, Under, exec, pipe, read_all, shell};
use runtime::spec::{ConsoleSize, Resources};
use shim::client::{
    Attachment, Client, End, ExecStdio, clean_up_lost, exit_record, is_gone, resize_terminal,
    state_record,
};
use shim::config::{LogConfig, LogDriver};
use shim::protocol::{Status, WhenFull};

async fn both(test: impl AsyncFn(Under)) {
    for under in [Under::Native, Under::Runc] {
        test(under).await;
    }
}

fn json_file(bundle: &Bundle) -> LogConfig {
    LogConfig {
        driver: LogDriver::JsonFile,
        path: bundle.path().join("json.log"),
        ..LogConfig::default()
    }
}

/// A container that runs until it is told to end by a line of input, and says when it is there.
fn waiting_bundle(under: Under) -> Bundle {
    let mut bundle = Bundle::new("echo ready; read line; echo got $line").under(under);
    bundle.config.open_stdin = true;
    bundle.config.stdin_once = true;
    bundle.config.log = json_file(&bundle);
    bundle
}

/// Starts the container and returns once it has spoken, with the ends of its input and output.
async fn start_ready(bundle: &Bundle) -> (Client, fs::File, fs::File) {
    let client = bundle.launch().await;
    let (far_input, input) = pipe();
    let (output, far_output) = pipe();
    let attachment =
        Attachment { stdin: Some(far_input), stdout: Some(far_output), ..Attachment::default() };
    client.attach(attachment).await.unwrap();
    client.start().await.unwrap();
    let mut output = fs::File::from(output);
    let mut ready = [0; 6];
    output.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    (client, input.into(), output)
}

async fn exit_code(client: &Client) -> i32 {
    match client.wait().await {
        End::Exited(exit) => exit.exit_code,
        End::Lost => panic!("shim died"),
    }
}

#[tokio::test]
async fn output_and_exit_code_arrive_and_are_recorded() {
    both(async |under| {
        let bundle = Bundle::new("echo out; echo err >&2; exit 7").under(under);
        let output = bundle.run().await;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(output.exit.exit_code, 7, "{output:?}");
        assert_eq!(exit_record(bundle.path()).unwrap().unwrap(), output.exit);
    })
    .await;
}

#[tokio::test]
async fn an_exec_runs_beside_the_container_and_its_end_is_told() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        let (client, input, _output) = start_ready(&bundle).await;
        let (output, code) = exec(&client, &shell("hostname; cat /proc/1/comm; exit 3")).await;
        assert_eq!((output.as_str(), code), ("skephost\nsh\n", 3), "{under:?}");
        drop(input);
        assert_eq!(exit_code(&client).await, 0);
    })
    .await;
}

#[tokio::test]
async fn input_reaches_the_container_and_its_end_does_too() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        let (client, mut input, mut output) = start_ready(&bundle).await;
        input.write_all(b"words\n").unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "got words\n");
        assert_eq!(exit_code(&client).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_signal_ends_the_container_with_its_number() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        let (client, _input, _output) = start_ready(&bundle).await;
        client.kill(9, false).await.unwrap();
        assert_eq!(exit_code(&client).await, 137);
    })
    .await;
}

#[tokio::test]
async fn the_log_is_written_without_any_daemon_and_a_new_one_finds_the_container() {
    both(async |under| {
        let mut bundle = waiting_bundle(under);
        bundle.config.stdin_once = false;
        let (client, mut input, mut output) = start_ready(&bundle).await;
        let pid = client.state().await.unwrap().pid;
        drop(client);
        let again = Client::connect(bundle.path()).await.unwrap();
        let state = again.state().await.unwrap();
        assert_eq!((state.status, state.pid), (Status::Running, pid));
        assert_eq!(state_record(bundle.path()).unwrap().unwrap().pid, pid);
        input.write_all(b"later\n").unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(exit_code(&again).await, 0);
        let log = fs::read_to_string(bundle.path().join("json.log")).unwrap();
        assert!(log.contains(r#""log":"ready\n""#) && log.contains(r#""log":"got later\n""#));
    })
    .await;
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_on_record() {
    let bundle = waiting_bundle(Under::Native);
    let (client, input, mut output) = start_ready(&bundle).await;
    drop(client);
    drop(input);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    // End of output means that the shim has let go of everything but its own end.
    while let Ok(client) = Client::connect(bundle.path()).await {
        client.wait().await;
    }
    let error = Client::connect(bundle.path()).await.unwrap_err();
    assert!(is_gone(&error), "{error:?}");
    let exit = exit_record(bundle.path()).unwrap().unwrap();
    assert_eq!((exit.exit_code, exit.oom_killed), (0, false));
}

#[tokio::test]
async fn a_container_whose_shim_is_killed_goes_with_it_and_is_cleaned_up() {
    let bundle = waiting_bundle(Under::Native);
    let (client, _input, mut output) = start_ready(&bundle).await;
    let record = state_record(bundle.path()).unwrap().unwrap();
    let shim = rustix::process::Pid::from_raw(record.shim_pid).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(client.wait().await, End::Lost);
    assert_eq!(exit_record(bundle.path()).unwrap(), None);
    clean_up_lost(bundle.path()).unwrap();
    let group = runtime::cgroup::Cgroup::new(&bundle.spec.linux.cgroups_path).unwrap();
    assert!(group.directories().iter().all(|it| !it.exists()));
}

#[tokio::test]
async fn a_shim_that_was_never_started_goes_with_its_daemon() {
    let bundle = waiting_bundle(Under::Native);
    let client = bundle.launch().await;
    drop(client);
    while Client::connect(bundle.path()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(exit_record(bundle.path()).unwrap(), None);
}

#[tokio::test]
async fn a_container_can_be_started_again_the_moment_its_end_is_told() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        for _ in 0..8 {
            let (client, input, _output) = start_ready(&bundle).await;
            assert!(Client::connect(bundle.path()).await.is_ok());
            drop(input);
            assert_eq!(exit_code(&client).await, 0, "{under:?}");
            fs::remove_file(bundle.path().join(shim::config::EXIT_FILE)).unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_shim_that_cannot_begin_says_why() {
    let mut bundle = Bundle::new("true");
    bundle.config.log =
        LogConfig { path: bundle.path().join("missing").join("log"), ..json_file(&bundle) };
    let config = bundle.path().join(shim::config::CONFIG_FILE);
    shim::config::write_json(&config, &bundle.config).unwrap();
    let launcher = shim::client::Launcher::new(std::path::Path::new(common::SHIM));
    let error = launcher.launch(bundle.path()).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("missing/log: no such file or directory"), "{source}");
}

#[tokio::test]
async fn a_command_that_cannot_run_is_told_in_dockers_words() {
    let cases: [(&[&str], i32, &str); 4] = [
        (&["nonsense"], 127, "exec: \"nonsense\": executable file not found in $PATH"),
        (&["/no/such"], 127, "exec: \"/no/such\": stat /no/such: no such file or directory"),
        (&["/etc/passwd"], 126, "exec: \"/etc/passwd\": permission denied"),
        (&["/etc"], 126, "exec: \"/etc\": is a directory"),
    ];
    for (args, code, text) in cases {
        let mut bundle = Bundle::new("").under(Under::Native);
        bundle.spec.process.args = args.iter().map(|it| (*it).to_owned()).collect();
        let output = bundle.run().await;
        assert_eq!((output.exit.exit_code, output.error.as_deref()), (code, Some(text)));
        assert_eq!(output.exit.error, text);
        assert_eq!(output.exit.pid, 0);
    }
    let mut bundle = Bundle::new("").under(Under::Runc);
    bundle.spec.process.args = vec!["nonsense".to_owned()];
    let output = bundle.run().await;
    assert_eq!(output.exit.exit_code, 127);
    assert!(output.exit.error.contains("executable file not found in $PATH"), "{output:?}");
}

#[tokio::test]
async fn an_exec_that_cannot_run_leaves_the_container_alone() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        let (client, input, _output) = start_ready(&bundle).await;
        let mut process = shell("");
        process.args = vec!["nonsense".to_owned()];
        let null = || fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let stdio = ExecStdio::Streams {
            stdin: null().into(),
            stdout: null().into(),
            stderr: null().into(),
        };
        let error = client.exec("x", &process, stdio).await.unwrap_err();
        assert_eq!(error.exit_code(), 127, "{under:?} {error}");
        assert!(error.to_string().contains("executable file not found in $PATH"), "{error}");
        drop(input);
        assert_eq!(exit_code(&client).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_terminal_has_its_size_and_echoes() {
    both(async |under| {
        let mut bundle = Bundle::new("tty; stty size; read line; echo got $line").under(under);
        bundle.spec.process.terminal = true;
        bundle.spec.process.console_size = Some(ConsoleSize { height: 30, width: 100 });
        bundle.config.open_stdin = true;
        bundle.config.log = json_file(&bundle);
        let client = bundle.launch().await;
        let (far_input, input) = pipe();
        let (output, far_output) = pipe();
        let attachment = Attachment {
            stdin: Some(far_input),
            stdout: Some(far_output),
            ..Attachment::default()
        };
        client.attach(attachment).await.unwrap();
        client.start().await.unwrap();
        fs::File::from(input).write_all(b"hello\n").unwrap();
        let text = tokio::task::spawn_blocking(move || read_all(output)).await.unwrap();
        assert_eq!(exit_code(&client).await, 0);
        assert!(text.contains("/dev/pts/") || text.contains("/dev/console"), "{text}");
        assert!(text.contains("30 100\r\n"), "{under:?} {text}");
        assert!(text.contains("got hello\r\n"), "{text}");
        let log = fs::read_to_string(bundle.path().join("json.log")).unwrap();
        assert!(log.contains(r#""log":"got hello\r\n","stream":"stdout""#), "{log}");
    })
    .await;
}

#[tokio::test]
async fn an_exec_with_a_terminal_hands_it_over() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        let (client, input, _output) = start_ready(&bundle).await;
        let process = shell("read line; stty size; exit 4");
        let execution = client.exec("tty", &process, ExecStdio::Terminal).await.unwrap();
        let terminal = execution.terminal.expect("a terminal was asked for");
        resize_terminal(&terminal, 40, 120).unwrap();
        rustix::io::write(&terminal, b"go\n").unwrap();
        let text = tokio::task::spawn_blocking(move || read_all(terminal)).await.unwrap();
        assert!(text.contains("40 120"), "{under:?} {text}");
        assert_eq!(execution.exit.await.unwrap(), 4);
        drop(input);
        assert_eq!(exit_code(&client).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_paused_container_stands_still_until_it_is_resumed() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        let (client, mut input, mut output) = start_ready(&bundle).await;
        client.pause().await.unwrap();
        assert_eq!(client.state().await.unwrap().status, Status::Paused);
        assert!(client.pause().await.is_err());
        input.write_all(b"frozen\n").unwrap();
        let pid = client.state().await.unwrap().pid;
        let syscall = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        client.resume().await.unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "got frozen\n", "{syscall}");
        assert_eq!(exit_code(&client).await, 0);
    })
    .await;
}

#[tokio::test]
async fn limits_change_while_the_container_runs() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        let (client, input, _output) = start_ready(&bundle).await;
        let group = runtime::cgroup::Cgroup::new(&bundle.spec.linux.cgroups_path).unwrap();
        for megabytes in [256, 32] {
            let mut resources = Resources::default();
            resources.memory.limit = Some(megabytes * 1024 * 1024);
            resources.memory.swap = Some(megabytes * 1024 * 1024);
            resources.pids.limit = Some(megabytes);
            client.update(&resources).await.unwrap();
            let stats = group.stats();
            assert_eq!(stats.memory.limit, megabytes.cast_unsigned() * 1024 * 1024, "{under:?}");
            assert_eq!(stats.pids_limit, megabytes.cast_unsigned());
        }
        drop(input);
        assert_eq!(exit_code(&client).await, 0);
    })
    .await;
}

#[tokio::test]
async fn counters_of_a_running_container_can_be_read() {
    let bundle = waiting_bundle(Under::Native);
    let (client, input, _output) = start_ready(&bundle).await;
    let group = runtime::cgroup::Cgroup::new(&bundle.spec.linux.cgroups_path).unwrap();
    let stats = group.stats();
    assert!(stats.cpu.total_ns > 0 && stats.memory.usage > 0, "{stats:?}");
    assert_eq!(stats.memory.limit, 64 * 1024 * 1024);
    assert_eq!((stats.pids_current, stats.pids_limit), (1, 64));
    assert_eq!(group.pids(), [client.state().await.unwrap().pid]);
    drop(input);
    assert_eq!(exit_code(&client).await, 0);
}

#[tokio::test]
async fn a_container_that_wants_too_much_memory_is_marked_as_killed_for_it() {
    let script = "exec 2>/dev/null; x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done";
    let output = Bundle::new(script).run().await;
    assert_eq!((output.exit.exit_code, output.exit.oom_killed), (137, true), "{output:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_neither_log_nor_container() {
    let mut bundle = Bundle::new("yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa | head -c 8388608");
    bundle.config.log = json_file(&bundle);
    let client = bundle.launch().await;
    let (_unread, far) = pipe();
    let attachment = Attachment { stdout: Some(far), ..Attachment::default() };
    client.attach(attachment).await.unwrap();
    client.start().await.unwrap();
    assert_eq!(exit_code(&client).await, 0);
    let log = fs::read_to_string(bundle.path().join("json.log")).unwrap();
    assert_eq!(log.lines().count(), 8_388_608 / 32);
}

#[tokio::test]
async fn a_client_that_asks_for_it_makes_the_container_wait_and_loses_nothing() {
    let bundle = Bundle::new("yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa | head -c 8388608");
    let client = bundle.launch().await;
    let (near, far) = pipe();
    let when_full = WhenFull::Wait;
    let attachment = Attachment { stdout: Some(far), when_full, ..Attachment::default() };
    client.attach(attachment).await.unwrap();
    client.start().await.unwrap();
    let text = tokio::task::spawn_blocking(move || read_all(near)).await.unwrap();
    assert_eq!(text.len(), 8_388_608);
    assert_eq!(exit_code(&client).await, 0);
}

#[tokio::test]
async fn process_1_of_ours_reaps_orphans_and_passes_signals_on() {
    let script = "(true & ) ; trap 'echo term; exit 5' TERM; echo ready; \
                  while :; do read line || exit 1; done";
    let mut bundle = Bundle::new(script);
    bundle.config.open_stdin = true;
    bundle.config.init = Some(common::SHIM.into());
    // The shim that cargo builds for tests is not static, unlike the one that is shipped.
    bundle.bind("/lib", "/lib", &["rbind", "ro"]);
    bundle.bind("/lib64", "/lib64", &["rbind", "ro"]);
    let client = bundle.launch().await;
    let (far_input, _input) = pipe();
    let (output, far_output) = pipe();
    let attachment =
        Attachment { stdin: Some(far_input), stdout: Some(far_output), ..Attachment::default() };
    client.attach(attachment).await.unwrap();
    client.start().await.unwrap();
    let mut output = fs::File::from(output);
    let mut ready = [0; 6];
    output.read_exact(&mut ready).unwrap();
    let (comm, _) = exec(&client, &shell("cat /proc/1/comm; ps -o stat,comm")).await;
    assert!(comm.starts_with("docker-init\n") && !comm.contains('Z'), "{comm}");
    client.kill(15, false).await.unwrap();
    assert_eq!(exit_code(&client).await, 5);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "term\n");
}

#[tokio::test]
async fn delete_ends_a_running_container_and_its_shim() {
    both(async |under| {
        let bundle = waiting_bundle(under);
        let (client, _input, _output) = start_ready(&bundle).await;
        client.delete().await.unwrap();
        assert_eq!(exit_code(&client).await, 137, "{under:?}");
        let group = runtime::cgroup::Cgroup::new(&bundle.spec.linux.cgroups_path).unwrap();
        while Client::connect(bundle.path()).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(group.directories().iter().all(|it| !it.exists()));
    })
    .await;
}

#[tokio::test]
async fn an_unknown_request_gets_an_answer_and_the_shim_lives_on() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let bundle = waiting_bundle(Under::Native);
    let (client, input, _output) = start_ready(&bundle).await;
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let address = SocketAddrUnix::new(bundle.path().join("shim.sock")).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    for packet in [&br#"{"id":3,"request":{"kind":"teleport"}}"#[..], b"garbage", b"{}"] {
        rustix::net::send(&socket, packet, rustix::net::SendFlags::empty()).unwrap();
    }
    let mut answer = [0; 1024];
    let flags = rustix::net::RecvFlags::empty();
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], flags).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.contains(r#""id":3"#) && answer.contains(r#""kind":"unknown""#), "{answer}");
    assert_eq!(client.state().await.unwrap().status, Status::Running);
    drop(input);
    assert_eq!(exit_code(&client).await, 0);
}

#[tokio::test]
async fn a_large_environment_fits_into_an_exec() {
    let bundle = waiting_bundle(Under::Native);
    let (client, input, _output) = start_ready(&bundle).await;
    let mut process = shell("echo ${#BIG0} ${#BIG4}");
    for number in 0..5 {
        process.env.push(format!("BIG{number}={}", "x".repeat(100_000)));
    }
    let (output, code) = exec(&client, &process).await;
    assert_eq!((output.as_str(), code), ("100000 100000\n", 0));
    drop(input);
    assert_eq!(exit_code(&client).await, 0);
}

#[tokio::test]
async fn output_of_processes_left_behind_does_not_hold_up_the_end() {
    let mut bundle = Bundle::new("sleep 1000 & echo started");
    let own_pids = |it: &runtime::spec::Namespace| it.kind != runtime::spec::NamespaceKind::Pid;
    bundle.spec.linux.namespaces.retain(own_pids);
    let output = tokio::time::timeout(Duration::from_secs(60), bundle.run()).await.unwrap();
    assert_eq!((output.stdout.as_str(), output.exit.exit_code), ("started\n", 0));
}

#[tokio::test]
async fn the_local_driver_writes_its_own_form() {
    let mut bundle = Bundle::new("echo hello");
    bundle.config.log = LogConfig { driver: LogDriver::Local, ..json_file(&bundle) };
    let (attachment, reader) = Reader::attach();
    let client = bundle.launch().await;
    client.attach(attachment).await.unwrap();
    client.start().await.unwrap();
    assert_eq!(reader.read().await.0, "hello\n");
    client.wait().await;
    let log = fs::read(bundle.path().join("json.log")).unwrap();
    assert!(log[4..].starts_with(b"\x0a\x06stdout") && log[..4] == log[log.len() - 4..]);
}
