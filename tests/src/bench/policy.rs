//! Policies: the embedded verdict against a real OPA over REST on the same work, and what a loaded policy costs.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use countersign_policy::input::{Input, Reference, ReferenceValue};
use countersign_policy::{
    Compiled, PolicyBundle, Ready, ReferenceData, Role, bundle_files, decision, reference_document, shipped_host_policy,
};
use serde_json::{Value, json};

use super::measure::in_turn;
use super::report::{Goal, Row};
use super::{Bench, Topic};

pub(super) const TOPIC: Topic = Topic { rows: &["verdict-vs-opa", "policy-memory"], measure };

const ROUNDS: usize = 301;
/// Sizes of the realistic policy's parts, JSON bytes.
const INPUT: usize = 4_000;
const REFERENCE: usize = 250_000;
/// Policies that are loaded for their memory.
const POLICIES: u32 = 1_000;

const SETTINGS: &[u8] = include_bytes!("../../../policies/examples/hpc-node/countersign/settings/data.json");
const CASE: &[u8] = include_bytes!("../../../policies/examples/hpc-node/case/input.json");
const VALUES: &[u8] = include_bytes!("../../../policies/examples/hpc-node/case/reference.json");

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    match opa() {
        Ok(program) => rows.push(verdict(&program, &bench.folder("opa")?)?),
        Err(why) => writeln!(anstream::stderr().lock(), "verdict-vs-opa: skipped: {why}")?,
    }
    rows.push(memory()?);
    Ok(rows)
}

/// The program that scripts/opa.sh built, or why there is none.
fn opa() -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/opa.sh");
    let found = Command::new(&script).arg("path").output().map_err(|e| format!("{}: {e}", script.display()))?;
    let program = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    if program.is_empty() { Err("no OPA (scripts/opa.sh build makes one)".to_owned()) } else { Ok(program) }
}

/// A policy with everything that it decides with.
struct Work {
    bundle: Vec<u8>,
    input: Input,
    reference: Value,
    /// Checks that it requires.
    checks: usize,
}

/// The example of an HPC node, with an input and reference values of realistic sizes: a longer boot, and the boots of other kernels.
fn work() -> anyhow::Result<Work> {
    let mut files: BTreeMap<String, Vec<u8>> = bundle_files(shipped_host_policy())?;
    files.insert("countersign/settings/data.json".into(), SETTINGS.to_vec());
    files.remove(".manifest");
    let settings: Value = serde_json::from_slice(SETTINGS)?;
    // The settings' and the host policy's own base.
    let required = settings.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    let checks = required.saturating_add(7);
    let mut input: Value = serde_json::from_slice(CASE)?;
    let mut reference: Reference = serde_json::from_slice(VALUES)?;
    let name = reference.values.first().context("no values")?.name.clone();
    let value = |name: &str, number: u32| ReferenceValue {
        name: name.to_owned(),
        bank: "sha256".into(),
        pcr: 9,
        kind: "EV_IPL".into(),
        digest: format!("{number:064x}"),
        content: None,
    };
    for number in 0.. {
        if input.to_string().len() >= INPUT {
            break;
        }
        let event = json!({"index": 100_u32.saturating_add(number), "pcr": 9, "type": "EV_IPL",
            "digests": {"sha256": format!("{number:064x}")}, "authentic": true, "text": "/boot/grub/x86_64-efi/module.mod"});
        let events = input.pointer_mut("/boot/events").and_then(Value::as_array_mut);
        events.context("the case has no events")?.push(event);
        reference.values.push(value(&name, number));
    }
    for number in 1_000.. {
        if number % 50 == 0 && reference_document(&reference).to_string().len() >= REFERENCE {
            break;
        }
        reference.values.push(value(&format!("kernel-{}", number / 100), number));
    }
    reference.values.sort();
    let input = serde_json::from_value(input)?;
    Ok(Work { bundle: PolicyBundle::build(files)?, input, reference: reference_document(&reference), checks })
}

fn ready(work: &Work) -> anyhow::Result<Ready> {
    let policy = Compiled::new(&PolicyBundle::parse(&work.bundle)?, Role::Host)?;
    Ok(policy.ready(&ReferenceData::new(&work.reference)))
}

fn verdict(program: &str, dir: &Path) -> anyhow::Result<Row> {
    let work = work()?;
    let own = ready(&work)?;
    let mut server = Server::start(program, dir, &work)?;
    let body = json!({"input": work.input}).to_string();
    let theirs = server.decide(&body)?;
    let mine = own.decide(&work.input);
    ensure!(mine.allow && theirs.allow, "refused: {:?} {:?}", mine.reasons, theirs.reasons);
    ensure!(mine == theirs, "the engines differ");
    // Facts in, decision out. OPA is spared the making of its request.
    let medians = in_turn(
        ROUNDS,
        &mut [
            &mut || {
                ensure!(black_box(own.decide(black_box(&work.input))).allow, "refused");
                Ok(())
            },
            &mut || {
                ensure!(black_box(server.decide(&body)?).allow, "refused");
                Ok(())
            },
        ],
    )?;
    let [own, opa] = medians.as_slice() else { bail!("two medians") };
    let version = Command::new(program).arg("version").output()?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
    Ok(Row {
        name: "verdict-vs-opa".to_owned(),
        value: own.recip(),
        unit: "1/s",
        against: "OPA over REST".to_owned(),
        against_value: opa.recip(),
        goal: Goal::AtLeast(4.0),
        samples: ROUNDS,
        note: format!(
            "{} checks, {} bytes of reference data, {} bytes of input; one thread each, OPA ({version}) on a kept-alive Unix socket; embedded {:.0} us, OPA {:.0} us",
            work.checks,
            work.reference.to_string().len(),
            serde_json::to_string(&work.input)?.len(),
            own * 1e6,
            opa * 1e6
        ),
    })
}

/// An OPA with one thread, and one connection to it.
struct Server {
    child: Child,
    connection: BufReader<UnixStream>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(program: &str, dir: &Path, work: &Work) -> anyhow::Result<Self> {
        let (bundle, data, socket) = (dir.join("bundle.tar.gz"), dir.join("data.json"), dir.join("opa.sock"));
        fs::write(&bundle, &work.bundle)?;
        fs::write(&data, json!({"reference": work.reference}).to_string())?;
        let mut child = Command::new(program)
            .env("GOMAXPROCS", "1")
            .args(["run", "--server", "--disable-telemetry", "--log-level=error", "--addr"])
            .arg(format!("unix://{}", socket.display()))
            .arg(bundle_folder(dir, &work.bundle)?)
            .arg(format!("countersign:{}", data.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        let begun = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                return Ok(Self { child, connection: BufReader::new(stream) });
            }
            if let Some(status) = child.try_wait()? {
                bail!("OPA ended: {status}");
            }
            if begun.elapsed() > Duration::from_secs(60) {
                let _ = child.kill();
                bail!("OPA does not listen");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn decide(&mut self, body: &str) -> anyhow::Result<countersign_policy::verdict::Decision> {
        let request = format!(
            "POST /v1/data/countersign/host/verdict?strict-builtin-errors=true HTTP/1.1\r\nHost: opa\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.connection.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length, mut status) = (String::new(), 0, String::new());
        loop {
            line.clear();
            ensure!(self.connection.read_line(&mut line)? > 0, "OPA closed the connection");
            if status.is_empty() {
                line.trim_end().clone_into(&mut status);
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.connection.read_exact(&mut answer)?;
        ensure!(status.contains(" 200 "), "{status}");
        let mut answer: Value = serde_json::from_slice(&answer)?;
        let result = answer.get_mut("result").context("OPA's answer has no result")?;
        Ok(decision(result.take(), Role::Host.source()))
    }
}

/// The policy's files in a folder: a bundle would own all of `data.countersign`, the reference values' place too.
fn bundle_folder(dir: &Path, bundle: &[u8]) -> anyhow::Result<std::path::PathBuf> {
    let folder = dir.join("policy");
    for (path, bytes) in bundle_files(bundle)? {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        fs::write(path, bytes)?;
    }
    let _ = fs::remove_file(folder.join(".manifest"));
    Ok(folder)
}

/// Resident memory of this process, bytes.
fn resident() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib.saturating_mul(1024))
}

/// What the child prints: bytes before and behind loading.
///
/// # Errors
/// A policy does not compile.
pub fn load_policies(count: u32) -> anyhow::Result<()> {
    let work = work()?;
    let reference = ReferenceData::new(&work.reference);
    let files = bundle_files(&work.bundle)?;
    // No two with the same rules: each has a check of its own.
    let load = |number: u32| -> anyhow::Result<Ready> {
        let mut files = files.clone();
        files.remove(".manifest");
        let host = files.get_mut("countersign/host/host.rego").context("no host policy")?;
        let text = String::from_utf8(std::mem::take(host))?;
        let own = format!("passed := union({{\n\t{{\"own-{number}\" | input.version == {number}}},");
        let changed = text.replacen("passed := union({", &own, 1);
        ensure!(changed != text, "the host policy has no checks of its own any more");
        *host = changed.into_bytes();
        let bundle = PolicyBundle::parse(&PolicyBundle::build(files)?)?;
        Ok(Compiled::new(&bundle, Role::Host)?.ready(&reference))
    };
    // What is made once is there, and the allocator is warm.
    let mut loaded: Vec<Ready> = (0..20).map(load).collect::<Result<_, _>>()?;
    ensure!(loaded.iter().all(|policy| policy.decide(&work.input).allow), "refused");
    let before = resident()?;
    for number in 20..count.saturating_add(20) {
        loaded.push(load(number)?);
    }
    let behind = resident()?;
    ensure!(loaded.last().is_some_and(|policy| policy.decide(&work.input).allow), "refused");
    writeln!(anstream::stdout().lock(), "{before} {behind}")?;
    Ok(())
}

fn memory() -> anyhow::Result<Row> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--bin-dir", ".", "--out", ".", "--load-policies", &POLICIES.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [before, behind] = numbers.as_slice() else { bail!("the child printed {text:?}") };
    Ok(Row {
        name: "policy-memory".to_owned(),
        value: (behind - before) / f64::from(POLICIES) / 1000.0,
        unit: "kB",
        against: "50 kB for each policy".to_owned(),
        against_value: 50.0,
        goal: Goal::Below(1.0),
        samples: 1,
        note: format!(
            "resident memory of a process of its own for {POLICIES} policies of the whole library, no two with the same rules, beside the shared reference values"
        ),
    })
}
