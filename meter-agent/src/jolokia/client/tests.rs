use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use super::{Client, FlowStats};

/// Answers one request on each connection, with one more packet on each, and closes it without a word.
fn closing_agent(listener: TcpListener) {
    thread::spawn(move || {
        for (packets, stream) in (1..).zip(listener.incoming()) {
            let mut stream = stream.unwrap();
            answer(&mut stream, packets);
        }
    });
}

fn answer(stream: &mut TcpStream, packets: i64) {
    read_request(stream);
    let body = format!(r#"{{"status":200,"value":{{"packets":{packets},"bytes":-5}}}}"#);
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).unwrap();
}

fn read_request(stream: &mut TcpStream) {
    let mut request = [0; 4096];
    let mut length = 0;
    while !request[..length].ends_with(b"}") {
        length += stream.read(&mut request[length..]).unwrap();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn connection_that_the_agent_closed_is_opened_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    closing_agent(listener);
    block_on(async {
        let mut client = Client::connect("127.0.0.1", port.into(), Duration::from_secs(10)).await.unwrap();
        for packets in 1..=5 {
            assert_eq!(client.get_meter("x").await.unwrap(), FlowStats { packets, bytes: -5 });
        }
    });
}

#[test]
fn connection_that_is_reset_under_a_request_is_opened_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (packets, stream) in (1..).zip(listener.incoming()) {
            let mut stream = stream.unwrap();
            answer(&mut stream, packets);
            read_request(&mut stream);
            // Without lingering, closing is a reset.
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
        }
    });
    block_on(async {
        let mut client = Client::connect("127.0.0.1", port.into(), Duration::from_secs(10)).await.unwrap();
        for packets in 1..=5 {
            assert_eq!(client.get_meter("x").await.unwrap(), FlowStats { packets, bytes: -5 });
        }
    });
}

#[test]
fn ipv6_address_may_have_brackets() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        eprintln!("skipped: this host has no IPv6");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    closing_agent(listener);
    for (packets, host) in (1..).zip(["::1", "[::1]"]) {
        block_on(async {
            let mut client = Client::connect(host, port.into(), Duration::from_secs(10)).await.unwrap();
            assert_eq!(client.agent(), format!("[::1]:{port}"));
            assert_eq!(client.get_meter("x").await.unwrap(), FlowStats { packets, bytes: -5 });
        });
    }
}

#[test]
fn agent_that_never_answers_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    block_on(async {
        let mut client = Client::connect("127.0.0.1", port.into(), Duration::from_millis(50)).await.unwrap();
        let error = client.list_meters().await.unwrap_err();
        assert_eq!(error.to_string(), format!("127.0.0.1:{port} does not answer: nothing within 50ms"));
    });
    drop(listener);
}
