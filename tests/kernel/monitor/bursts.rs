//! Many changes at once, and more than the socket can hold.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lab::{netns::Netns, require};
use meter_agent::netdev::{
    NetdevEvent,
    monitor::{self, MonitorError},
};

use super::{
    kinds::loopback,
    watch::{Watch, dump},
};

#[test]
fn burst_of_addresses_ends_in_few_dumps() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("addresses").unwrap();
    netns.ip("link add br0 type bridge").unwrap();
    let mut watch = Watch::new(&netns);
    let mut batch = String::new();
    for n in 1..=200 {
        writeln!(batch, "addr add 10.0.0.{n}/32 dev br0").unwrap();
    }
    let events = watch.ip(&batch);
    let dumps = events.iter().filter(|event| matches!(event, NetdevEvent::All(_))).count();
    assert_eq!(dumps, events.len());
    assert!(dumps <= 20, "{dumps} dumps");
}

#[test]
fn overrun_is_told_and_then_a_dump_that_has_everything() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("overrun").unwrap();
    netns.ip("link add br0 index 20 type bridge\nlink set br0 up").unwrap();
    let mut watch = Watch::held_back(&netns, 4096);
    let mut batch = String::new();
    for n in 1..=300 {
        writeln!(batch, "link set br0 alias number-{n}").unwrap();
    }
    batch.push_str("link add br1 type bridge\nlink add br2 type bridge\nlink del br1\n");
    netns.ip(&batch).unwrap();
    watch.until("the overrun", |watch| watch.log.contains(&NetdevEvent::Overrun));
    watch.until("the dump after it", |watch| matches!(watch.log.last(), Some(NetdevEvent::All(_))));
    assert_eq!(watch.table, dump(&netns));
    let at = watch.log.iter().position(|event| *event == NetdevEvent::Overrun);
    assert!(at < watch.log.iter().rposition(|event| matches!(event, NetdevEvent::All(_))), "{:?}", watch.log);
    let alias = watch.table.netdevs[&20].alias.clone();
    assert_eq!(alias.as_deref(), Some("number-300"));
}

#[test]
fn burst_of_veths_ends_in_what_a_dump_says() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("burst").unwrap();
    let mut watch = Watch::new(&netns);
    let mut batch = String::new();
    for n in 0..500 {
        writeln!(batch, "link add v{n} group 7 type veth peer name w{n}").unwrap();
    }
    watch.ip(&batch);
    assert_eq!(watch.table.netdevs.len(), 1001);
    batch.clear();
    for n in 0..50 {
        writeln!(batch, "link del v{n}\nlink add v{n} group 7 type veth peer name x{n}").unwrap();
    }
    batch.push_str("link del group 7\n");
    watch.ip(&batch);
    assert_eq!(watch.table.netdevs, BTreeMap::from([(1, loopback())]));
}

#[test]
fn dump_while_netdevs_come_and_go_has_all_that_stay() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("churn").unwrap();
    let mut batch = String::new();
    for n in 0..100 {
        writeln!(batch, "link add stays{n} type bridge").unwrap();
    }
    netns.ip(&batch).unwrap();
    let stays = dump(&netns).netdevs;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let churn = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                netns.ip("link add comes type bridge\nlink add goes type bridge\nlink del comes\nlink del goes").unwrap();
            }
        });
        let mut dumps = 0;
        while dumps < 50 {
            match netns.run_in(monitor::dump).unwrap() {
                Ok(mut table) => {
                    table.netdevs.retain(|_, netdev| netdev.name.starts_with("stays") || netdev.name == "lo");
                    if table.netdevs != stays {
                        stop.store(true, Ordering::Relaxed);
                    }
                    assert_eq!(table.netdevs, stays);
                    dumps += 1;
                }
                // Says so, and does not hand out half a table.
                Err(MonitorError::Unsteady { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        churn.join().unwrap();
    });
}
