//! What goes in and out of containers: piped input, terminals, logs that are followed, clients that leave.

use e2e::{Host, skep_only};

/// More than every buffer on the way.
const BIG_BYTES: usize = 10_000_000;

/// A host with the images and a container `box1` that does nothing.
fn with_box() -> Host {
    let host = Host::new();
    host.load_images();
    host.ok(&[
        "run",
        "-d",
        "--name",
        "box1",
        "--stop-signal",
        "SIGKILL",
        "busybox",
        "sleep",
        "1000",
    ]);
    host
}

/// Bytes that no part of repeats another.
fn big() -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    });
    words.flatten().take(BIG_BYTES).collect()
}

#[test]
fn piped_input_reaches_its_end_and_all_of_the_output_comes_back() {
    let host = with_box();
    host.ok(&["create", "-i", "--name", "cat", "busybox", "cat"]);
    let big = big();
    for arguments in [
        &["run", "--rm", "-i", "busybox", "cat"][..],
        &["exec", "-i", "box1", "cat"],
        &["start", "-a", "-i", "cat"],
    ] {
        for input in [&b"hi\n"[..], b"", &big] {
            let (output, code) = host.piped(arguments, input);
            assert_eq!(code, 0, "{arguments:?}");
            assert_eq!(output.len(), input.len(), "{arguments:?}");
            assert!(output == input, "{arguments:?}: other bytes came back");
        }
    }
}

#[test]
fn piped_input_of_a_shell_is_its_script_and_its_exit_code_the_commands() {
    let host = with_box();
    for arguments in [&["run", "--rm", "-i", "busybox", "sh"][..], &["exec", "-i", "box1", "sh"]] {
        let (output, code) = host.piped(arguments, b"echo one; echo two >&2\nexit 7\n");
        assert_eq!((output.as_slice(), code), (&b"one\n"[..], 7), "{arguments:?}");
    }
}

#[test]
fn a_process_that_reads_no_input_does_not_hang_its_client() {
    let host = with_box();
    let big = big();
    for command in ["exec <&-; echo done", "head -c 1 >/dev/null; echo done", "echo done"] {
        for arguments in [
            &["run", "--rm", "-i", "busybox", "sh", "-c", command][..],
            &["exec", "-i", "box1", "sh", "-c", command],
            &["exec", "box1", "sh", "-c", command],
        ] {
            let (output, code) = host.piped(arguments, &big);
            assert_eq!((output.as_slice(), code), (&b"done\n"[..], 0), "{arguments:?}");
        }
    }
}

#[test]
fn input_attached_to_a_running_container_reaches_it_and_its_answer_the_client() {
    skep_only!("stock Docker closes the outputs of an attached client as soon as its input ends");
    let host = Host::new();
    host.load_images();
    let script = "while read -r line; do echo got $line; [ \"$line\" = end ] && exit 3; done";
    host.ok(&["run", "-d", "-i", "--name", "reader", "busybox", "sh", "-c", script]);
    let (output, code) = host.piped(&["attach", "reader"], b"one\nend\n");
    let output = String::from_utf8(output).expect("text");
    assert_eq!((output.as_str(), code), ("got one\ngot end\n", 3));
}

#[test]
fn an_attached_client_that_leaves_does_not_hold_the_container_up() {
    let host = Host::new();
    host.load_images();
    // Quiet until the client has left, then more than any buffer holds.
    let script = "echo here; until [ -e /go ]; do usleep 10000; done; seq 1 100000; sleep 1000";
    host.ok(&[
        "run",
        "-d",
        "--name",
        "talker",
        "--stop-signal",
        "SIGKILL",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let client = host.follow(&["attach", "--no-stdin", "talker"]);
    host.until("the container talks", || host.ok(&["logs", "talker"]) == "here");
    drop(client);
    host.ok(&["exec", "talker", "touch", "/go"]);
    host.until("the container has said all", || {
        host.ok(&["logs", "--tail", "1", "talker"]) == "100000"
    });
}

#[test]
fn an_exec_whose_client_leaves_goes_on() {
    let host = with_box();
    let script = "echo here; until [ -e /go ]; do usleep 10000; done; seq 1 100000; touch /over";
    for (flags, go, over) in [(&["exec"][..], "/go", "/over"), (&["exec", "-t"], "/go2", "/over2")]
    {
        let script = script.replace("/go", go).replace("/over", over);
        let client = host.follow(&[flags, &["box1", "sh", "-c", &script]].concat());
        assert_eq!(client.line().trim(), "here");
        drop(client);
        host.ok(&["exec", "box1", "touch", go]);
        host.until("the process has ended", || {
            host.docker(&["exec", "box1", "ls", over]).code == 0
        });
    }
}

/// A loop of a shell that waits for its terminal to have a size, then says so in a word that was not typed.
fn sized(rows: u16, columns: u16) -> String {
    format!(
        "until [ \"$(stty size)\" = '{rows} {columns}' ]; do usleep 10000; done; echo si''zed\n"
    )
}

#[test]
fn a_container_on_a_terminal_has_its_size_and_is_left_and_attached_to_again() {
    let host = Host::new();
    host.load_images();
    let mut terminal = host.terminal(&["run", "-it", "--name", "shell", "busybox", "sh"], (33, 99));
    terminal.type_in(&sized(33, 99));
    terminal.see("sized");
    terminal.resize((20, 70));
    terminal.type_in(&sized(20, 70));
    terminal.see("sized");
    terminal.type_in("\x10\x11");
    let (_, code) = terminal.end();
    assert_eq!(code, 0, "the client has left");
    assert_eq!(host.ok(&["inspect", "shell", "--format", "{{.State.Status}}"]), "running");
    let mut terminal = host.terminal(&["attach", "shell"], (30, 90));
    terminal.type_in(&sized(30, 90));
    terminal.see("sized");
    terminal.type_in("seq 1 20000; exit 9\n");
    let (shown, code) = terminal.end();
    assert!(shown.contains("\n20000\r\n"), "the end is shown: {shown:?}");
    assert_eq!(code, 9);
}

#[test]
fn all_that_is_written_to_a_terminal_before_the_end_is_shown() {
    let host = with_box();
    for arguments in [
        &["run", "--rm", "-t", "busybox", "seq", "1", "20000"][..],
        &["exec", "-t", "box1", "seq", "1", "20000"],
    ] {
        let (shown, code) = host.terminal(arguments, (24, 80)).end();
        let shown = shown.replace('\r', "");
        let expected: String = (1..=20000).map(|number| format!("{number}\n")).collect();
        assert!(shown == expected, "{arguments:?}: {} bytes", shown.len());
        assert_eq!(code, 0);
    }
}

#[test]
fn an_exec_on_a_terminal_has_its_size_and_can_be_left() {
    let host = with_box();
    let mut terminal = host.terminal(&["exec", "-it", "box1", "sh"], (31, 91));
    terminal.type_in(&sized(31, 91));
    terminal.see("sized");
    terminal.resize((21, 71));
    terminal.type_in(&sized(21, 71));
    terminal.see("sized");
    terminal.type_in("exit 5\n");
    assert_eq!(terminal.end().1, 5);
    let arguments = ["exec", "-it", "--detach-keys", "ctrl-a,x", "box1"];
    let script = "echo rea''dy; until [ -e /go ]; do usleep 10000; done; seq 1 20000; touch /over";
    let mut terminal = host.terminal(&[&arguments[..], &["sh", "-c", script]].concat(), (24, 80));
    terminal.see("ready");
    terminal.type_in("\x01x");
    terminal.end();
    host.ok(&["exec", "box1", "touch", "/go"]);
    host.until("the process has ended", || host.docker(&["exec", "box1", "ls", "/over"]).code == 0);
}

#[test]
fn a_log_is_followed_to_the_containers_end() {
    let host = Host::new();
    host.load_images();
    let script = "echo one; echo two >&2; until [ -e /go ]; do usleep 10000; done; echo three";
    host.ok(&["run", "-d", "--name", "talker", "busybox", "sh", "-c", script]);
    let log = host.follow(&["logs", "-f", "talker"]);
    assert_eq!(log.line(), "one");
    host.ok(&["exec", "talker", "touch", "/go"]);
    assert_eq!(log.rest(), ["three"]);
    let printed = host.docker(&["logs", "--timestamps", "talker"]);
    assert_eq!(printed.stderr.split_whitespace().nth(1), Some("two"), "{printed:?}");
    assert_eq!(printed.stdout.split_whitespace().nth(3), Some("three"), "{printed:?}");
}

#[test]
fn an_exec_ends_with_its_process_though_others_hold_its_outputs() {
    let host = with_box();
    assert_eq!(host.ok(&["exec", "box1", "sh", "-c", "sleep 900 & echo done"]), "done");
    assert!(host.ok(&["top", "box1"]).contains("sleep 900"), "what was left behind goes on");
}
