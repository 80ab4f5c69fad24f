//! A namespace is entered, left and removed whole.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use lab::{
    Error,
    guest::{Guest, GuestOptions},
    mac::Mac,
    netns::Netns,
    require,
    wire::{End, Wire, WireOptions},
};

fn inode() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

#[test]
fn work_and_commands_run_inside_with_the_mounts_of_the_host() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("in").unwrap();
    let here = inode();
    let inside = netns.run_in(inode).unwrap();
    assert_ne!(here, inside);
    assert_eq!(here, inode());
    assert_eq!(netns.run("readlink", &["/proc/self/ns/net"]).unwrap().trim(), format!("net:[{inside}]"));
    let mounts = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert_eq!(netns.run("readlink", &["/proc/self/ns/mnt"]).unwrap().trim(), mounts.to_str().unwrap());
    assert_eq!(netns.netdevs().unwrap(), ["lo"]);
}

#[test]
fn second_namespace_of_a_label_has_a_name_of_its_own() {
    if !require::root() {
        return;
    }
    let (first, second) = (Netns::new("twin").unwrap(), Netns::new("twin").unwrap());
    assert_ne!(first.name(), second.name());
    assert!(first.path().exists() && second.path().exists());
}

#[test]
fn dropping_leaves_no_namespace_netdev_or_process() {
    if !require::root() {
        return;
    }
    let (a, b) = (Netns::new("gone-a").unwrap(), Netns::new("gone-b").unwrap());
    let end = |netns, n| End { netns, netdev: "eth0", mac: Mac::local(n) };
    let wire = Wire::new(end(&a, 1), end(&b, 2), &WireOptions::default()).unwrap();
    let options = GuestOptions { label: "gone-vm", host_netdev: "tap0", mac: Mac::local(3), mtu: 1500 };
    let guest = Guest::new(&a, &options).unwrap();
    let mut command = a.command("sh").unwrap();
    command.args(["-c", "sleep 100 & echo started; wait"]).stdout(Stdio::piped());
    let mut process = a.spawn(command).unwrap();
    let mut started = [0; 8];
    std::io::Read::read_exact(process.child().stdout.as_mut().unwrap(), &mut started).unwrap();
    assert_eq!(&started, b"started\n");
    let group = process.id();
    let names = [&a, &b, guest.netns()].map(|netns| netns.path());
    let inside = a.run_in(inode).unwrap();

    drop((process, guest, wire, a, b));

    for path in names {
        assert!(!path.exists(), "{} is left", path.display());
    }
    // The shell's child is re-parented; whoever adopted it collects it when it likes.
    let deadline = Instant::now() + Duration::from_secs(5);
    while members(group) > 0 {
        assert!(Instant::now() < deadline, "processes of group {group} are left");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(tasks_in(inside), 0, "threads are left in the namespace");
}

/// Counts the living processes of a group.
fn members(group: u32) -> usize {
    let group = group.to_string();
    processes()
        .filter_map(|process| fs::read_to_string(process.join("stat")).ok())
        .filter(|stat| {
            // `pid (name) state parent group …`; the name may hold anything.
            let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
            fields.next() != Some("Z") && fields.nth(1) == Some(group.as_str())
        })
        .count()
}

fn tasks_in(netns: u64) -> usize {
    let wanted = format!("net:[{netns}]");
    processes()
        .flat_map(|process| fs::read_dir(process.join("task")).into_iter().flatten().flatten())
        .filter_map(|task| fs::read_link(task.path().join("ns/net")).ok())
        .filter(|name| name == Path::new(&wanted))
        .count()
}

fn processes() -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path())
}

#[test]
fn failures_say_what_was_tried() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("err").unwrap();
    let error = netns.ip("link set lo up\nlink set nothing0 up").unwrap_err();
    let message = error.to_string();
    assert!(message.contains("nothing0") && message.contains(netns.name()), "{message}");
    let error = netns.stats("nothing0").unwrap_err();
    assert!(matches!(error, Error::NoNetdev { .. }), "{error}");
}
