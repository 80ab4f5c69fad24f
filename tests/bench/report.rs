//! What was measured, as people read it, and whether the goals hold.

use std::collections::BTreeMap;

use super::{LOADS, PORTS, REPEAT, ROUNDS};

/// Nanoseconds of one packet above an empty program, by the programs' loadings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) lowest: f64,
    pub(crate) median: f64,
    pub(crate) highest: f64,
}

/// What reading all counters costs, in microseconds.
pub(crate) struct Reads {
    pub(crate) blocks: f64,
    pub(crate) one_by_one: f64,
    pub(crate) tunnel_hash: f64,
}

/// Prints everything; returns whether every goal holds.
pub(crate) fn report(costs: &BTreeMap<String, Cost>, reads: &Reads) -> bool {
    println!(
        "nanoseconds a packet above an empty program: median, lowest and highest of {LOADS} loadings, each the \
         least of {ROUNDS} rounds of {REPEAT}"
    );
    for (name, cost) in costs.iter().filter(|(name, _)| !name.ends_with("empty") && !name.ends_with("vary")) {
        println!("  {name:<32} {:>8.1} {:>8.1} {:>8.1}", cost.median, cost.lowest, cost.highest);
    }
    println!("microseconds for reading");
    println!("  {:<32} {:>8.0}", format!("{PORTS} ports in blocks"), reads.blocks);
    println!("  {:<32} {:>8.0}", format!("{PORTS} counters one by one"), reads.one_by_one);
    println!("  {:<32} {:>8.0}", "1000 tunnels of a per-CPU hash", reads.tunnel_hash);

    let cost = |name: &str| costs[name].median;
    let tunnel_only = |tunnels: u32| {
        cost(&format!("{tunnels} vary, port and tunnel meter")) - cost(&format!("{tunnels} vary, port meter"))
    };
    let tunnel_hash = |tunnels: u32| cost(&format!("{tunnels} vary, per-CPU hash"));
    let goals = [
        ("port meter / constant slot", cost("port meter") / cost("constant slot"), 2.0),
        ("port meter / per-CPU hash", cost("port meter") / cost("per-CPU hash"), 0.1),
        ("super-packet: nanoseconds more", cost("port meter, super-packet") - cost("port meter"), 2.0),
        ("tunnel meter / parse + per-CPU hash, 100 tunnels", tunnel_only(100) / tunnel_hash(100), 1.0 / 6.0),
        ("tunnel meter / parse + per-CPU hash, 1000 tunnels", tunnel_only(1_000) / tunnel_hash(1_000), 0.25),
        ("1000 rules / 10 rules, known", cost("1000 rules, known") / cost("10 rules, known"), 1.5),
        ("1000 rules / 10 rules, unknown", cost("1000 rules, unknown") / cost("10 rules, unknown"), 1.5),
        (
            "a connection / per-CPU LRU hash",
            cost("a connection") / cost("a connection, per-CPU LRU hash"),
            1.0,
        ),
        (
            "new connection, no room / per-CPU LRU hash",
            cost("new connection, no room") / cost("new connection, per-CPU LRU hash"),
            0.5,
        ),
        ("reading ports in blocks / one by one", reads.blocks / reads.one_by_one, 0.05),
        ("milliseconds for reading 10,000 ports", reads.blocks / 1_000.0, 1.0),
    ];
    // No goal for a new connection that has room: the kernel's own insert into a table from which nothing gives way is most of it.
    println!("ratios");
    for (name, connection, usual) in [
        ("a connection", "a connection", "a connection, per-CPU LRU hash"),
        ("new connection", "new connection", "new connection, per-CPU LRU hash"),
        ("no room", "new connection, no room", "new connection, per-CPU LRU hash"),
        ("a connection, refused", "a connection, refused", "a connection, per-CPU LRU hash"),
        ("new connection, refused", "new connection, refused", "new connection, per-CPU LRU hash"),
    ] {
        let (connection, floor, port) = (cost(connection), cost(usual), cost("port meter"));
        println!("  {:<52} {:>7.3}", format!("{name} / per-CPU LRU hash"), connection / floor);
        println!("  {:<52} {:>7.3}", format!("{name} / port meter"), connection / port);
    }
    println!("goals");
    for (name, value, limit) in goals {
        let verdict = if value <= limit { "holds" } else { "MISSED" };
        println!("  {name:<52} {value:>7.3}  at most {limit:.3}  {verdict}");
    }
    goals.iter().all(|(_, value, limit)| value <= limit)
}
