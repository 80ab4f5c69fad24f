//! mm-meter

fn main() {}
