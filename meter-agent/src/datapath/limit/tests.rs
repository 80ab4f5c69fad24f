//! Limits of control groups, and maps that fit into them or not.

use std::{fs, path::PathBuf};

use super::{PROCESS, fit, lowest};

#[test]
fn lowest_limit_is_that_of_any_group_above() {
    let mounted = tempfile::tempdir().unwrap();
    let place = |group: &str, limit: &str| {
        let group = mounted.path().join(group);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.max"), format!("{limit}\n")).unwrap();
        group
    };
    place("system.slice", "max");
    assert_eq!(lowest("0::/system.slice/agent.service\n", mounted.path()), None);
    let service = place("system.slice/agent.service", "1073741824");
    let of = |groups: &str| lowest(groups, mounted.path());
    assert_eq!(of("4:memory:/\n0::/system.slice/agent.service\n"), Some((1 << 30, service)));
    let slice = place("system.slice", "536870912");
    assert_eq!(of("0::/system.slice/agent.service\n"), Some((512 << 20, slice)));
    for other in ["", "4:memory:/system.slice\n", "0::/\n", "0::/user.slice\n"] {
        assert_eq!(of(other), None, "{other:?}");
    }
}

#[test]
fn maps_fit_beside_the_process() {
    let group = || PathBuf::from("/agent.service");
    assert!(fit(0, 0, group()).is_ok(), "nothing is to be made");
    assert!(fit((1 << 30) - PROCESS, 1 << 30, group()).is_ok());
    let refused = fit((1 << 30) - PROCESS + 1, 1 << 30, group()).unwrap_err();
    assert!(refused.lasts());
    let said = refused.to_string();
    assert!(said.contains("may take 993 MiB") && said.contains("the 1024 MiB that /agent.service"), "{said}");
}
