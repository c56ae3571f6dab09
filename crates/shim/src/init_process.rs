//! Process 1 of a container that asks for one: runs the command, passes signals on, reaps orphans.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use runtime::process;
use rustix::process::{Pid, WaitOptions, getpid, setpgid, wait};
use rustix::termios::tcsetpgrp;

use crate::sys;

/// Runs `args` (`docker-init -- COMMAND ARGUMENT...`) and ends with the command's exit code.
pub(crate) fn run(args: &[OsString]) -> ! {
    let command = match args.get(1).map(OsString::as_os_str) {
        Some(dashes) if dashes == "--" => &args[2..],
        _ => &args[args.len().min(1)..],
    };
    let Some((program, rest)) = command.split_first() else {
        complain("no command to run");
        process::exit_now(runtime::EXIT_NOT_FOUND);
    };
    sys::block_all_signals();
    match process::fork() {
        Ok(0) => become_command(program, rest),
        Ok(child) => forward_until_end(child),
        Err(errno) => {
            complain(&format!("fork: {}", runtime::errno_text(errno)));
            process::exit_now(runtime::EXIT_NOT_EXECUTABLE)
        }
    }
}

fn become_command(program: &OsString, args: &[OsString]) -> ! {
    // A group of its own, in the foreground of a terminal if there is one.
    let _ = setpgid(None, None);
    process::ignore(libc::SIGTTOU);
    let _ = tcsetpgrp(rustix::stdio::stdin(), getpid());
    sys::restore(libc::SIGTTOU);
    sys::restore(libc::SIGPIPE);
    sys::unblock_all_signals();
    let error = Command::new(program).args(args).exec();
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => runtime::EXIT_NOT_FOUND,
        _ => runtime::EXIT_NOT_EXECUTABLE,
    };
    complain(&format!("exec {}: {error}", program.to_string_lossy()));
    process::exit_now(code)
}

fn forward_until_end(child: i32) -> ! {
    loop {
        match sys::wait_signal() {
            libc::SIGCHLD => {
                if let Some(code) = reap(child) {
                    process::exit_now(code);
                }
            }
            // Stops of the terminal concern whoever reads from it, which is not this process.
            libc::SIGTTIN | libc::SIGTTOU | libc::SIGTSTP => {}
            signal => {
                // The child may be gone already, and its end is about to be seen.
                let _ = sys::kill(child, signal);
            }
        }
    }
}

/// Reaps everyone who has ended; the exit code if the command is among them.
fn reap(child: i32) -> Option<i32> {
    let child = Pid::from_raw(child)?;
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == child {
            code = Some(crate::exit_code(status));
        }
    }
    code
}

fn complain(text: &str) {
    let _ = rustix::io::write(rustix::stdio::stderr(), format!("{text}\n").as_bytes());
}
