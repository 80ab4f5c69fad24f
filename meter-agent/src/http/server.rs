//! Connections: accepted, read and answered within bounds.
//!
//! Everything that a client decides has a bound: how many connections it has, how long it takes to send a request and
//! to take an answer, how long both may be, and how much memory answers take that nobody reads. What is beyond it is
//! answered with a status that says so where the protocol has one, and counted by its reason.

mod body;
mod counts;
mod farewell;
mod limits;
mod places;
mod stream;
mod turns;
mod watch;

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{
    StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderMap, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

pub use self::{
    counts::{Cut, Refused, Stats},
    limits::Limits,
    stream::{Listener, Peer, Stream},
};
use self::{
    places::{Place, Places},
    stream::Watched,
    turns::Turns,
    watch::{Held, Outgoing, Phase, Watch},
};
use super::{
    Request, Response,
    web::{Settings, Web, WebStatus},
};

/// Bytes of a request's head. hyper answers 431 beyond it.
const MAX_HEAD: usize = 16 * 1024;

/// What one server's listeners share: the bounds, and who is connected.
#[derive(Debug, Clone)]
pub struct Server {
    limits: Arc<Limits>,
    places: Arc<Places>,
    /// At making answers.
    answers: Arc<Turns>,
    /// At checking passwords, which are not those of the ones whose password is known.
    checks: Arc<Turns>,
    web: Option<Arc<Web>>,
}

/// The servers that `/metrics` shows: of the process as a whole, as what the kernel says of it is.
static PUBLISHED: Mutex<Vec<(&str, Server)>> = Mutex::new(Vec::new());

/// What a server says of itself.
#[derive(Debug, Clone)]
pub struct Published {
    /// What it is called.
    pub name: &'static str,
    /// What became of its connections.
    pub stats: Stats,
    /// How the last reading of its web configuration went, if it has one.
    pub web: Option<WebStatus>,
}

/// Returns what the servers that are shown say of themselves, in the order in which they were published.
#[must_use]
pub fn published() -> Vec<Published> {
    let servers = PUBLISHED.lock().unwrap_or_else(PoisonError::into_inner);
    let shown = |(name, server): &(&'static str, Server)| Published {
        name,
        stats: server.stats(),
        web: server.web.as_ref().map(|web| web.status()),
    };
    servers.iter().map(shown).collect()
}

/// Serves until the task is dropped. `answer` is called once for each request that could be read.
pub async fn serve<L, A, F>(listener: L, limits: Limits, answer: A)
where
    L: Listener,
    A: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send,
{
    Server::new(limits).serve(listener, answer).await;
}

impl Server {
    /// Makes a server without listeners.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let places = Arc::new(Places::new(&limits));
        let turns = || Arc::new(Turns::new(limits.max_answers, limits.max_answers_of_peer));
        let (answers, checks) = (turns(), turns());
        Self { limits: Arc::new(limits), places, answers, checks, web: None }
    }

    /// Serves as a web configuration says.
    #[must_use]
    pub fn with_web(self, web: Option<Arc<Web>>) -> Self {
        Self { web, ..self }
    }

    /// Shows the server on `/metrics` from now on, in place of another one of this name.
    #[must_use]
    pub fn publish(self, name: &'static str) -> Self {
        let mut servers = PUBLISHED.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|(other, _)| *other != name);
        servers.push((name, self.clone()));
        drop(servers);
        self
    }

    /// Returns what became of connections so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.places.stats()
    }

    /// Serves until the task is dropped. `answer` is called once for each request that could be read.
    pub async fn serve<L, A, F>(&self, listener: L, answer: A)
    where
        L: Listener,
        A: Fn(Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send,
    {
        let mut last = String::new();
        loop {
            match listener.next().await {
                Ok((stream, peer)) => match self.places.admit(peer) {
                    Ok(place) => {
                        let (server, answer) = (self.clone(), answer.clone());
                        tokio::spawn(async move { server.connection(stream, place, answer).await });
                    }
                    Err(_) => farewell::refuse(stream),
                },
                Err(error) => {
                    // Out of descriptors, mostly: a connection that ends frees one.
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                        self.places.spare();
                    }
                    let error = error.to_string();
                    if error != last {
                        tracing::warn!(error, "accept failed");
                        last = error;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection<S, A, F>(&self, stream: S, place: Place, answer: A)
    where
        S: Stream,
        A: Fn(Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send,
    {
        let watch = &place.watch;
        let stream = Watched::new(stream, Arc::clone(watch));
        let Some(config) = self.settings().await.and_then(|settings| settings.tls.clone()) else {
            return self.http(stream, watch, answer).await;
        };
        let accepted = tokio::select! {
            biased;
            accepted = TlsAcceptor::from(config).accept(stream) => accepted,
            cut = watch.overdue(&self.limits) => return self.places.counts.cut(cut),
        };
        match accepted {
            Ok(stream) => {
                watch.enter(Phase::Head);
                self.http(stream, watch, answer).await;
            }
            Err(error) => {
                tracing::debug!(error = %error, peer = ?watch.peer(), "no TLS");
                self.places.counts.cut(Cut::Handshake);
            }
        }
    }

    /// Returns the web configuration in force.
    async fn settings(&self) -> Option<Arc<Settings>> {
        match &self.web {
            Some(web) => Some(web.current().await),
            None => None,
        }
    }

    /// Speaks HTTP until the client has enough, or has had its time.
    async fn http<S, A, F>(&self, stream: S, watch: &Arc<Watch>, answer: A)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send,
    {
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let answer = answer.clone();
            Box::pin(async move { Ok::<_, Infallible>(self.respond(request, watch, answer).await) })
        });
        let mut connection = http1::Builder::new()
            // A client that has said all may still read.
            .half_close(true)
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let cut = tokio::select! {
            biased;
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => {
                if let Err(error) = ended {
                    // A client that hung up or sent something that isn't HTTP: hyper has answered what it could.
                    tracing::debug!(error = %error, "connection ended");
                }
                None
            }
            cut = watch.overdue(&self.limits) => Some(cut),
        };
        let mut stream = connection.into_parts().io.into_inner();
        if let Some(reason) = cut {
            self.places.counts.cut(reason);
            if reason != Cut::Head {
                watch.cut(reason);
                return;
            }
        }
        watch.enter(Phase::Leaving);
        tokio::select! {
            biased;
            _ = watch.overdue(&self.limits) => {}
            () = farewell::leave(&mut stream, cut.is_some()) => {}
        }
    }

    async fn respond<A, F>(
        &self,
        request: hyper::Request<Incoming>,
        watch: &Arc<Watch>,
        answer: A,
    ) -> hyper::Response<Outgoing>
    where
        A: Fn(Request) -> F,
        F: Future<Output = Response>,
    {
        watch.enter(Phase::Answering);
        let settings = self.settings().await;
        let mut response = match timeout(
            self.limits.answer_timeout,
            self.refusal(settings.as_ref(), request.headers(), watch),
        )
        .await
        {
            Ok(None) => self.allowed(request, watch, answer).await,
            Ok(Some(response)) => last(response),
            Err(_) => last(Response::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many passwords to check; try again",
            )),
        };
        if let Some(settings) = settings {
            settings.decorate(&mut response.headers);
        }
        let mut built = hyper::Response::new(Outgoing::new(response.body, Arc::clone(watch)));
        *built.status_mut() = response.status;
        *built.headers_mut() = response.headers;
        built
    }

    /// Returns what to say to somebody who may not ask.
    async fn refusal(
        &self,
        settings: Option<&Arc<Settings>>,
        headers: &HeaderMap,
        watch: &Watch,
    ) -> Option<Response> {
        if let Some(response) = settings?.limit() {
            return Some(response);
        }
        let settings = settings.filter(|settings| !settings.is_known(headers))?;
        watch.enter(Phase::Waiting);
        let _turn = self.checks.turn(watch.peer()).await;
        watch.enter(Phase::Answering);
        settings.refuse(headers).await
    }

    /// Reads and answers the request of somebody who may ask.
    async fn allowed<A, F>(&self, request: hyper::Request<Incoming>, watch: &Watch, answer: A) -> Response
    where
        A: Fn(Request) -> F,
        F: Future<Output = Response>,
    {
        watch.enter(Phase::Body);
        let read = body::read(request, &self.limits).await;
        watch.enter(Phase::Answering);
        match read {
            Ok(request) => {
                match timeout(self.limits.answer_timeout, self.answer(request, watch, answer)).await {
                    Ok(response) => response,
                    Err(_) => Response::text(StatusCode::SERVICE_UNAVAILABLE, "the answer took too long"),
                }
            }
            Err(response) => last(response),
        }
    }

    /// Makes an answer, and finds the memory for it.
    async fn answer<A, F>(&self, request: Request, watch: &Watch, answer: A) -> Response
    where
        A: Fn(Request) -> F,
        F: Future<Output = Response>,
    {
        watch.enter(Phase::Waiting);
        // Kept until there is memory: so those that wait for it are few.
        let _turn = self.answers.turn(watch.peer()).await;
        watch.enter(Phase::Answering);
        let response = answer(request).await;
        if self.places.hold(watch, Held::of(&response.body), || self.answers.are_wanted()).await {
            return response;
        }
        Response::text(StatusCode::SERVICE_UNAVAILABLE, "too many answers that nobody takes; try again")
    }
}

/// Makes an answer the last one: where the next request would begin is not known.
fn last(mut response: Response) -> Response {
    response.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
