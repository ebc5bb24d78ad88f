//! HTTPS: routes, limits, graceful stop.

mod body;
mod events;
mod rate;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Extension, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use countersign_wire::cbor::{self, Message};
use countersign_wire::challenge::ChallengeRequest;
use countersign_wire::enrol::{EnrolProof, EnrolRequest};
use countersign_wire::id::{HostId, VerdictId};
use countersign_wire::limits;
use countersign_wire::statement::Purpose;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::admin;
use crate::error::Error;
use crate::service::Service;
use body::Budget;
use events::Hub;
use rate::Rates;

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest request, from its first byte to its answer: a client that trickles holds a connection no longer.
const REQUEST: Duration = Duration::from_secs(120);
/// Evidence decompressed and appraised at a time: with its logs each may take a few hundred megabytes, and it comes from anybody.
const EVIDENCE_AT_ONCE: usize = 8;
/// Connections at a time, those of event streams not counted.
const CONNECTIONS: usize = 1024;
/// How long running requests may take after the signal to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
struct Peer {
    address: IpAddr,
    /// From a client certificate by our CA.
    host: Option<HostId>,
}

impl Peer {
    fn authenticated(self) -> Result<HostId, Error> {
        self.host
            .ok_or_else(|| Error::request("unauthorized", "a host's TLS certificate is needed", Some("attest now")))
    }
}

#[derive(Debug, Clone)]
struct Shared {
    service: Service,
    rates: Arc<Rates>,
    operator: Arc<[u8; 32]>,
    appraisals: Arc<Semaphore>,
    budget: Budget,
    hub: Hub,
    stopped: watch::Receiver<bool>,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, problem) = self.problem();
        if status >= 500 {
            tracing::error!(error = %self, "request failed");
        }
        let mut response =
            (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
        if let Self::Busy(seconds) = self {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
        }
        response
    }
}

/// A message as response body.
fn message(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/cbor")], Body::from(bytes)).into_response()
}

fn decode<T: Message>(body: &[u8]) -> Result<T, Error> {
    cbor::decode(body).map_err(|e| Error::request("malformed", e.to_string(), None))
}

fn router(shared: Shared) -> Router {
    let small = DefaultBodyLimit::max(limits::MESSAGE.saturating_mul(4));
    Router::new()
        .route("/v1/attest", post(attest))
        .route("/v1/release", post(release))
        .route("/v1/admin", post(operate))
        .route("/v1/trust", get(trust))
        .route("/v1/trust/since/{digest}", get(trust_since))
        .route("/v1/enrol", post(enrol).layer(small))
        .route("/v1/enrol/proof", post(enrol_proof).layer(small))
        .route("/v1/challenge", post(challenge).layer(small))
        .route("/v1/host/verdicts/{id}/bundle", get(bundle))
        .route("/v1/events", get(follow))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(shared)
        .layer(middleware::from_fn(in_time))
}

async fn in_time(request: Request, next: Next) -> Result<Response, Error> {
    let late = |_| Error::request("timeout", format!("the request took more than {} s", REQUEST.as_secs()), None);
    tokio::time::timeout(REQUEST, next.run(request)).await.map_err(late)
}

async fn ready(State(shared): State<Shared>) -> Result<&'static str, Error> {
    shared.service.store.now_ms().await.map(|_| "ok")
}

async fn trust(State(shared): State<Shared>) -> Response {
    message(shared.service.keys.trust.clone())
}

async fn trust_since(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
) -> Result<Response, Error> {
    shared.rates.address(peer.address)?;
    let mut from = [0; 32];
    hex::decode_to_slice(&digest, &mut from).map_err(|_| Error::request("malformed", "not 64 hex digits", None))?;
    let service = &shared.service;
    let chain = crate::keys::chain(&service.dir, &service.keys.trust, &from)?;
    let chain = chain.ok_or_else(|| Error::request("not-found", "this verifier never had that trust bundle", None))?;
    Ok(message(cbor::encode(&chain)))
}

async fn enrol(State(shared): State<Shared>, Extension(peer): Extension<Peer>, body: Bytes) -> Result<Response, Error> {
    shared.rates.address(peer.address)?;
    let request: EnrolRequest = decode(&body)?;
    Ok(message(cbor::encode(&shared.service.enrol(&request).await?)))
}

async fn enrol_proof(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Response, Error> {
    shared.rates.address(peer.address)?;
    let proof: EnrolProof = decode(&body)?;
    Ok(message(cbor::encode(&shared.service.enrol_proof(&proof).await?)))
}

async fn challenge(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Response, Error> {
    let request: ChallengeRequest = decode(&body)?;
    // A host that is known has its own allowance; strangers share that of their address.
    if shared.service.store.host(&request.host).await?.is_some() {
        shared.rates.host(request.host)?;
    } else {
        shared.rates.address(peer.address)?;
    }
    Ok(message(cbor::encode(&shared.service.challenge(&request).await?)))
}

async fn attest(State(shared): State<Shared>, request: Request) -> Result<Response, Error> {
    answer(&shared, request, Purpose::Attest).await
}

async fn release(State(shared): State<Shared>, request: Request) -> Result<Response, Error> {
    answer(&shared, request, Purpose::Release).await
}

async fn answer(shared: &Shared, request: Request, purpose: Purpose) -> Result<Response, Error> {
    let (head, body) = request.into_parts();
    let body = shared.budget.read(body, limits::EVIDENCE).await?;
    let _turn = shared.appraisals.acquire().await.map_err(|e| Error::Internal(e.to_string()))?;
    Ok(message(shared.service.answer(uncompressed(&head.headers, &body.bytes)?, purpose).await?))
}

/// A zstd body, decompressed up to the limit on evidence.
fn uncompressed(headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>, Error> {
    use std::io::Read as _;
    match headers.get(header::CONTENT_ENCODING).map(header::HeaderValue::as_bytes) {
        None => Ok(body.to_vec()),
        Some(b"zstd") => {
            let malformed = |e: std::io::Error| Error::request("malformed", format!("zstd: {e}"), None);
            let mut decoder = zstd::stream::read::Decoder::new(body).map_err(malformed)?;
            decoder.window_log_max(27).map_err(malformed)?;
            let mut out = Vec::new();
            let limit = u64::try_from(limits::EVIDENCE).unwrap_or(u64::MAX);
            decoder.take(limit.saturating_add(1)).read_to_end(&mut out).map_err(malformed)?;
            if out.len() > limits::EVIDENCE {
                return Err(Error::request("too-large", format!("evidence over {} bytes", limits::EVIDENCE), None));
            }
            Ok(out)
        }
        Some(_) => Err(Error::request("malformed", "content-encoding is neither absent nor zstd", None)),
    }
}

async fn bundle(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Result<Response, Error> {
    let host = peer.authenticated()?;
    shared.rates.host(host)?;
    let id: VerdictId = id.parse().map_err(|_| Error::request("malformed", "not a verdict id", None))?;
    // Evidence is as long here as where it came in.
    let _turn = shared.appraisals.acquire().await.map_err(|e| Error::Internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], shared.service.bundle(&id, Some(&host)).await?)
        .into_response())
}

async fn follow(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let host = peer.authenticated()?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    shared.hub.open(&shared.service, host, last, shared.stopped.clone()).await
}

async fn operate(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<serde_json::Value>, Error> {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let hash: [u8; 32] = Sha256::digest(given.unwrap_or_default().trim()).into();
    if given.is_none() || !bool::from(hash.ct_eq(shared.operator.as_slice())) {
        shared.rates.address(peer.address)?;
        return Err(Error::request(
            "unauthorized",
            "an operator's token is needed",
            Some("--token-file STATE/operator.token"),
        ));
    }
    // Not a byte of it is read before it is known who asks.
    let body = shared.budget.read(request.into_body(), limits::REFERENCE_SET / 2).await?;
    let request: admin::Request =
        serde_json::from_slice(&body.bytes).map_err(|e| Error::request("malformed", e.to_string(), None))?;
    let answer = admin::perform(&shared.service, request, "operator token").await.map(Json);
    shared.hub.news();
    answer
}

/// Serves until SIGTERM or SIGINT, and then returns nothing; or until SIGHUP, and then returns the service to go on with: its configuration and
/// keys were read anew. One that cannot be read is logged, and the present one goes on. `announce` is told the address once connections are accepted.
///
/// # Errors
/// The address cannot be listened on, or a key cannot be read.
pub async fn serve(service: Service, announce: impl FnOnce(&str)) -> Result<Option<Service>, Error> {
    service.try_own_policy().await?;
    let (host, port) = split(&service.config.url)?;
    let listen = service.config.listen.clone().unwrap_or_else(|| format!("{host}:{port}"));
    let state = |reason: String| Error::State { path: listen.clone(), reason };
    raise_descriptors();
    let listener = TcpListener::bind(&listen).await.map_err(|e| state(e.to_string()))?;
    let bound = listener.local_addr().map_err(|e| state(e.to_string()))?.port();
    let url = if port == 0 { format!("https://{host}:{bound}") } else { service.config.url.clone() };
    std::fs::write(service.dir.join("url"), format!("{url}\n")).map_err(|e| state(e.to_string()))?;
    let token = crate::keys::read_secret(&service.dir.join("operator.token"))?;
    let token = String::from_utf8_lossy(&token).trim().to_owned();
    let now = service.store.now_ms().await?;
    let tls = TlsAcceptor::from(Arc::new(crate::tls::server_config(&service.keys, &host, now)?));
    let operator = Arc::new(<[u8; 32]>::from(Sha256::digest(token)));
    let appraisals = Arc::new(Semaphore::new(EVIDENCE_AT_ONCE));
    let (stop, stopped) = watch::channel(false);
    let hub = Hub::default();
    tokio::spawn(hub.clone().run(service.clone(), stopped.clone()));
    // Ends with this function.
    let mut beside = tokio::task::JoinSet::new();
    if let Some(config) = service.config.bundle.clone() {
        beside.spawn(crate::policy::poll::run(service.clone(), config));
    }
    if let Some(config) = service.config.log.clone() {
        beside.spawn(crate::policy::report::run(service.clone(), config));
    }
    let housekeeping = tokio::spawn(crate::service::retention::keep_house(service.clone()));
    let rates = Arc::default();
    let budget = Budget::default();
    let present = service.clone();
    let router = router(Shared { service, rates, operator, appraisals, budget, hub, stopped: stopped.clone() });
    // Before anybody is told to send any.
    let mut signals = Signals::new()?;
    announce(&url);
    let connections = Arc::new(Semaphore::new(CONNECTIONS.saturating_add(events::STREAMS)));
    let next = loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!(error = %e, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            again = signals.received() => {
                if !again {
                    break None;
                }
                match read_anew(&present).await {
                    Ok(next) => break Some(next),
                    Err(e) => {
                        tracing::error!(error = %e, "SIGHUP: the service goes on as it was");
                        continue;
                    }
                }
            }
        };
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { break None };
        let (tls, router, stopped) = (tls.clone(), router.clone(), stopped.clone());
        tokio::spawn(async move {
            if let Err(e) = connection(tls, router, stream, address, stopped).await {
                tracing::debug!(error = %e, peer = %address, "connection");
            }
            drop(permit);
        });
    };
    drop(listener);
    housekeeping.abort();
    let _ = stop.send(true);
    let all = connections.acquire_many(u32::try_from(CONNECTIONS.saturating_add(events::STREAMS)).unwrap_or(u32::MAX));
    let _ = tokio::time::timeout(GRACE, all).await;
    Ok(next)
}

/// The service of the same state folder, as it would start now.
async fn read_anew(present: &Service) -> Result<Service, Error> {
    let next = Service::open(&present.dir).await?.tried_in(present.trial.clone());
    next.try_own_policy().await?;
    Ok(next)
}

/// As many descriptors as this process may have: each stream of events holds one.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Failing leaves fewer connections, and each that is refused says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

async fn connection(
    tls: TlsAcceptor,
    router: Router,
    stream: tokio::net::TcpStream,
    address: SocketAddr,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer { address: address.ip(), host: certificate.and_then(|der| crate::tls::host_of(der)) };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => done?,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await?;
        }
    }
    Ok(())
}

/// Host and port of `https://host:port`.
fn split(url: &str) -> Result<(String, u16), Error> {
    let bad = || Error::State { path: url.to_owned(), reason: "is not https://HOST:PORT".into() };
    let rest = url.strip_prefix("https://").ok_or_else(bad)?.trim_end_matches('/');
    match rest.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => Ok((host.to_owned(), port.parse().map_err(|_| bad())?)),
        _ => Ok((rest.to_owned(), 443)),
    }
}

struct Signals {
    term: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |e: std::io::Error| Error::Internal(e.to_string());
        Ok(Self {
            term: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            hangup: signal(SignalKind::hangup()).map_err(failed)?,
        })
    }

    /// Waits for one: whether everything is to be read anew, rather than to end.
    async fn received(&mut self) -> bool {
        tokio::select! {
            _ = self.term.recv() => false,
            _ = self.interrupt.recv() => false,
            _ = self.hangup.recv() => true,
        }
    }
}
