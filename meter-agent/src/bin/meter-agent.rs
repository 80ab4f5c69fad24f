//! meter-agent

fn main() {}
