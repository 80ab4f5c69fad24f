//! bench tests.

fn main() {}
