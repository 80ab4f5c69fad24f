//! `meter-agent doctor`: what this kernel and these privileges allow, which hook each netdev gets and why, what others have
//! attached, and what to do.
//!
//! Asks by the checks of the datapath and the survey of the agent. Attaches and changes nothing, with or without an
//! agent that runs; without root it says what it could not see.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use crate::{
    columns::printable,
    control::{self, AgentStatus, AskError},
    datapath::{
        Options,
        examine::{self, Finding, More, Verdict},
    },
    ls,
    netdev::{
        NamespaceId, NetdevTable,
        monitor::{self, MonitorError},
        namespaces::{self, Selection},
    },
    roles::{self, Rules},
    snapshot::NetdevStatus,
    survey::{Policy, Survey},
};

/// What was found.
#[derive(Debug)]
pub struct Report {
    findings: Vec<Finding>,
    /// By the agent that runs, or as one would do.
    netdevs: Vec<NetdevStatus>,
    /// What others have attached: the netdev, and what.
    foreign: Vec<(String, String)>,
}

/// Looks at everything; `meters` says whether there are to be user-defined ones.
///
/// # Errors
///
/// When neither an agent nor the kernel says which netdevs there are.
pub async fn report(
    socket: &Path,
    options: &Options,
    policy: &Policy,
    selection: &Selection,
    meters: bool,
) -> Result<Report, MonitorError> {
    let more = More { meters, connections: policy.connections.is_on() };
    let (mut findings, has_tcx) = examine::host(options, more);
    findings.extend(lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default()));
    findings.push(namespace());
    let status = control::agent(socket).await.ok();
    if selection.is_on() {
        let meant = || namespaces::dump(Path::new(namespaces::DIRECTORY), selection);
        let meant = meant().ok().map(|(followed, failed)| followed.len() + failed.len());
        findings.push(
            status.as_ref().map_or_else(|| named_namespaces(selection), |status| followed(status, meant)),
        );
    }
    findings.extend(monitor::dump().ok().and_then(|host| uplinks(&host, &policy.rules)));
    if let Some(notice) = status.as_ref().and_then(AgentStatus::notice) {
        let says = format!("{notice}; once it can be written to, restart the agent");
        findings.push(Finding::new(Verdict::Bad, "pins", says));
    }
    let ours = examine::ours(&options.pin_path);
    let answer = control::netdevs(socket).await;
    let runs = answer.is_ok();
    let (agent, netdevs, pending) = match answer {
        Ok(netdevs) => {
            let agent = Finding::new(Verdict::Good, "agent", "runs, and is what the hooks below are from");
            // Namespaces have a finding of their own.
            let pending = |status: AgentStatus| {
                status.attach_pending.saturating_sub(status.namespaces_failed.len() as u64)
            };
            (agent, netdevs, status.map_or(0, pending))
        }
        Err(error) => {
            let verdict = if matches!(error, AskError::NoAgent(_)) { Verdict::Note } else { Verdict::Unseen };
            let says = format!("{error}; the hooks below are those that one would make");
            let (netdevs, pending) = foreseen(options, policy, selection, has_tcx, &ours)?;
            (Finding::new(verdict, "agent", says), netdevs, pending)
        }
    };
    findings.push(agent);
    findings.extend(not_metered(pending));
    // What is asked of a netdev is asked of this namespace.
    let here = |netdev: &&NetdevStatus| netdev.role != "-" && netdev.netns.is_empty();
    let foreign = netdevs.iter().filter(here).flat_map(|netdev| {
        let ingress = netdev.ingress.as_deref().filter(|_| runs);
        let found = examine::foreign(netdev.ifindex, &netdev.netdev, ingress, &ours);
        found.into_iter().map(|what| (netdev.netdev.clone(), what))
    });
    let foreign = foreign.collect();
    Ok(Report { findings, netdevs, foreign })
}

/// Returns what an agent would do with each netdev, and how many it would not meter that it should.
fn foreseen(
    options: &Options,
    policy: &Policy,
    selection: &Selection,
    has_tcx: Option<bool>,
    ours: &BTreeSet<u32>,
) -> Result<(Vec<NetdevStatus>, u64), MonitorError> {
    let netdevs = ls::all_netdevs(selection)?;
    let survey = Survey::new(&netdevs, policy);
    let mut attached = BTreeMap::new();
    let mut failed = BTreeMap::new();
    // What is asked of a netdev is asked of this namespace.
    let here = survey.desired.iter().filter(|(id, _)| id.namespace == NamespaceId::HOST);
    for (&id, target) in here {
        match has_tcx.map(|has_tcx| examine::foresee(target, options.tc, has_tcx, ours)) {
            Some(Ok(attachment)) => drop(attached.insert(id, attachment)),
            Some(Err(error)) => drop(failed.insert(id, error.to_string())),
            None => {}
        }
    }
    let pending = failed.len() + survey.conflicts().count();
    Ok((survey.statuses(&netdevs, &attached, |id| failed.get(&id).cloned()), pending as u64))
}

/// Says that so many netdevs are not metered that should be.
fn not_metered(netdevs: u64) -> Option<Finding> {
    let says = format!("not metered, or not as they should be: {netdevs}; WHY below says which, and why");
    (netdevs > 0).then(|| Finding::new(Verdict::Bad, "netdevs", says))
}

/// Returns what to know of the kernel's lockdown, given what it says: `none [integrity] confidentiality`.
fn lockdown(text: &str) -> Option<Finding> {
    let mode = text.split_once('[')?.1.split_once(']')?.0;
    let says = format!("{mode}; the programs read no kernel memory, so it does not keep them out");
    (mode != "none").then(|| Finding::new(Verdict::Note, "lockdown", says))
}

/// Says whether this is the namespace that the host's netdevs are in.
fn namespace() -> Finding {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    match (of("self"), of("1")) {
        (Ok(own), Ok(first)) if own == first => {
            Finding::new(Verdict::Good, "namespace", "the host's own network namespace")
        }
        (Ok(_), Ok(_)) => Finding::new(
            Verdict::Note,
            "namespace",
            "not the network namespace of process 1: only the netdevs of this one are metered",
        ),
        _ => Finding::new(
            Verdict::Unseen,
            "namespace",
            "whether it is the host's own can't be seen without root",
        ),
    }
}

/// Says by which netdevs tunnel packets are taken to leave where tunnel netdevs don't tell.
fn uplinks(host: &NetdevTable, rules: &Rules) -> Option<Finding> {
    let silent = roles::without_underlay(host, rules);
    let names: Vec<String> = silent.into_iter().map(printable).collect();
    let says = format!(
        "{}: no local address leads to a netdev by which the tunnels leave, so those of default routes are taken for the \
         uplinks; where it is another, name all uplinks in uplinks.netdevs",
        names.join(", ")
    );
    (!names.is_empty()).then(|| Finding::new(Verdict::Note, "uplinks", says))
}

/// Says whether the agent that runs follows the namespaces that are meant, of which the configuration here means so many now; its
/// rights may be others than those here.
fn followed(status: &AgentStatus, meant: Option<usize>) -> Finding {
    let (verdict, says) = match (status.namespaces, ls::not_followed(status)) {
        (None, _) => (Verdict::Bad, "the agent that runs follows none; restart it".to_owned()),
        (Some(_), Some(says)) => (Verdict::Bad, says),
        (Some(followed), None) if meant.is_some_and(|meant| meant as u64 != followed) => {
            let meant = meant.unwrap_or_default();
            let says = format!(
                "the agent follows {followed}, and the configuration means {meant} now: restart the agent if that stays so"
            );
            (Verdict::Note, says)
        }
        (Some(0), None) => no_namespace(),
        (Some(followed), None) => (Verdict::Good, format!("the agent follows {followed}")),
    };
    Finding::new(verdict, "namespaces", says)
}

fn no_namespace() -> (Verdict, String) {
    (Verdict::Note, format!("namespaces.include matches no name in {} now", namespaces::DIRECTORY))
}

/// Says whether the namespaces that are meant can be followed with the rights that this process has.
fn named_namespaces(selection: &Selection) -> Finding {
    let directory = namespaces::DIRECTORY;
    let (verdict, says) = match namespaces::dump(Path::new(directory), selection) {
        Err(error) => (Verdict::Bad, format!("{directory} can't be looked at: {error}")),
        Ok((followed, failed)) => match failed.first_key_value() {
            Some((name, why)) => {
                (Verdict::Bad, format!("{} can't be followed, such as {name}: {why}", failed.len()))
            }
            None if followed.is_empty() => no_namespace(),
            None => (Verdict::Good, format!("{} can be entered and asked", followed.len())),
        },
    };
    Finding::new(verdict, "namespaces", says)
}

impl Report {
    /// Returns whether nothing keeps an agent from counting every netdev that it should, and from keeping what it counts.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Bad)
    }

    /// Writes it for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { verdict, subject, says } in &self.findings {
            let mark = match verdict {
                Verdict::Good => "ok",
                Verdict::Bad => "BAD",
                Verdict::Note => "note",
                Verdict::Unseen => "unseen",
            };
            // Writing to a `String` can't fail.
            writeln!(text, "{mark:6}  {subject:12}  {says}").unwrap_or_default();
        }
        text.push('\n');
        text += &ls::table(&self.netdevs);
        text.push('\n');
        let elsewhere = |netdev: &NetdevStatus| netdev.role != "-" && !netdev.netns.is_empty();
        let others =
            if self.netdevs.iter().any(elsewhere) { " here; in namespaces nobody looked" } else { "" };
        if self.foreign.is_empty() {
            writeln!(text, "Nobody else has attached anything to what is metered{others}.")
                .unwrap_or_default();
        }
        for (netdev, what) in &self.foreign {
            writeln!(text, "{}  {what}", printable(netdev)).unwrap_or_default();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{AgentStatus, Finding, NetdevTable, Report, Rules, Verdict, followed, lockdown, uplinks};
    use crate::netdev::{Kind, Netdev, TunnelNetdev};

    #[test]
    fn lockdown_is_worth_a_note_where_it_is_on() {
        for (text, expected) in [
            ("", None),
            ("[none] integrity confidentiality\n", None),
            ("none [integrity] confidentiality", Some("integrity;")),
        ] {
            let says = lockdown(text).map(|finding| finding.says);
            assert_eq!(says.as_deref().and_then(|says| says.split(' ').next()), expected, "{text}");
        }
    }

    #[test]
    fn agent_that_runs_says_which_namespaces_it_follows() {
        let failed = |names: &[&str]| names.iter().map(|&name| (name.to_owned(), "why".to_owned())).collect();
        let other =
            "the agent follows 3, and the configuration means 4 now: restart the agent if that stays so";
        let cannot = "namespaces that the agent can't follow: 2, such as a: why";
        for (namespaces, names, meant, expected) in [
            (None, &[][..], Some(0), (Verdict::Bad, "the agent that runs follows none; restart it")),
            (Some(1), &["a", "b"], Some(3), (Verdict::Bad, cannot)),
            (Some(0), &[], Some(0), (Verdict::Note, "namespaces.include matches no name in /run/netns now")),
            (Some(3), &[], Some(3), (Verdict::Good, "the agent follows 3")),
            (Some(3), &[], None, (Verdict::Good, "the agent follows 3")),
            (Some(3), &[], Some(4), (Verdict::Note, other)),
        ] {
            let status =
                AgentStatus { namespaces, namespaces_failed: failed(names), ..AgentStatus::default() };
            let Finding { verdict, says, .. } = followed(&status, meant);
            assert_eq!((verdict, says.as_str()), expected);
        }
    }

    #[test]
    fn tunnel_netdevs_that_do_not_tell_their_uplink_are_worth_a_note() {
        let kind = |local| TunnelNetdev { kind: "geneve".to_owned(), vni: None, local, udp_port: None };
        let mut host = NetdevTable::default();
        host.netdevs.insert(2, Netdev::bare(2, "eth0", Kind::Physical));
        host.addresses.insert(2, [IpAddr::from([192, 0, 2, 1])].into());
        host.netdevs.insert(3, Netdev::bare(3, "gnv0", Kind::Tunnel(kind(Some([192, 0, 2, 1].into())))));
        assert!(uplinks(&host, &Rules::default()).is_none());
        host.netdevs.insert(4, Netdev::bare(4, "genev_sys_6081", Kind::Tunnel(kind(None))));
        let says = uplinks(&host, &Rules::default()).map(|finding| finding.says).unwrap_or_default();
        assert!(says.starts_with("genev_sys_6081: ") && says.ends_with("in uplinks.netdevs"), "{says}");
    }

    #[test]
    fn only_what_is_bad_is_not_well() {
        let mut report = Report {
            findings: vec![
                Finding::new(Verdict::Good, "kernel", "Linux 6.12"),
                Finding::new(Verdict::Note, "TCX", "is not there"),
                Finding::new(Verdict::Unseen, "namespace", "not seen"),
            ],
            netdevs: Vec::new(),
            foreign: vec![("eth\u{1b}0".to_owned(), "XDP: program 7".to_owned())],
        };
        assert!(report.is_well());
        report.findings.push(Finding::new(Verdict::Bad, "bpffs", "none"));
        assert!(!report.is_well());
        assert_eq!(
            report.text(),
            "\
ok      kernel        Linux 6.12
note    TCX           is not there
unseen  namespace     not seen
BAD     bpffs         none

NETDEV  IFINDEX  KIND  ROLE  HOOKS  PORT  DEVICE  SOURCE  WHY

eth\u{fffd}0  XDP: program 7
"
        );
    }
}
