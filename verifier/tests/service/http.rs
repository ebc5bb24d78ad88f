//! HTTPS: who may ask what, how much, and how often.

use std::io::Read as _;
use std::sync::mpsc;

use countersign_verifier::server;
use countersign_wire::cbor;
use countersign_wire::challenge::{Challenge, ChallengeRequest};
use countersign_wire::id::HostId;
use countersign_wire::limits;
use countersign_wire::statement::Purpose;
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

use crate::lab::{Lab, Machine};

/// A verifier that is served, and a client that trusts it.
pub(crate) struct Served {
    url: String,
    http: Client,
}

pub(crate) fn client(lab: &Lab) -> Client {
    let ca = std::fs::read(lab.path().join("ca.pem")).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(&ca).unwrap();
    Client::builder().tls_certs_only([ca]).https_only(true).no_proxy().build().unwrap()
}

impl Served {
    fn new(lab: &Lab) -> Self {
        let (ready, announced) = mpsc::channel();
        let service = lab.service.clone();
        lab.spawn(async move {
            server::serve(service, |url| ready.send(url.to_owned()).unwrap()).await.unwrap();
        });
        Self { url: announced.recv().unwrap(), http: client(lab) }
    }

    fn post(&self, path: &str, body: Vec<u8>) -> Response {
        self.http.post(format!("{}{path}", self.url)).body(body).send().unwrap()
    }

    fn admin(&self, token: Option<&str>, request: &Value) -> Response {
        let post = self.http.post(format!("{}/v1/admin", self.url)).body(request.to_string());
        match token {
            Some(token) => post.bearer_auth(token).send().unwrap(),
            None => post.send().unwrap(),
        }
    }

    fn challenge(&self, host: HostId) -> Response {
        let request = ChallengeRequest { version: 1, host, purpose: Purpose::Attest, workload: None };
        self.post("/v1/challenge", cbor::encode(&request))
    }
}

/// Status and problem id.
#[track_caller]
fn problem(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let body: Value = response.json().unwrap();
    (status, body["type"].as_str().unwrap().to_owned())
}

fn evidence(served: &Served, machine: &mut Machine) -> Vec<u8> {
    let challenge = served.challenge(machine.case.host()).bytes().unwrap();
    let challenge: Challenge = cbor::decode(&challenge).unwrap();
    machine.evidence(&challenge, None)
}

#[test]
fn the_operators_token() {
    let lab = Lab::new();
    let served = Served::new(&lab);
    let list = json!({"op": "host-list"});
    for token in [None, Some(""), Some("operato"), Some("operator2"), Some("OPERATOR")] {
        assert_eq!(problem(served.admin(token, &list)), (401, "unauthorized".into()), "{token:?}");
    }
    assert_eq!(served.admin(Some("operator"), &list).status(), 200);
    // What is asked is not even read from strangers.
    assert_eq!(problem(served.post("/v1/admin", b"{".to_vec())), (401, "unauthorized".into()));
    let nonsense = [json!({"op": "format-disk"}), json!({"op": "host-list", "extra": 1}), json!(1)];
    for request in nonsense {
        assert_eq!(problem(served.admin(Some("operator"), &request)), (400, "malformed".into()));
    }
}

#[test]
fn strangers_get_their_answer_before_their_body_is_read() {
    use std::io::{BufRead as _, BufReader, Write as _};
    let lab = Lab::new();
    let served = Served::new(&lab);
    let address = served.url.strip_prefix("https://").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(std::fs::read(lab.path().join("ca.der")).unwrap().into()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tls = rustls::ClientConnection::new(std::sync::Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
    let socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let mut stream = rustls::StreamOwned::new(tls, socket);
    // Announced, and never sent.
    stream.write_all(b"POST /v1/admin HTTP/1.1\r\nhost: v\r\ncontent-length: 1000000\r\n\r\n").unwrap();
    let mut status = String::new();
    BufReader::new(stream).read_line(&mut status).unwrap();
    assert_eq!(status.trim_end(), "HTTP/1.1 401 Unauthorized");
}

#[test]
fn evidence_goes_to_its_endpoint_compressed_or_not() {
    let (lab, mut machine) = Lab::enrolled();
    let served = Served::new(&lab);
    let bytes = evidence(&served, &mut machine);
    assert_eq!(problem(served.post("/v1/release", bytes.clone())), (400, "challenge-purpose".into()));
    let first = served.post("/v1/attest", bytes.clone());
    assert_eq!(first.status(), 200);
    let compressed = zstd::encode_all(bytes.as_slice(), 3).unwrap();
    let url = format!("{}/v1/attest", served.url);
    let again = served.http.post(&url).header("content-encoding", "zstd").body(compressed).send().unwrap();
    assert_eq!(again.bytes().unwrap(), first.bytes().unwrap(), "the same evidence, the stored answer");
    let gzip = served.http.post(&url).header("content-encoding", "gzip").body(bytes).send().unwrap();
    assert_eq!(problem(gzip), (400, "malformed".into()));
    assert_eq!(problem(served.post("/v1/attest", b"nonsense".to_vec())), (400, "malformed".into()));
}

#[test]
fn oversized_bodies() {
    let (lab, machine) = Lab::enrolled();
    let served = Served::new(&lab);
    for path in ["/v1/challenge", "/v1/enrol", "/v1/enrol/proof"] {
        assert_eq!(served.post(path, vec![0; limits::MESSAGE * 4 + 1]).status(), 413, "{path}");
    }
    // A small body that grows.
    let bomb = zstd::encode_all(std::io::repeat(0).take(limits::EVIDENCE as u64 + 1), 3).unwrap();
    assert!(bomb.len() < 100_000);
    let url = format!("{}/v1/attest", served.url);
    let response = served.http.post(url).header("content-encoding", "zstd").body(bomb).send().unwrap();
    assert_eq!(problem(response), (413, "too-large".into()));
    assert_eq!(served.challenge(machine.case.host()).status(), 200);
}

#[test]
fn rate_limits_with_retry_after() {
    let (lab, machine) = Lab::enrolled();
    let served = Served::new(&lab);
    // A host that is not known shares its address's allowance: 60 at once.
    let (began, mut admitted) = (std::time::Instant::now(), 0);
    let refused = (0..20_000u32)
        .inspect(|n| admitted = *n)
        .map(|n| served.challenge(HostId([(n % 251) as u8; 32])))
        .find(|response| response.status() == 429)
        .unwrap();
    // And ten a second, meanwhile.
    let most = 60 + 10 * (began.elapsed().as_secs() + 1);
    assert!((60..=most).contains(&admitted.into()), "{admitted}, {most} at most");
    let wait: u32 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=4).contains(&wait), "{wait}");
    assert_eq!(problem(refused).1, "busy");
    // A known host has its own, and so it has an end. (A request that is malformed costs as much as any other.)
    let host = machine.case.host();
    assert_eq!(served.challenge(host).status(), 200);
    let malformed = ChallengeRequest { version: 1, host, purpose: Purpose::Release, workload: None };
    let malformed = cbor::encode(&malformed);
    assert!((0..20_000).any(|_| served.post("/v1/challenge", malformed.clone()).status() == 429));
}

#[test]
fn a_bundle_is_for_its_host_alone() {
    let (lab, mut machine) = Lab::enrolled();
    let verdict = machine.attest(&lab).verdict_id;
    let served = Served::new(&lab);
    let url = format!("{}/v1/host/verdicts/{verdict}/bundle", served.url);
    assert_eq!(problem(served.http.get(&url).send().unwrap()), (401, "unauthorized".into()));
    let other = lab.vendor.machine();
    other.enrol(&lab, Some(&lab.token(None))).unwrap();
    assert_eq!(crate::lab::problem(lab.run(lab.service.bundle(&verdict, Some(&other.case.host())))), "not-found");
    assert!(lab.run(lab.service.bundle(&verdict, Some(&machine.case.host()))).is_ok());
}
