//! Traffic that runs until it is told to stop.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    amount::slower,
    error::{Doing as _, Result},
    netns::Netns,
    traffic::{connect, send_segmented, udp_pair},
};

/// How long a connection may take to be made, and a load to end.
fn patience() -> Duration {
    Duration::from_secs(30) * slower()
}

/// How much is sent at once, and the pause after it.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Payload bytes of one burst.
    pub burst: usize,
    /// The pause between two bursts.
    pub pause: Duration,
}

/// How UDP payload becomes datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagrams {
    /// One system call for each, of this payload.
    Single(u16),
    /// One system call for a burst, which the kernel cuts into datagrams of this payload (`UDP_SEGMENT`).
    Segmented(u16),
}

/// Traffic from one namespace to another; it ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts a TCP stream from `client` to `server`, an address of `listener`.
    ///
    /// # Errors
    ///
    /// When the connection can't be made.
    pub fn tcp(client: &Netns, listener: &Netns, server: SocketAddr, pace: Pace) -> Result<Self> {
        let (source, sink) = connect(client, listener, server, patience())?;
        let mut load = Self::idle();
        load.start("tcp-source", move |load| send_stream(source, pace, &load))?;
        load.start("tcp-sink", move |load| receive_stream(sink, &load))?;
        Ok(load)
    }

    /// Starts UDP datagrams from `client` to `server`, an address of `listener`.
    ///
    /// # Errors
    ///
    /// When an address can't be bound.
    pub fn udp(
        client: &Netns,
        listener: &Netns,
        server: SocketAddr,
        datagrams: Datagrams,
        pace: Pace,
    ) -> Result<Self> {
        let (source, sink) = udp_pair(client, listener, server)?;
        let mut load = Self::idle();
        load.start("udp-source", move |load| send_datagrams(&source, datagrams, pace, &load))?;
        load.start("udp-sink", move |load| receive_datagrams(&sink, &load))?;
        Ok(load)
    }

    /// Payload bytes sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Payload bytes received so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Stops sending, closes what is open in the ordinary way, and waits for its end.
    ///
    /// # Errors
    ///
    /// What made a thread end early, such as a connection that was lost.
    pub fn stop(self) -> Result<()> {
        Self::stop_all(vec![self])
    }

    /// As [`Load::stop`]; returns all payload bytes that were sent.
    ///
    /// # Errors
    ///
    /// As [`Load::stop`].
    pub fn finish(self) -> Result<u64> {
        let sent = Arc::clone(&self.sent);
        self.stop()?;
        Ok(sent.load(Ordering::Relaxed))
    }

    /// Stops several at once.
    ///
    /// # Errors
    ///
    /// As [`Load::stop`]; all are stopped before the first error is returned.
    pub fn stop_all(loads: Vec<Self>) -> Result<()> {
        for load in &loads {
            load.stop.store(true, Ordering::Relaxed);
        }
        loads.into_iter().map(|mut load| load.join()).fold(Ok(()), Result::and)
    }

    fn idle() -> Self {
        Self { stop: Arc::default(), sent: Arc::default(), received: Arc::default(), threads: Vec::new() }
    }

    fn start(&mut self, name: &str, run: impl FnOnce(Shared) -> Result<()> + Send + 'static) -> Result<()> {
        let shared = Shared {
            stop: Arc::clone(&self.stop),
            sent: Arc::clone(&self.sent),
            received: Arc::clone(&self.received),
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || run(shared));
        self.threads.push(thread.doing(|| format!("start thread {name}"))?);
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        self.threads
            .drain(..)
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .fold(Ok(()), Result::and)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("{error}"),
                Err(_) => eprintln!("a traffic thread panicked"),
            }
        }
    }
}

/// What the threads of a load share with their owner.
struct Shared {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn add(total: &AtomicU64, bytes: usize) {
    total.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
}

fn send_stream(mut stream: TcpStream, pace: Pace, load: &Shared) -> Result<()> {
    let burst = vec![0x5a; pace.burst];
    while !load.stopped() {
        stream.write_all(&burst).doing(|| "send a stream".to_owned())?;
        add(&load.sent, burst.len());
        thread::sleep(pace.pause);
    }
    stream.shutdown(Shutdown::Write).doing(|| "close the connection".to_owned())?;
    // The other end's FIN: after it both ends are silent.
    drain(stream, &AtomicU64::new(0))
}

fn receive_stream(stream: TcpStream, load: &Shared) -> Result<()> {
    let end = stream.try_clone().doing(|| "duplicate a socket".to_owned())?;
    drain(stream, &load.received)?;
    end.shutdown(Shutdown::Write).doing(|| "close the connection".to_owned())
}

fn drain(mut stream: TcpStream, total: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => add(total, length),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing(|| "receive a stream".to_owned()),
        }
    }
}

fn send_datagrams(socket: &UdpSocket, datagrams: Datagrams, pace: Pace, load: &Shared) -> Result<()> {
    while !load.stopped() {
        match datagrams {
            Datagrams::Segmented(segment) => {
                send_segmented(socket, pace.burst, segment)?;
                add(&load.sent, pace.burst);
            }
            Datagrams::Single(size) => {
                let payload = vec![0x5a; usize::from(size)];
                for _ in 0..pace.burst.div_ceil(payload.len().max(1)) {
                    socket.send(&payload).doing(|| "send a datagram".to_owned())?;
                    add(&load.sent, payload.len());
                }
            }
        }
        thread::sleep(pace.pause);
    }
    Ok(())
}

fn receive_datagrams(socket: &UdpSocket, load: &Shared) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    socket.set_read_timeout(Some(Duration::from_millis(200))).doing(|| "set a timeout".to_owned())?;
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => add(&load.received, length),
            // Nothing came for a moment after the source stopped.
            Err(error) if error.kind() == ErrorKind::WouldBlock && load.stopped() => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).doing(|| "receive datagrams".to_owned()),
        }
    }
}
