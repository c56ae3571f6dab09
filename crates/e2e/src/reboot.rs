//! What is left of a host's programs and mounts, and how all of it ends at once, as when its power fails.

use std::path::Path;
use std::process::Command;

/// Ends every process that runs from `directory` or in the control group, and whatever they were about to do.
pub(crate) fn end_all(directory: &Path, group: &str) {
    // Those that end may have been about to start others.
    while !pids(directory, group).is_empty() {
        for pid in pids(directory, group) {
            let _ = Command::new("kill").args(["-KILL", &pid]).output();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Processes that are more than a memory of their parent.
fn pids(directory: &Path, group: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("lists").flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let runs_there = |pid: &String| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let names_it = String::from_utf8_lossy(&words).contains(&*directory.to_string_lossy());
        // One that has ended has no command line.
        !words.is_empty() && (names_it || groups.contains(&format!("/{group}/")))
    };
    let numbers = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    numbers.filter(runs_there).collect()
}

/// Lets go of everything that is mounted beneath `directory`.
pub(crate) fn unmount_all(directory: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("lists");
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let beneath = places.filter(|place| Path::new(place).starts_with(directory));
    for place in beneath.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["--lazy", place]).output();
    }
}
