//! Makes one raw system call and prints what the kernel says: the attacker of the escape tests.
//!
//! `raw-call NUMBER [ARGUMENT...]`, where an argument is a number, or text after `s:`.

#![allow(unsafe_code, reason = "raw system calls are the purpose")]
#![allow(clippy::print_stdout, reason = "printing the result is the purpose")]

use std::ffi::CString;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<CString> = words
        .iter()
        .map(|word| CString::new(word.trim_start_matches("s:")).expect("arguments hold no zero"))
        .collect();
    let value = |at: usize| -> i64 {
        match words.get(at) {
            None => 0,
            Some(word) if word.starts_with("s:") => texts[at].as_ptr() as i64,
            Some(word) => word.parse().expect("a number, or s:TEXT"),
        }
    };
    // SAFETY: The tests give numbers and texts that live until the end; what the call does to this
    // process does not matter.
    let result = unsafe {
        libc::syscall(value(0), value(1), value(2), value(3), value(4), value(5), value(6))
    };
    if result >= 0 {
        println!("allowed");
    } else {
        println!("{}", std::io::Error::last_os_error().raw_os_error().unwrap_or_default());
    }
}
