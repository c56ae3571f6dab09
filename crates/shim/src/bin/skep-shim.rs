//! The shim as a binary of its own: for tests, for benchmarks, for hosts that want it small.

fn main() {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    shim::dispatch(&args);
    std::process::exit(64);
}
