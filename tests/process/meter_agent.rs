//! `meter-agent` as a process, for what needs no root: usage, configuration, and the list without an agent.

use std::{
    path::Path,
    process::{Command, Output},
};

fn meter_agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meter-agent")).args(arguments).output().unwrap()
}

fn streams(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// Writes a configuration and returns its path as an argument.
fn config(directory: &Path, text: &str) -> String {
    let path = directory.join("meter-agent.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn version_and_help_are_data() {
    let version = meter_agent(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(streams(&version), (format!("meter-agent {}\n", env!("CARGO_PKG_VERSION")), String::new()));
    let (help, errors) = streams(&meter_agent(&["--help"]));
    assert!(
        help.contains("--check-config") && help.contains("detach") && errors.is_empty(),
        "{help}{errors}"
    );
}

#[test]
fn wrong_usage_and_wrong_configuration_are_2_and_every_mistake_is_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = config(directory.path(), "[ports]\nignor = []\n\n[http]\nlisten = [\"here\"]\n");
    for (arguments, expected) in [
        (&["--no-such-flag"][..], &["--no-such-flag"][..]),
        (&["no-such-command"], &["no-such-command"]),
        (&["--check-config", "--config", "/nonexistent.toml"], &["/nonexistent.toml"]),
        (
            &["--check-config", "--config", &path],
            &["meter-agent.toml:2:1: ", "ports.ignor", "meter-agent.toml:5:", "http.listen"],
        ),
        (&["--config", &path], &["ports.ignor"]),
        (&["ls", "--config", &path], &["ports.ignor"]),
        (&["--check-config", "--datapath-tc", "maybe"], &["--datapath-tc", "maybe"]),
    ] {
        let output = meter_agent(arguments);
        let (data, said) = streams(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert_eq!(data, "", "{arguments:?}");
        for word in expected {
            assert!(said.contains(word), "{arguments:?}: {word} in {said}");
        }
    }
}

#[test]
fn right_configuration_is_0() {
    let packaged = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/meter-agent.toml");
    // A test's machine may have neither a machine id nor a name.
    let directory = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(packaged).unwrap();
    let path = config(directory.path(), &format!("host_id = \"{}\"\n{text}", uuid::Uuid::from_u128(7)));
    let output = meter_agent(&["--check-config", "--config", &path]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn web_configuration_is_checked_and_a_wrong_one_is_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let web = directory.path().join("web.yml");
    let text = format!("host_id = \"{}\"\n[http]\nconfig_file = {:?}\n", uuid::Uuid::from_u128(7), web);
    let path = config(directory.path(), &text);
    let run = |arguments: &[&str]| {
        let output = meter_agent(&[arguments, &["--config", &path]].concat());
        (output.status.code(), streams(&output).1)
    };
    let (code, said) = run(&["--check-config"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("web.yml: No such file"), "{said}");
    std::fs::write(&web, "basic_auth_user: {}\n").unwrap();
    for arguments in [&["--check-config"][..], &[]] {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("web.yml:1:1: basic_auth_user: unknown key"), "{said}");
    }
    assert_eq!(
        run(&["--check-config", "--web.config.file", ""]).0,
        Some(0),
        "the flag stands above the file"
    );
    std::fs::write(&web, "basic_auth_users: {}\n").unwrap();
    assert_eq!(run(&["--check-config"]).0, Some(0));
}

#[test]
fn list_without_an_agent_says_what_one_would_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let text =
        format!("host_id = \"{}\"\n[control]\nsocket = \"{}\"\n", uuid::Uuid::from_u128(7), socket.display());
    let path = config(directory.path(), &text);
    let output = meter_agent(&["ls", "--config", &path]);
    let (table, said) = streams(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("no agent runs") && said.contains("none.sock"), "{said}");
    let lo = table.lines().find(|line| line.starts_with("lo ")).unwrap_or_else(|| panic!("{table}"));
    assert!(lo.contains("loopback"), "{lo}");
    let (json, _) = streams(&meter_agent(&["ls", "--json", "--config", &path]));
    let netdevs: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(netdevs.as_array().unwrap().iter().any(|netdev| netdev["netdev"] == "lo"), "{json}");
}

const METERS: &str = "
host_id = '123e4567-e89b-12d3-a456-426614174000'
[[meter]]
name = 'web: \"é\"'
rules = ['rule rule0 proto 6 tos 0 dst-port 80 fragment-policy header pos 1 type accept', { proto = 17, src = '10.0.0.0/8' }]
";

#[test]
fn packet_is_explained_without_an_agent() {
    let directory = tempfile::tempdir().unwrap();
    let path = config(directory.path(), METERS);
    let output = meter_agent(&[
        "meter", "explain", "--config", &path, "src", "10.0.0.1", "proto", "6", "dst-port", "80",
    ]);
    let expected = "packet: ethertype 2048 src 10.0.0.1 proto 6 dst-port 80\n\
                    web: \"é\": counted\n  \
                    rule 1 matches: every attribute holds: proto 6 dst-port 80 fragment-policy header\n  \
                    rule 2 doesn't match: proto 17 doesn't hold, the packet has 6\n";
    assert_eq!(streams(&output), (expected.to_owned(), String::new()));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn packet_that_can_not_be_explained_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = config(directory.path(), METERS);
    for (arguments, code, expected) in [
        (&["proto", "tcp"][..], 2, "meter-agent: proto: \"tcp\" is not a number, expected 0 to 255\n"),
        (
            &["--pcap", "/nonexistent"],
            1,
            "meter-agent: open /nonexistent: No such file or directory (os error 2)\n",
        ),
    ] {
        let output = meter_agent(&[&["meter", "explain", "--config", &path], arguments].concat());
        assert_eq!(streams(&output), (String::new(), expected.to_owned()), "{arguments:?}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn configuration_with_a_meter_is_right() {
    let directory = tempfile::tempdir().unwrap();
    let path = config(directory.path(), METERS);
    let output = meter_agent(&["--check-config", "--config", &path]);
    assert_eq!(streams(&output), (String::new(), "the configuration is right\n".to_owned()));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn doctor_needs_neither_an_agent_nor_root_and_says_what_is_bad() {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "host_id = \"{}\"\n[control]\nsocket = \"{}\"\n",
        uuid::Uuid::from_u128(7),
        directory.path().join("none.sock").display()
    );
    let path = config(directory.path(), &text);
    let pins = directory.path().join("pins");
    let output = meter_agent(&["doctor", "--config", &path, "--datapath-pin-path", pins.to_str().unwrap()]);
    let (report, said) = streams(&output);
    assert_eq!(output.status.code(), Some(1), "{report}{said}");
    let line = |start: &str| {
        let line = report.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no line {start} in\n{report}"))
    };
    assert!(line("ok      kernel        Linux ").len() > 30, "{report}");
    let bpffs = line("BAD     bpffs         ");
    assert!(bpffs.contains("is not on a bpffs") && bpffs.contains("set datapath.pin_path"), "{report}");
    assert!(line("note    agent         ").contains("no agent runs"), "{report}");
    assert!(line("lo ").contains("loopback"), "{report}");
}
