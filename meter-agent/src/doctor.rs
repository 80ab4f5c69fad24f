//! `meter-agent doctor`: what this kernel and these privileges allow, which hook each netdev gets and why, what others have
//! attached, and what to do.
//!
//! Asks by the checks of the datapath and the survey of the agent. Attaches and changes nothing, with or without an
//! agent that runs; without root it says what it could not see.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use crate::{
    columns::printable,
    control::{self, AskError},
    datapath::{
        Options,
        examine::{self, Finding, Verdict},
    },
    ls,
    netdev::{
        NamespaceId,
        monitor::MonitorError,
        namespaces::{self, Selection},
    },
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

/// Looks at everything.
///
/// # Errors
///
/// When neither an agent nor the kernel says which netdevs there are.
pub async fn report(
    socket: &Path,
    options: &Options,
    policy: &Policy,
    selection: &Selection,
) -> Result<Report, MonitorError> {
    let (mut findings, has_tcx) = examine::host(options);
    findings.extend(lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default()));
    findings.push(namespace());
    if selection.is_on() {
        findings.push(named_namespaces(selection));
    }
    if let Some(notice) = ls::notice(socket).await {
        let says = format!("{notice}; once it can be written to, restart the agent");
        findings.push(Finding::new(Verdict::Bad, "pins", says));
    }
    let (agent, netdevs) = match control::netdevs(socket).await {
        Ok(netdevs) => {
            (Finding::new(Verdict::Good, "agent", "runs, and is what the hooks below are from"), netdevs)
        }
        Err(error) => {
            let verdict = if matches!(error, AskError::NoAgent(_)) { Verdict::Note } else { Verdict::Unseen };
            let says = format!("{error}; the hooks below are those that one would make");
            (Finding::new(verdict, "agent", says), foreseen(options, policy, selection, has_tcx)?)
        }
    };
    findings.push(agent);
    // What is asked of a netdev is asked of this namespace.
    let here = |netdev: &&NetdevStatus| netdev.role != "-" && netdev.netns.is_empty();
    let foreign = netdevs.iter().filter(here).flat_map(|netdev| {
        let found = examine::foreign(netdev.ifindex, &netdev.netdev, netdev.ingress.as_deref());
        found.into_iter().map(|what| (netdev.netdev.clone(), what))
    });
    let foreign = foreign.collect();
    Ok(Report { findings, netdevs, foreign })
}

/// Returns what an agent would do with each netdev.
fn foreseen(
    options: &Options,
    policy: &Policy,
    selection: &Selection,
    has_tcx: Option<bool>,
) -> Result<Vec<NetdevStatus>, MonitorError> {
    let netdevs = ls::all_netdevs(selection)?;
    let survey = Survey::new(&netdevs, policy);
    let mut attached = BTreeMap::new();
    let mut failed = BTreeMap::new();
    // What is asked of a netdev is asked of this namespace.
    let here = survey.desired.iter().filter(|(id, _)| id.namespace == NamespaceId::HOST);
    for (&id, target) in here {
        match has_tcx.map(|has_tcx| examine::foresee(target, options.tc, has_tcx)) {
            Some(Ok(attachment)) => drop(attached.insert(id, attachment)),
            Some(Err(error)) => drop(failed.insert(id, error.to_string())),
            None => {}
        }
    }
    Ok(survey.statuses(&netdevs, &attached, |id| failed.get(&id).cloned()))
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

/// Says whether the namespaces that are meant can be followed.
fn named_namespaces(selection: &Selection) -> Finding {
    let directory = namespaces::DIRECTORY;
    let (verdict, says) = match namespaces::dump(Path::new(directory), selection) {
        Err(error) => (Verdict::Bad, format!("{directory} can't be looked at: {error}")),
        Ok((followed, failed)) => match failed.first_key_value() {
            Some((name, why)) => {
                (Verdict::Bad, format!("{} can't be followed, such as {name}: {why}", failed.len()))
            }
            None if followed.is_empty() => {
                (Verdict::Note, format!("namespaces.include matches no name in {directory} now"))
            }
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
        if self.foreign.is_empty() {
            text += "Nobody else has attached anything to what is metered.\n";
        }
        for (netdev, what) in &self.foreign {
            writeln!(text, "{}  {what}", printable(netdev)).unwrap_or_default();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, Report, Verdict, lockdown};

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
