//! What a container goes through: files copied in and out, names, pauses, ends, and what is told of it.

use e2e::{Host, skep_only};

fn with_box() -> Host {
    let host = Host::new();
    host.load_images();
    let flags = ["run", "-d", "--name", "box1", "--label", "team=a", "--stop-signal", "SIGKILL"];
    host.ok(&[&flags[..], &["busybox", "sleep", "1000"]].concat());
    host
}

#[test]
fn files_and_folders_are_copied_in_and_out() {
    let host = with_box();
    let folder = host.path("folder");
    std::fs::create_dir_all(folder.join("sub")).expect("creates");
    std::fs::write(folder.join("sub/file"), "inside").expect("writes");
    std::os::unix::fs::symlink("sub/file", folder.join("link")).expect("links");
    let folder = folder.to_str().expect("text").to_owned();
    host.ok(&["cp", &folder, "box1:/tmp/"]);
    assert_eq!(host.ok(&["exec", "box1", "cat", "/tmp/folder/link"]), "inside");
    host.ok(&["cp", &format!("{folder}/sub/file"), "box1:/tmp/other"]);
    assert_eq!(host.ok(&["exec", "box1", "cat", "/tmp/other"]), "inside");
    host.ok(&[
        "exec",
        "box1",
        "sh",
        "-c",
        "echo changed >/tmp/folder/sub/file; chmod 600 /tmp/other",
    ]);
    let out = host.path("out").to_str().expect("text").to_owned();
    host.ok(&["cp", "box1:/tmp/folder", &out]);
    let read = |path: &str| std::fs::read_to_string(path).expect("it was copied");
    assert_eq!(read(&format!("{out}/sub/file")), "changed\n");
    assert_eq!(read(&format!("{out}/link")), "changed\n");
    let printed = host.docker(&["cp", "box1:/etc/passwd", "-"]);
    assert!(printed.stdout.contains("root:x:0:0"), "an archive on standard output");
    let (_, code) = host.piped(&["cp", "-", "box1:/home"], printed.stdout.as_bytes());
    assert_eq!(code, 0);
    assert!(host.ok(&["exec", "box1", "cat", "/home/passwd"]).starts_with("root:"));
    for (from, to) in [("box1:/nothing", "/tmp"), ("/etc/hosts", "box1:/nothing/here/file")] {
        let refusal = host.refused(&["cp", from, to]).to_lowercase();
        let is_said = refusal.contains("could not find the file /nothing")
            || refusal.contains("no such container:path: box1:/nothing")
            || refusal.contains("no such directory");
        assert!(is_said, "{refusal}");
    }
    // A container that does not run has its files too.
    host.ok(&["stop", "box1"]);
    host.ok(&["cp", "box1:/tmp/other", &format!("{out}2")]);
    assert_eq!(read(&format!("{out}2")), "inside");
}

#[test]
fn a_link_in_a_container_leads_no_copy_out_of_it() {
    let host = with_box();
    let secret = host.path("secret");
    std::fs::write(&secret, "of the host").expect("writes");
    let target = secret.to_str().expect("text");
    host.ok(&["exec", "box1", "ln", "-s", target, "/tmp/trap"]);
    host.ok(&["exec", "box1", "ln", "-s", "../../../../../..", "/tmp/up"]);
    let printed = host.docker(&["cp", "-L", "box1:/tmp/trap", "-"]);
    assert!(!printed.stdout.contains("of the host"), "{printed:?}");
    let printed = host.docker(&["cp", &format!("box1:/tmp/up{target}"), "-"]);
    assert!(!printed.stdout.contains("of the host"), "{printed:?}");
    let file = host.path("file");
    std::fs::write(&file, "from outside").expect("writes");
    host.docker(&["cp", file.to_str().expect("text"), "box1:/tmp/trap"]);
    assert_eq!(std::fs::read_to_string(&secret).expect("reads"), "of the host");
}

#[test]
fn a_container_is_paused_and_goes_on() {
    let host = with_box();
    let script = "while :; do date +%s%N >/now; usleep 1000; done";
    host.ok(&["exec", "-d", "box1", "sh", "-c", script]);
    let state = || host.ok(&["inspect", "box1", "--format", "{{.State.Status}} {{.State.Paused}}"]);
    host.ok(&["pause", "box1"]);
    assert_eq!(state(), "paused true");
    assert!(host.ok(&["ps", "--format", "{{.Status}}"]).ends_with("(Paused)"));
    let refusal = host.refused(&["exec", "box1", "true"]);
    assert!(refusal.contains("is paused, unpause the container before exec"), "{refusal}");
    assert!(host.refused(&["pause", "box1"]).contains("is already paused"));
    host.ok(&["unpause", "box1"]);
    assert_eq!(state(), "running false");
    assert!(host.refused(&["unpause", "box1"]).contains("is not paused"));
    let now = || host.docker(&["exec", "box1", "cat", "/now"]).stdout;
    let before = now();
    host.until("the processes go on", || now() != before);
}

#[test]
fn a_containers_new_name_is_its_only_one() {
    let host = with_box();
    host.ok(&["create", "--name", "other", "busybox"]);
    let refusal = host.refused(&["rename", "box1", "other"]);
    assert!(
        refusal.contains("Conflict. The container name \"/other\" is already in use"),
        "{refusal}"
    );
    host.ok(&["rename", "box1", "box2"]);
    assert_eq!(host.ok(&["exec", "box2", "echo", "there"]), "there");
    assert!(host.refused(&["exec", "box1", "true"]).contains("No such container: box1"));
    host.ok(&["create", "--name", "box1", "busybox"]);
}

#[test]
fn an_end_is_waited_for_and_its_code_told() {
    let host = with_box();
    host.ok(&["run", "-d", "--name", "short", "busybox", "sh", "-c", "exit 6"]);
    assert_eq!(host.ok(&["wait", "short"]), "6");
    assert_eq!(host.ok(&["wait", "short"]), "6", "also of one that has ended");
    let waiting = host.follow(&["wait", "box1"]);
    host.ok(&["kill", "--signal", "KILL", "box1"]);
    assert_eq!(waiting.line(), "137");
    assert!(host.refused(&["wait", "nothing"]).contains("No such container: nothing"));
}

#[test]
fn processes_and_what_they_take_are_shown() {
    let host = with_box();
    let top = host.ok(&["top", "box1"]);
    let head: Vec<_> = top.lines().next().expect("a head").split_whitespace().collect();
    assert_eq!(head, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    assert!(top.lines().nth(1).is_some_and(|row| row.ends_with("sleep 1000")), "{top}");
    assert!(host.ok(&["top", "box1", "-eo", "pid,comm"]).contains("sleep"));
    let format = "{{.Name}}|{{.MemUsage}}|{{.PIDs}}|{{.CPUPerc}}";
    let row = host.ok(&["stats", "--no-stream", "--format", format, "box1"]);
    let fields: Vec<_> = row.split('|').collect();
    assert_eq!((fields[0], fields[2]), ("box1", "1"), "{row}");
    assert!(fields[1].contains("iB / ") && fields[3].ends_with('%'), "{row}");
    assert!(!fields[1].starts_with("0B"), "memory is counted: {row}");
    let all = host.ok(&["stats", "--no-stream", "-a", "--format", "{{.Name}}"]);
    assert_eq!(all, "box1");
}

#[test]
fn events_are_told_by_filter() {
    let host = with_box();
    host.ok(&["rename", "box1", "box2"]);
    host.ok(&["pause", "box2"]);
    host.ok(&["unpause", "box2"]);
    host.ok(&["volume", "create", "vol"]);
    host.ok(&["rm", "-f", "box2"]);
    let now = host.exec(&["date", "+%s"]).stdout.trim().parse::<u64>().expect("a number") + 1;
    let until = now.to_string();
    let told = |filters: &[&str]| {
        let base =
            ["events", "--since", "0", "--until", &until, "--format", "{{.Type}}:{{.Action}}"];
        let filters = filters.iter().flat_map(|filter| ["--filter", *filter]);
        let arguments: Vec<_> = base.into_iter().chain(filters).collect();
        host.ok(&arguments).lines().collect::<Vec<_>>().join(" ")
    };
    let whole = "container:create container:start container:rename container:pause container:unpause \
        container:kill container:die container:destroy";
    for (filters, expected) in [
        (&["type=container"][..], whole),
        // By the name it had then.
        (&["container=box1", "type=container"], "container:create container:start"),
        (&["type=container", "label=team=a"], whole),
        (&["type=container", "label=team=b"], ""),
        (&["event=pause", "event=unpause"], "container:pause container:unpause"),
        (&["type=volume"], "volume:create"),
        (&["type=image"], "image:tag image:import image:tag image:import"),
        (&["container=nothing"], ""),
    ] {
        assert_eq!(told(filters), expected, "{filters:?}");
    }
    let following =
        host.follow(&["events", "--filter", "type=volume", "--format", "{{.Actor.ID}}"]);
    // The stream may begin after the first of them.
    let names: Vec<_> = (0..1000).map(|number| format!("v{number}")).collect();
    let seen = std::thread::scope(|scope| {
        let line = scope.spawn(move || following.line());
        let mut names = names.iter();
        while !line.is_finished() {
            host.ok(&["volume", "create", names.next().expect("seen by then")]);
        }
        line.join().expect("a line")
    });
    assert!(names.contains(&seen), "{seen}");
}

#[test]
fn a_daemon_that_sees_no_control_groups_says_what_to_do_instead_of_starting() {
    skep_only!("stock Docker says less");
    let host = Host::without_daemon();
    let path = |name: &str| host.path(name).to_str().expect("text").to_owned();
    let program = host.program().to_str().expect("text").to_owned();
    let arguments = ["--data-root", &path("data"), "--exec-root", &path("exec")];
    // Which hides what is mounted beneath `/sys`.
    let elsewhere = ["ip", "netns", "exec", &host.name, "timeout", "60", &program, "daemon"];
    let printed = host.exec(&[&elsewhere[..], &arguments].concat());
    assert_eq!(printed.code, 1, "{printed:?}");
    for text in ["control groups are not mounted at /sys/fs/cgroup", "nsenter --net=/run/netns/"] {
        assert!(printed.stderr.contains(text), "{printed:?}");
    }
}
