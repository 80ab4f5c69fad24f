//! Where the service listens: at a socket of systemd's, and below port 1024.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::machine::{
    CONFIGURATION, DropIn, SERVICE, WITHIN, eventually, output, properties_of, property, ready_after,
    reconfigure, restart, step,
};

const SOCKET: &str = "meter-agent.socket";
const PORT: u16 = 7300;

/// Longer than systemd's pause before a restart and a start that fails at once, together.
const NEXT_START: Duration = Duration::from_secs(8);

/// Goes through all of it; returns the service's process at the end.
pub(crate) fn run() -> u32 {
    let text = fs::read_to_string(CONFIGURATION).unwrap();
    step("a socket of systemd's, and a wrong configuration");
    output("systemctl", &["stop", SERVICE]);
    // Its socket is of both families, whatever is the default.
    fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap();
    output("systemctl", &["enable", "--now", SOCKET]);
    fs::write("/proc/sys/net/ipv6/bindv6only", "0").unwrap();
    fs::write(CONFIGURATION, format!("{text}\nno_such_key = 1\n")).unwrap();
    for _ in 0..2 {
        one_connection_is_one_start();
    }
    fs::write(CONFIGURATION, &text).unwrap();
    assert!(ask(PORT).unwrap().contains(" 200 "), "it waited for the agent that it started");
    restart_refuses_nobody(ready_after(0));
    output("systemctl", &["disable", "--now", SOCKET]);

    step("a port below 1024");
    reconfigure("\n#listen = [\"[::]:7300\"]\n", "\nlisten = [\"[::]:80\"]\n");
    restart();
    eventually("the journal says what it takes", || {
        let said = journal();
        if said.contains("Permission denied") && said.contains("low-ports.conf") { Ok(()) } else { Err(said) }
    });
    let drop_in = DropIn::of_package("low-ports.conf");
    restart();
    assert!(ask(80).unwrap().contains(" 200 "));
    drop_in.remove();
    fs::write(CONFIGURATION, text).unwrap();
    restart()
}

/// Connects to a service whose configuration is wrong: what waits does not start it again and again.
fn one_connection_is_one_start() {
    let before = starts();
    match ask(PORT) {
        Ok(answer) => assert_eq!(answer, ""),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
    eventually("the service failed", || match property("ActiveState") {
        state if state == "failed" => Ok(()),
        state => Err(state),
    });
    // For as long as another start might come.
    thread::sleep(NEXT_START);
    assert_eq!(starts() - before, 1, "{}", journal());
    let state = properties_of(SOCKET, &["ActiveState", "SubState"]);
    assert_eq!((&*state["ActiveState"], &*state["SubState"]), ("active", "listening"));
}

/// Restarts the service, this process: whoever connects when it has ended, and before the next serves, is answered by that.
fn restart_refuses_nobody(pid: u32) {
    let earlier = format!("/proc/{pid}");
    let client = |pause| {
        let began = Instant::now();
        while Path::new(&earlier).exists() {
            assert!(began.elapsed() < WITHIN);
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(pause);
        ask(PORT).unwrap()
    };
    thread::scope(|scope| {
        let clients = [0, 5, 20, 100].map(|pause| scope.spawn(move || client(Duration::from_millis(pause))));
        restart();
        for client in clients {
            assert!(client.join().unwrap().contains(" 200 "));
        }
    });
}

/// Asks the agent at a port; returns its answer.
fn ask(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.write_all(b"GET /-/healthy HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Returns how often the service was started since the boot.
fn starts() -> usize {
    journal().lines().filter(|line| line.starts_with(&format!("Starting {SERVICE}"))).count()
}

fn journal() -> String {
    output("journalctl", &["--sync"]);
    output("journalctl", &["--boot", "--unit", SERVICE, "--output", "cat", "--no-pager"])
}
