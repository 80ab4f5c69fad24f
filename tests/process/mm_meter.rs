//! `mm-meter` as its users see it: output, streams and exit codes.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::fd::AsRawFd as _,
    process::{Command, Output, Stdio},
    thread,
};

use meter_agent::{
    meter::{DeviceId, FlowStats},
    snapshot::Snapshot,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use uuid::Uuid;

use crate::served::{DEVICE, Served, device, snapshot};

fn mm_meter(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mm-meter"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Asserts the whole of what a run leaves: standard output, standard error, exit code.
fn assert_output(output: &Output, expected: (&str, &str, i32), of: &str) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        (stdout.as_str(), stderr.as_str(), output.status.code()),
        (expected.0, expected.1, Some(expected.2)),
        "{of}"
    );
}

fn run_at(port: u16, arguments: &[&str]) -> Output {
    let port = port.to_string();
    mm_meter(&[&["-h", "127.0.0.1", "-p", &port], arguments].concat()).output().unwrap()
}

#[test]
fn list_prints_a_name_a_line() {
    let names = "meters:device:7d1a2b3c-0000-4000-8000-000000000001\n\
                 meters:device:7d1a2b3c-0000-4000-8000-000000000002\n\
                 meters:tunnel:167772169:167772170\n";
    let served = Served::start(snapshot());
    assert_output(&run_at(served.port, &["list"]), (names, "", 0), "three meters");
    let served = Served::start(Snapshot::default());
    assert_output(&run_at(served.port, &["list"]), ("", "", 0), "no meter");
}

#[test]
fn get_prints_totals_once_and_ends() {
    let served = Served::start(snapshot());
    for (arguments, row) in [
        (&["get", "-n", DEVICE][..], "          10         1000\n"),
        (&["get", "--meter-name", DEVICE, "0", "5"], "          10         1000\n"),
        (&["get", "-n", DEVICE, "-3"], "          10         1000\n"),
        (&["get", "-n", "meters:tunnel:167772169:167772170"], "9007199254740993 9223372036854775807\n"),
        (&["get", "-n", "meters:tunnel:10.0.0.9:10.0.0.10"], "9007199254740993 9223372036854775807\n"),
        (
            &["get", "-n", "meters:port:rx:7d1a2b3c-0000-4000-8000-000000000009"],
            "           0            0\n",
        ),
        (&["get", "-n", "no meter's name"], "           0            0\n"),
    ] {
        let expected = format!("     packets        bytes\n{row}");
        assert_output(&run_at(served.port, arguments), (&expected, "", 0), &format!("{arguments:?}"));
    }
    assert_eq!(served.asked(), 7, "one request for each report");
}

#[test]
fn get_with_delay_prints_totals_then_deltas_negative_ones_too() {
    let served =
        Served::sequence(vec![device(568_935, 4_215_888_475), device(568_958, 4_215_894_309), device(1, 60)]);
    let rows = "     packets        bytes
      568935   4215888475
          23         5834
     -568957  -4215894249
";
    assert_output(&run_at(served.port, &["get", "-n", DEVICE, "1", "3"]), (rows, "", 0), "three reports");
}

#[test]
fn each_report_is_out_before_the_pause() {
    let served = Served::start(device(7, 420));
    let port = served.port.to_string();
    let mut child = mm_meter(&["-p", &port, "-h", "127.0.0.1", "get", "-n", DEVICE, "1000"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "     packets        bytes");
    assert_eq!(lines.next().unwrap().unwrap(), "           7          420");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn help_is_midonets() {
    let general = "  -h, --host  <arg>   Host (default = localhost)
  -p, --port  <arg>   JMX port (default = 7200)
      --help          Show help message

Subcommand: list - list all active meters
      --help   Show help message
Subcommand: get
  -n, --meter-name  <arg>   name of the meter
      --help                Show help message

 trailing arguments:
  delay (not required)   delay between updates, in seconds. If no delay is
                     specified, only one report is printed. (default = 0)
  count (not required)   number of updates, defaults to infinity
                     (default = 2147483647)
";
    let get = general.split_once("Subcommand: get\n").unwrap().1;
    for (arguments, expected) in [
        (&["--help"][..], general),
        (&["--help", "list"], general),
        (&["list", "--help"], "      --help   Show help message\n"),
        (&["-p", "x", "get", "--help"], get),
    ] {
        let output = mm_meter(arguments).output().unwrap();
        assert_output(&output, (expected, "", 0), &format!("{arguments:?}"));
    }
}

#[test]
fn bad_usage_is_reported_where_it_was() {
    for (arguments, message) in [
        (&["-x", "list"][..], "Unknown option 'x'"),
        (&["--verbose", "list"], "Unknown option 'verbose'"),
        (&["list", "-n", "x"], "Unknown option 'n'"),
        (&["list", "x", "--help"], "Failed to parse the trailing argument list: 'x --help'"),
        (&["foo"], "Failed to parse the trailing argument list: 'foo'"),
        (&["-p", "7200", "foo", "list"], "Failed to parse the trailing argument list: 'foo'"),
        (&["get"], "Required option 'meter-name' not found"),
        (
            &["get", "-n"],
            "Bad arguments for option 'meter-name': '' - you should provide exactly one argument",
        ),
        (&["-h", "list"], "Bad arguments for option 'host': '' - you should provide exactly one argument"),
        (&["-p", "abc", "list"], "Bad arguments for option 'port': 'abc' - wrong arguments format"),
        (
            &["-p", "1", "2", "-h", "x", "list"],
            "Bad arguments for option 'port': '1 2' - you should provide exactly one argument for this option",
        ),
        (&["get", "-n", "x", "soon"], "Failed to parse the trailing argument list: 'soon'"),
        (&["get", "-n", "x", "1", "2", "3"], "Failed to parse the trailing argument list: '1 2 3'"),
        (
            &["@/does/not/exist"],
            "cannot read arguments from /does/not/exist: No such file or directory (os error 2)",
        ),
    ] {
        let output = mm_meter(arguments).output().unwrap();
        assert_output(&output, (&format!("[mm-meter] Error: {message}\n"), "", 1), &format!("{arguments:?}"));
    }
    let output = mm_meter(&[]).output().unwrap();
    assert_output(
        &output,
        ("", "[mm-meter] Failed: [mm-meter] must specify a valid command\n", 1),
        "nothing",
    );
}

#[test]
fn arguments_come_from_a_file_too() {
    let served = Served::start(device(7, 420));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("arguments");
    std::fs::write(&file, format!("-h 127.0.0.1  -p {}\nget -n {DEVICE}\n", served.port)).unwrap();
    let output = mm_meter(&[&format!("@{}", file.display())]).output().unwrap();
    assert_output(&output, ("     packets        bytes\n           7          420\n", "", 0), "@file");
}

#[test]
fn agent_that_is_not_there_is_named() {
    // Bound, so that nobody else gets the port, and not listening.
    let held = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(held.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(held.as_raw_fd()).unwrap().port();
    let refused = format!("cannot reach 127.0.0.1:{port}: Connection refused (os error 111)");
    for (host, port, message) in [
        ("127.0.0.1", i32::from(port), refused.as_str()),
        ("127.0.0.1", 0, "port 0 is not between 1 and 65535"),
        ("127.0.0.1", 65_536, "port 65536 is not between 1 and 65535"),
    ] {
        for question in [&["list"][..], &["get", "-n", DEVICE, "1"]] {
            let port = port.to_string();
            let output = mm_meter(&[&["-h", host, "-p", &port], question].concat()).output().unwrap();
            let stderr =
                format!("[mm-meter] Failed: [mm-meter] Failed to connect to remote agent: {message}\n");
            assert_output(&output, ("", &stderr, 1), message);
        }
    }
    // Longer than a label may be, so that no name server is asked.
    let host = "no-such-host".repeat(6);
    let output = mm_meter(&["-h", &host, "list"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let frame = "[mm-meter] Failed: [mm-meter] Failed to connect to remote agent: cannot reach ";
    assert!(stderr.starts_with(&format!("{frame}{host}:7200: ")) && stderr.lines().count() == 1, "{stderr}");
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b""[..], Some(1)));
}

#[test]
fn what_is_no_agent_is_called_so() {
    let http = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    for (reply, message) in [
        (
            "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
            "does not answer as an agent does: invalid HTTP version parsed",
        ),
        (String::new(), "does not answer as an agent does: connection closed before message completed"),
        (http("404 Not Found", ""), "is not a Jolokia agent: HTTP status 404 Not Found"),
        (http("200 OK", "hi"), "is not a Jolokia agent: expected value at line 1 column 1"),
        (http("200 OK", "{}"), "is not a Jolokia agent: missing field `status` at line 1 column 2"),
        (
            http("200 OK", r#"{"status":200,"value":"x"}"#),
            "is not a Jolokia agent: the value is of another type",
        ),
        (http("200 OK", r#"{"status":404,"error":"no.such:type=X"}"#), "answers: no.such:type=X"),
        (http("200 OK", r#"{"status":500}"#), "answers: status 500"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // A request that is not read would turn the end of the connection into a reset.
                let mut request = [0; 4096];
                let mut length = 0;
                while !request[..length].ends_with(b"}") {
                    length += stream.read(&mut request[length..]).unwrap();
                }
                stream.write_all(reply.as_bytes()).unwrap();
            }
        });
        let stderr = format!("[mm-meter] Failed: 127.0.0.1:{port} {message}\n");
        assert_output(&run_at(port, &["list"]), ("", &stderr, 1), message);
        let header = "     packets        bytes\n";
        assert_output(&run_at(port, &["get", "-n", "x", "1"]), (header, &stderr, 1), message);
    }
}

#[test]
fn agent_that_dies_between_reports_ends_the_tool() {
    let served = Served::start(device(7, 420));
    let port = served.port.to_string();
    let mut child = mm_meter(&["-h", "127.0.0.1", "-p", &port, "get", "-n", DEVICE, "1"]).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = String::new();
    stdout.read_line(&mut lines).unwrap();
    stdout.read_line(&mut lines).unwrap();
    drop(served);
    stdout.read_to_string(&mut lines).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(lines, "     packets        bytes\n           7          420\n");
    let stderr =
        format!("[mm-meter] Failed: cannot reach 127.0.0.1:{port}: Connection refused (os error 111)\n");
    assert_output(&output, ("", &stderr, 1), "agent died");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let served = Served::start(snapshot());
    let port = served.port.to_string();
    let stderr =
        "[mm-meter] Failed: cannot write to standard output: No space left on device (os error 28)\n";
    for question in [&["list"][..], &["get", "-n", DEVICE], &["get", "--help"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = mm_meter(&[&["-h", "127.0.0.1", "-p", &port], question].concat());
        assert_output(&command.stdout(full).output().unwrap(), ("", stderr, 1), &format!("{question:?}"));
    }
}

#[test]
fn closed_pipe_is_no_error() {
    let devices =
        (0..20_000).map(|number| (DeviceId(Uuid::from_u128(number)), FlowStats::default())).collect();
    let served = Served::start(Snapshot { devices, ..Snapshot::default() });
    let port = served.port.to_string();
    let all = run_at(served.port, &["list"]);
    assert_eq!(
        (all.stdout.iter().filter(|&&byte| byte == b'\n').count(), all.status.code()),
        (20_000, Some(0))
    );
    for question in [&["list"][..], &["get", "-n", DEVICE, "1"]] {
        let mut child = mm_meter(&[&["-h", "127.0.0.1", "-p", &port], question].concat()).spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_output(&output, ("", "", 0), &format!("{question:?}"));
    }
}
