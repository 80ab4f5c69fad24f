//! User-defined meters through the real daemon: by its configuration, at a reload, and by `meter add`.

use lab::{mac::Mac, netns::Netns, traffic::RawSocket};
use nix::sys::signal::Signal;

use super::{Daemon, Host, bound, ready};
use crate::support::frames::between;

/// Bytes of every frame here.
const BYTES: u64 = 114;

fn meter(name: &str, line: &str) -> String {
    format!("[[meter]]\nname = \"{name}\"\nrules = [\"{line}\"]\n")
}

/// What a meter counted in packets and bytes; `None` where it does not count.
fn counted(daemon: &Daemon<'_>, name: &str) -> Option<[u64; 2]> {
    let of = |what: &str| daemon.sample(&format!("meter_user_{what}_total{{meter=\"{name}\"}}"));
    Some([of("packets")?, of("bytes")?])
}

#[test]
fn meters_are_added_reloaded_and_kept() {
    if !ready() {
        return;
    }
    let (host, peer) = (Host::new("user-meters"), Netns::new("peer").unwrap());
    host.netns.veth("eth0", &peer, "peer0", 1_500).unwrap();
    let configuration = |meter: &str| format!("{}{meter}", bound("eth0"));
    let mut daemon = Daemon::started(&host, &configuration(&meter("all", "ethertype 0x88b5")));
    let send = |frames: u64| {
        let socket = RawSocket::open(&peer, "peer0").unwrap();
        let frame = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
        (0..frames).for_each(|_| socket.send(&frame).unwrap());
    };
    let reach = |daemon: &Daemon<'_>, expected: &[(&str, Option<u64>)]| {
        daemon.wait(&format!("{expected:?}"), |daemon| {
            expected
                .iter()
                .all(|&(name, frames)| counted(daemon, name) == frames.map(|frames| [frames, frames * BYTES]))
        });
        assert_eq!(daemon.sample("meter_agent_user_meters_in_force"), Some(1));
    };
    send(3);
    reach(&daemon, &[("all", Some(3)), ("added", None)]);
    let add = ["meter", "add", "added", "ethertype 0x88b5", "proto 6"];
    assert!(daemon.run(&add).status.success());
    send(4);
    reach(&daemon, &[("all", Some(7)), ("added", Some(4))]);
    assert_eq!(daemon.run(&add).status.code(), Some(1), "it is there already");
    let wrong = daemon.run(&["meter", "add", "wrong", "port-group nobody"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");

    // Another configuration, with a meter of its own; what was added goes on beside it.
    daemon.configure(&configuration(&meter("other", "ethertype 0x88b5")));
    daemon.signal(Signal::SIGHUP);
    daemon.wait("the new meter counts", |daemon| counted(daemon, "other") == Some([0, 0]));
    send(5);
    reach(&daemon, &[("all", None), ("added", Some(9)), ("other", Some(5))]);
    // One that can't be taken changes nothing.
    daemon.configure(&configuration(&meter("bad", "proto 6 dst-port 0")));
    daemon.signal(Signal::SIGHUP);
    daemon.wait("it says so", |daemon| daemon.sample("meter_agent_config_last_reload_successful") == Some(0));
    send(1);
    reach(&daemon, &[("bad", None), ("added", Some(10)), ("other", Some(6))]);

    // Frames are counted while there is no agent, and by the next one's meters.
    daemon.configure(&configuration(&meter("all", "ethertype 0x88b5")));
    daemon.kill();
    send(2);
    daemon.start();
    daemon.wait_until_ready();
    reach(&daemon, &[("all", Some(7)), ("added", Some(12)), ("other", None)]);
    assert!(daemon.run(&["meter", "remove", "added"]).status.success());
    send(1);
    reach(&daemon, &[("all", Some(8)), ("added", None)]);
}
