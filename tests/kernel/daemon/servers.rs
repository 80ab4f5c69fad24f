//! What the agent serves: addresses that are in use, clients that are slow or send no request, sockets that were passed.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    time::Duration,
};

use lab::http;

use super::{Daemon, Guests, HTTP, Host, JOLOKIA, PORT, bound, ready, rx_tx, sum};

#[test]
fn port_in_use_costs_nothing_else() {
    if !ready() {
        return;
    }
    let host = Host::new("in-use");
    let guests = Guests::new(&host.netns);
    let other = host.netns.run_in(|| TcpListener::bind(HTTP)).unwrap().unwrap();
    let mut daemon = Daemon::new(&host, &format!("[http]\nlisten = [\"{HTTP}\"]\n{}", bound("tap1")));
    daemon.start();
    daemon.wait("it says so", |daemon| daemon.log().contains("can't listen"));
    let [rx, tx] = ["rx", "tx"].map(|way| format!("meters:port:{way}:{PORT}"));
    daemon.wait("it counts meanwhile", |daemon| {
        let listens = host.netns.run_in(|| TcpStream::connect(JOLOKIA)).unwrap().is_ok();
        listens && daemon.mm_meter(&["list"]).contains(&rx)
    });
    let before = guests.counts();
    let zero = [&rx, &tx].map(|meter| {
        let answer = daemon.mm_meter(&["get", "-n", meter]);
        let numbers: Vec<u64> = answer.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[1])
    });
    guests.talk();
    let moved = rx_tx(&guests.counts().since(&before));
    drop(other);
    daemon.wait_until_ready();
    assert_eq!(daemon.port(PORT), Some(sum(zero, moved)));
}

#[test]
fn all_addresses_are_those_of_both_families() {
    if !ready() {
        return;
    }
    let host = Host::new("families");
    let mut daemon = Daemon::new(&host, "[http]\nlisten = [\"[::]:7300\", \"[::ffff:127.0.0.2]:7301\"]");
    // What a socket is by default that doesn't say whether it is IPv6's only.
    for default in ["0", "1"] {
        host.netns.sysctl("net/ipv6/bindv6only", default).unwrap();
        daemon.start();
        daemon.wait_until_ready();
        for address in ["127.0.0.1:7300", "[::1]:7300", "127.0.0.2:7301"] {
            let connected = host.netns.run_in(|| TcpStream::connect(address)).unwrap();
            assert!(connected.is_ok(), "{address}, bindv6only {default}: {connected:?}");
        }
        daemon.stop();
    }
}

#[test]
fn what_is_no_request_costs_its_sender_only() {
    if !ready() {
        return;
    }
    let host = Host::new("garbage");
    let daemon = Daemon::started(&host, "");
    for server in [HTTP, JOLOKIA] {
        let mut idle = Vec::new();
        for _ in 0..50 {
            let mut stream = host.netns.run_in(|| TcpStream::connect(server)).unwrap().unwrap();
            stream.write_all(b"GET /metr").unwrap();
            idle.push(stream);
        }
        let long = vec![b'a'; 1 << 16];
        let deep = "[".repeat(100_000);
        let deep = format!("POST /jolokia HTTP/1.0\r\nContent-Length: {}\r\n\r\n{deep}", deep.len());
        for garbage in [
            &b"\r\n\r\n"[..],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET \xff\xfe HTTP/1.0\r\n\r\n",
            b"POST /jolokia HTTP/1.0\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"POST /jolokia HTTP/1.0\r\nContent-Length: -1\r\n\r\n{}",
            &[b"GET /", &long[..], b" HTTP/1.0\r\n\r\n"].concat(),
            deep.as_bytes(),
        ] {
            // An answer, or a connection that ends: either will do.
            let answer = http::exchange(&host.netns, server, garbage);
            let status = answer.map(|answer| answer.status);
            assert!(
                !matches!(status, Ok(500..)),
                "{status:?} to {:?}",
                String::from_utf8_lossy(&garbage[..garbage.len().min(60)])
            );
        }
        assert!(daemon.get("/metrics").contains("meter_agent_build_info"), "it still answers");
        assert_eq!(daemon.mm_meter(&["list"]), "");
    }
}

#[test]
fn control_socket_that_cannot_be_made_costs_the_list_only() {
    if !ready() {
        return;
    }
    let host = Host::new("control");
    let _guests = Guests::new(&host.netns);
    let mut daemon = Daemon::new(&host, &bound("tap1"));
    std::fs::create_dir(daemon.control_socket()).unwrap();
    daemon.start();
    daemon.wait_until_ready();
    assert!(daemon.port(PORT).is_some());
    assert!(daemon.log().contains("no control socket"), "{}", daemon.log());
    daemon.stop();
    assert!(daemon.control_socket().is_dir(), "what was there is left alone");
}

#[test]
fn slow_client_does_not_hold_the_end_up() {
    if !ready() {
        return;
    }
    let host = Host::new("slow");
    let mut daemon = Daemon::started(&host, "");
    let mut stream = host.netns.run_in(|| TcpStream::connect(HTTP)).unwrap().unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let began = std::time::Instant::now();
    daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn password_in_the_checking_does_not_hold_the_end_up() {
    if !ready() {
        return;
    }
    let host = Host::new("checking");
    let directory = tempfile::tempdir().unwrap();
    let web = directory.path().join("web.yml");
    // No password goes with it, and it takes many seconds to find that out.
    let hash = bcrypt::hash("secret", 4).unwrap().replacen("$04$", "$18$", 1);
    std::fs::write(&web, format!("basic_auth_users: {{alice: {hash}}}\n")).unwrap();
    let mut daemon = Daemon::new(&host, &format!("[http]\nconfig_file = {web:?}"));
    daemon.start();
    daemon.wait("it serves", |daemon| daemon.try_get("/").is_ok_and(|answer| answer.status == 401));
    let mut stream = host.netns.run_in(|| TcpStream::connect(HTTP)).unwrap().unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YWxpY2U6c2VjcmV0\r\n\r\n").unwrap();
    // Read after the one above.
    daemon.wait("it serves", |daemon| daemon.try_get("/").is_ok_and(|answer| answer.status == 401));
    let began = std::time::Instant::now();
    daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn sockets_that_were_passed_are_served_in_place_of_addresses() {
    if !ready() {
        return;
    }
    let host = Host::new("passed");
    // In the host's namespace nothing listens at these ports but what is passed.
    let [metrics, jolokia] =
        [HTTP, JOLOKIA].map(|address| host.netns.run_in(|| TcpListener::bind(address)).unwrap().unwrap());
    let line = "exec 3<&0 4<&1 1>&2 </dev/null; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=jolokia:metrics exec \"$@\"";
    let mut daemon = Daemon::new(&host, "[http]\nlisten = [\"127.0.0.1:1\"]\n[jolokia]\nlisten = []");
    daemon.start_with(&["sh", "-c", line, "sh"], |command| {
        command.stdin(std::os::fd::OwnedFd::from(jolokia)).stdout(std::os::fd::OwnedFd::from(metrics));
    });
    daemon.wait_until_ready();
    assert!(daemon.jolokia(r#"{"type":"version"}"#).contains("meter-agent"), "{}", daemon.log());
    assert!(host.netns.run_in(|| TcpStream::connect("127.0.0.1:1")).unwrap().is_err());
}

#[test]
fn web_configuration_holds_for_the_metrics_port_and_not_for_jolokia() {
    if !ready() {
        return;
    }
    let host = Host::new("web");
    let directory = tempfile::tempdir().unwrap();
    let web = directory.path().join("web.yml");
    let users = |hash: &str| format!("basic_auth_users: {{alice: {hash}}}\n");
    std::fs::write(&web, users(&bcrypt::hash("secret", 4).unwrap())).unwrap();
    let mut daemon = Daemon::new(&host, &format!("[http]\nconfig_file = {web:?}"));
    daemon.start();
    daemon.wait("it serves", |daemon| daemon.try_get("/").is_ok());
    // "alice:secret"
    let authorized = |path: &str| {
        let request = format!("GET {path} HTTP/1.0\r\nAuthorization: Basic YWxpY2U6c2VjcmV0\r\n\r\n");
        http::exchange(&host.netns, HTTP, request.as_bytes())
    };
    for path in ["/", "/metrics", "/-/ready", "/none"] {
        assert_eq!(daemon.try_get(path).unwrap().status, 401, "{path}");
    }
    daemon.wait("ready", |_| authorized("/-/ready").is_ok_and(|answer| answer.status == 200));
    assert_eq!(daemon.mm_meter(&["list"]), "");
    let is_ok = |value: u32| {
        let sample = format!("\nmeter_agent_web_config_last_reload_successful {value}\n");
        move || authorized("/metrics").is_ok_and(|answer| answer.body.contains(&sample))
    };
    assert!(is_ok(1)());
    std::fs::write(&web, users("secret")).unwrap();
    daemon.wait("the mistake shows", |_| is_ok(0)());
    assert!(
        daemon.log().contains("web.yml:1:27: basic_auth_users.alice: is not a bcrypt hash"),
        "{}",
        daemon.log()
    );
    std::fs::write(&web, "").unwrap();
    daemon.wait("everybody may ask", |daemon| daemon.try_get("/").is_ok_and(|answer| answer.status == 200));
}
