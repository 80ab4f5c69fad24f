//! Agents that can pin nothing: they count to the frame all the same, say what that costs, and leave nothing that counts
//! wrongly, whichever way they end.

use std::{fs, path::Path};

use lab::{http, netns::Netns, require, traffic::RawSocket};
use meter_agent::totals::Totals;

use super::{
    Daemon, Guests, HTTP, Host, PORT, bound,
    bpffs::{FIRST, MISSING, READ_ONLY, can_mount, line, words},
    ready, rx_tx,
    service::{NEEDED, Place, can_give},
    sum,
};
use crate::support::{daemon::output, frames::between, hooks::hooks_in};

/// No bpffs, and none can be mounted.
const REFUSED: &str = "setpriv --bounding-set=-sys_admin";
const NONE: [(u64, u64); 2] = [(0, 0); 2];
const PINNED: &str = "meter_agent_counters_pinned";

/// A daemon that starts by a line.
struct Bare<'a> {
    daemon: Daemon<'a>,
    line: Vec<String>,
}

impl<'a> Bare<'a> {
    fn new(host: &'a Host, line: Vec<String>, more: &str) -> Self {
        Self { daemon: Daemon::new(host, more), line }
    }

    /// Starts it, which it has to say once more what that costs.
    fn start(&mut self) {
        let said = self.times_said();
        self.daemon.start_flags(&words(&self.line), &["--log-level", "info"], |_| {});
        self.daemon.wait_until_ready();
        assert_eq!(self.times_said(), said + 1, "{}", self.daemon.log());
        assert_eq!(self.daemon.sample(PINNED), Some(0));
    }

    fn times_said(&self) -> usize {
        let is_it = |line: &&str| line.contains("ERROR") && line.contains("counters are not pinned: ");
        self.daemon.log().lines().filter(is_it).count()
    }

    /// When the port's counters began.
    fn created(&self) -> String {
        created(&self.daemon)
    }

    /// Lets the guests talk, and returns what that was, which the port has to have beyond `zero`.
    fn counts(&self, guests: &Guests, zero: [(u64, u64); 2]) -> [(u64, u64); 2] {
        let before = guests.counts();
        guests.talk();
        let moved = rx_tx(&guests.counts().since(&before));
        assert!(moved[0].0 > 100 && moved[1].0 > 100, "{moved:?}");
        let total = sum(zero, moved);
        assert_eq!(self.daemon.port(PORT), Some(total));
        total
    }
}

fn created(daemon: &Daemon<'_>) -> String {
    let accept = "Accept: application/openmetrics-text; version=1.0.0";
    let answer = http::get(&daemon.host().netns, HTTP, "/metrics", &[accept]).unwrap();
    let series = format!("meter_port_receive_packets_created{{port=\"{PORT}\"}} ");
    answer.body.lines().find_map(|line| line.strip_prefix(&series)).unwrap().to_owned()
}

/// A configuration with everything that takes programs, by one kind of hook.
fn everything(tc: &str) -> String {
    let meter = format!("[[meter]]\nname = \"all\"\nrules = [\"in-ports {PORT} direction rx\"]\n");
    let connections = "[connections]\nnetdevs = [\"tap*\"]\nended_timeout = \"1h\"\n";
    format!("tc = \"{tc}\"\n{}{connections}{meter}", bound("tap1"))
}

/// Everything counts from nothing on, and whoever asks is told why it is not pinned.
fn counts_everything(bare: &Bare<'_>, guests: &Guests, why: &str) {
    let hooks = bare.daemon.host().hooks();
    let total = bare.counts(guests, NONE);
    says(&bare.daemon, why);
    let user = |name: &str| bare.daemon.sample(&format!("meter_user_bytes_total{{meter=\"{name}\"}}"));
    assert_eq!(user("all"), Some(total[0].1));
    // Rules take each other's place, and go, by programs that are swapped.
    for words in [&["meter", "add", "more", &format!("out-ports {PORT}")][..], &["meter", "remove", "more"]] {
        let changed = bare.daemon.run(words);
        assert!(changed.status.success(), "{changed:?}");
    }
    let total = bare.counts(guests, total);
    assert_eq!(user("all"), Some(total[0].1));
    let connections = bare.daemon.run(&["connections", "--json", "--protocol", "tcp"]);
    let connections: serde_json::Value = serde_json::from_slice(&connections.stdout).unwrap();
    assert_eq!(connections.as_array().map(Vec::len), Some(4), "{connections}");
    let refused = bare.daemon.run(&["detach"]);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another agent uses"), "{refused:?}");
    assert_eq!(bare.daemon.host().hooks(), hooks);
}

/// Such an agent from its start to its end, by one kind of hook; returns it with when its counters began and the hooks it had.
fn first_life<'a>(
    host: &'a Host,
    guests: &Guests,
    line: Vec<String>,
    why: &str,
    tc: &str,
) -> (Bare<'a>, String, Vec<String>) {
    guests.counts();
    let mut bare = Bare::new(host, line, &everything(tc));
    bare.start();
    let (created, hooks) = (bare.created(), host.hooks());
    counts_everything(&bare, guests, why);
    bare.daemon.stop();
    bare.daemon.wait("the hooks are gone", |_| host.hooks().is_empty());
    (bare, created, hooks)
}

/// One life of such an agent, and no other.
fn lives_once(label: &str, line: Vec<String>, why: &str, tc: &str) {
    let host = Host::new(label);
    first_life(&host, &Guests::new(&host.netns), line, why, tc);
}

/// The lives that follow each other, with all ways in which one ends and another begins.
fn lives(label: &str, line: Vec<String>, why: &str, tc: &str) {
    let host = Host::new(label);
    let guests = Guests::new(&host.netns);
    let (mut bare, first, mut hooks) = first_life(&host, &guests, line, why, tc);

    // An agent that ends leaves nothing, and what follows begins anew. An emulated guest's verifier takes its time for all of it.
    let is_slow = lab::slower() > 1;
    let more = if is_slow { format!("tc = \"{tc}\"\n{}", bound("tap1")) } else { everything(tc) };
    bare.daemon.configure(&more);
    guests.talk();
    guests.counts();
    bare.start();
    assert_eq!(bare.daemon.port(PORT), Some(NONE));
    let second = bare.created();
    assert!(second > first, "{second} after {first}");
    bare.counts(&guests, NONE);
    if is_slow {
        hooks = host.hooks();
    }
    assert!(hooks.len() > 1, "{hooks:?}");
    assert_eq!(host.hooks(), hooks);

    // One that is killed leaves its filters.
    bare.daemon.kill();
    if tc == "clsact" {
        assert_eq!(host.hooks(), hooks);
    } else {
        bare.daemon.wait("the hooks are gone", |_| host.hooks().is_empty());
    }
    guests.talk();
    guests.counts();
    bare.start();
    assert_eq!(bare.daemon.port(PORT), Some(NONE));
    assert!(bare.created() > second);
    assert_eq!(host.hooks(), hooks);
    let swept = bare.daemon.log().matches("its filters of clsact are removed").count();
    assert_eq!(swept, usize::from(tc == "clsact"), "{}", bare.daemon.log());
    bare.counts(&guests, NONE);

    // Filters of netdevs that are nobody's any more go too, at a start or a detach.
    bare.daemon.kill();
    bare.daemon.configure(&format!("tc = \"{tc}\"\n[ports]\nignore = [\"*\"]\n"));
    bare.start();
    assert_eq!(host.hooks(), [""; 0]);
    bare.daemon.stop();
    bare.daemon.configure(&more);
    bare.start();
    bare.daemon.kill();
    let detached = bare.daemon.run(&["detach"]);
    assert!(detached.status.success(), "{detached:?}");
    bare.daemon.wait("the hooks are gone", |_| host.hooks().is_empty());
}

/// Whoever asks is told.
fn says(daemon: &Daemon<'_>, why: &str) {
    let list = daemon.run(&["ls"]);
    let said = String::from_utf8_lossy(&list.stderr).into_owned();
    assert!(
        list.status.success() && said.starts_with("the counters are not pinned, and end with the agent: ")
    );
    assert!(said.contains(why), "{said}");
    let doctor = daemon.run(&["doctor"]);
    let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{report}");
    let line = report.lines().find(|line| line.starts_with("BAD     pins ")).unwrap_or_default();
    assert!(line.contains(why) && line.contains("restart the agent"), "{report}");
    let log = daemon.log();
    assert!(log.contains(why) && log.contains("mount -t bpf bpf /sys/fs/bpf"), "{log}");
}

fn can_refuse() -> bool {
    ready() && can_mount() && can_give()
}

/// There is none, on what is a host as far as the agent can tell.
fn no_bpffs() -> String {
    format!("{MISSING}; {FIRST}")
}

const NO_BPFFS: &str = "is not on a bpffs (/sys/fs/bpf is on another file system)";

#[test]
fn agent_without_a_bpffs_counts_by_tcx() {
    if can_refuse() && require::kernel(6, 6, "TCX") {
        lives("no-bpffs", line(&no_bpffs(), REFUSED), NO_BPFFS, "tcx");
    }
}

#[test]
fn agent_without_a_bpffs_counts_by_clsact() {
    if can_refuse() {
        lives("no-bpffs-clsact", line(&no_bpffs(), REFUSED), NO_BPFFS, "clsact");
    }
}

#[test]
fn agent_on_a_read_only_bpffs_counts_by_tcx() {
    if ready() && can_mount() && require::kernel(6, 6, "TCX") {
        lives_once("read-only", line(READ_ONLY, ""), "Read-only file system", "tcx");
    }
}

#[test]
fn agent_on_a_read_only_bpffs_counts_by_clsact() {
    if ready() && can_mount() {
        lives_once("read-only-clsact", line(READ_ONLY, ""), "Read-only file system", "clsact");
    }
}

#[test]
fn totals_in_the_state_file_go_on_without_pins_and_into_pins() {
    if !can_refuse() {
        return;
    }
    let host = Host::new("bare-totals");
    let guests = Guests::new(&host.netns);
    guests.counts();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state");
    let mut bare = Bare::new(&host, line(MISSING, REFUSED), &bound("tap1"));
    bare.daemon.configure_state(&format!("totals_file = {file:?}\ntotals_interval = \"1s\""));
    bare.start();
    let created = bare.created();
    let mut total = bare.counts(&guests, NONE);
    for is_killed in [false, true, false] {
        if is_killed {
            bare.daemon.wait("the last are written", |_| packets(&file) == Some(total[0].0 + total[1].0));
            bare.daemon.kill();
        } else {
            bare.daemon.stop();
        }
        guests.talk();
        guests.counts();
        bare.start();
        assert_eq!(bare.daemon.port(PORT), Some(total), "killed: {is_killed}");
        assert_eq!(bare.created(), created);
        total = bare.counts(&guests, total);
    }
    bare.daemon.stop();

    // Where something can be pinned again it goes on there, and the file is for the next boot again.
    for start in 0..2 {
        bare.daemon.start();
        bare.daemon.wait_until_ready();
        assert_eq!(bare.daemon.sample(PINNED), Some(1));
        assert_eq!(bare.daemon.port(PORT), Some(total), "start {start}");
        assert_eq!(bare.created(), created);
        total = bare.counts(&guests, total);
        bare.daemon.stop();
        assert!(!Totals::decode(&fs::read(&file).unwrap()).unwrap().unpinned);
    }
}

/// Returns the port's packets in the state file.
fn packets(file: &Path) -> Option<u64> {
    let totals = Totals::decode(&fs::read(file).ok()?).ok()?;
    // What is merged counts as the frames it stands for.
    let port = totals.ports.iter().find(|port| port.port.to_string() == PORT)?;
    Some(port.hooks.iter().map(|[packets, _, more, _]| packets + more).sum())
}

/// A netdev in a namespace, without pins: counted, and nothing left of it.
fn in_namespaces(label: &str, tc: &str) {
    let host = Host::new(label);
    let [router, outside] = ["router", "beyond"].map(|one| Netns::new(&format!("{label}-{one}")).unwrap());
    router.veth("eth0", &outside, "peer0", 1_500).unwrap();
    let pid = std::process::id();
    let more = format!("tc = \"{tc}\"\n[namespaces]\ninclude = [\"meter-lab-{pid}-{label}-router\"]\n");
    let mut bare = Bare::new(&host, line(READ_ONLY, ""), &more);
    let frame = between(lab::mac::Mac::local(1), lab::mac::Mac::local(2), &[], 0x88b5, &[0; 100]);
    let send = |frames: u64| {
        let socket = RawSocket::open(&outside, "peer0").unwrap();
        (0..frames).for_each(|_| socket.send(&frame).unwrap());
    };
    let hooks = || hooks_in(&router, "eth0").unwrap();
    for frames in [3, 5] {
        bare.start();
        let port = super::namespaces::wait_for_port(&bare.daemon, &router, "eth0");
        send(frames);
        let received = format!("meter_port_receive_packets_total{{port=\"{port}\"}}");
        bare.daemon.wait("they count", |daemon| daemon.sample(&received) == Some(frames));
        // Programs of the namespace that are loaded later count in the same maps.
        let added = bare.daemon.run(&["meter", "add", "all", "ethertype 0x88b5"]);
        assert!(added.status.success(), "{added:?}");
        send(2);
        bare.daemon.wait("and more", |daemon| daemon.sample(&received) == Some(frames + 2));
        assert_eq!(bare.daemon.sample("meter_user_packets_total{meter=\"all\"}"), Some(2));
        assert!(bare.daemon.run(&["meter", "remove", "all"]).status.success());
        bare.daemon.kill();
        assert_eq!(hooks().is_empty(), tc != "clsact", "{:?}", hooks());
    }
    bare.start();
    super::namespaces::wait_for_port(&bare.daemon, &router, "eth0");
    bare.daemon.stop();
    bare.daemon.wait("the hooks are gone", |_| hooks().is_empty());
    bare.start();
    bare.daemon.kill();
    let detached = bare.daemon.run(&["detach"]);
    assert!(detached.status.success(), "{detached:?}");
    bare.daemon.wait("the hooks are gone", |_| hooks().is_empty());
}

#[test]
fn agent_without_pins_counts_in_namespaces_by_tcx() {
    if ready() && can_mount() && require::kernel(6, 6, "TCX") {
        in_namespaces("bare", "tcx");
    }
}

#[test]
fn agent_without_pins_counts_in_namespaces_by_clsact() {
    if ready() && can_mount() {
        in_namespaces("bare-clsact", "clsact");
    }
}

#[test]
fn second_agent_without_pins_does_not_start() {
    if !ready() || !can_mount() {
        return;
    }
    let host = Host::new("bare-second");
    let _guests = Guests::new(&host.netns);
    let mut bare = Bare::new(&host, line(READ_ONLY, ""), &bound("tap1"));
    bare.start();
    let hooks = host.hooks();
    // Nor does one that could pin.
    for line in [words(&bare.line), Vec::new()] {
        let refused = output(&mut bare.daemon.command(&line, &[]));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("another agent uses"), "{said}");
    }
    assert_eq!(host.hooks(), hooks);
    bare.daemon.stop();
}

/// Runs the rest of the line as a user with the capabilities that are needed, on a bpffs of this `$MODE`, after `$MAKE`.
const AS_A_USER: &str = r#"
set -e
mount -t bpf -o mode="$MODE" bpf /sys/fs/bpf
$MAKE
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set="-all,$CAPS" \
    --inh-caps="-all,$CAPS" --ambient-caps="-all,$CAPS" "$PROGRAM" "$@"
"#;

#[test]
fn bpffs_of_another_user_is_done_without_and_pins_of_another_user_are_left_to_count() {
    if !can_refuse() {
        return;
    }
    let host = Host::new("bare-user");
    let guests = Guests::new(&host.netns);
    guests.counts();
    let mut daemon = Daemon::new(&host, &bound("tap1"));
    let place = Place::new(&host, &daemon);
    let line = ["unshare", "--mount", "sh", "-c", AS_A_USER, "sh"];
    // As systemd mounts it.
    daemon.start_with(&line, |command| {
        place.prepare(command, &NEEDED);
        command.env("MODE", "0700").env("MAKE", "");
    });
    daemon.wait_until_ready();
    let bare = Bare { daemon, line: Vec::new() };
    assert_eq!(bare.daemon.sample(PINNED), Some(0));
    bare.counts(&guests, NONE);
    says(&bare.daemon, &format!("list the pins in {}: not permitted", host.pins.display()));
    let Bare { mut daemon, .. } = bare;
    daemon.stop();
    daemon.wait("the hooks are gone", |_| host.hooks().is_empty());

    let mut command = daemon.command(&line, &[]);
    place.prepare(&mut command, &NEEDED);
    command.env("MODE", "0755").env("MAKE", format!("mkdir -m 0700 {}", host.pins.display()));
    let refused = output(&mut command);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains(&format!("list the pins in {}: not permitted", host.pins.display())), "{said}");
    assert_eq!(host.hooks(), [""; 0]);
}
