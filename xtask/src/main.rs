//! One-command tasks.
fn main() {}
