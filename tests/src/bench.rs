//! `make bench`: every speed that the project promises, measured against a floor or peer of the same run.
//!
//! A topic is one file below `bench/`: it names its rows and measures them. A new topic is a new file and its line in [`TOPICS`].

mod apptainer;
mod broker;
mod facts;
mod hashes;
mod idle;
mod ima;
mod log;
mod measure;
mod monitor;
mod plain;
mod policy;
mod protect;
mod quote;
mod reads;
mod report;
mod start;
mod unseal;
mod verifier;
mod xts;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::process::{Service, Tools};
use crate::site::Site;
pub use policy::load_policies;
use report::Row;

/// What the benches are told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the programs, built with optimisation.
    pub bin_dir: PathBuf,
    /// Folder for `summary.json` and what is made on the way.
    pub out: PathBuf,
    /// Rows to measure; all when empty.
    pub only: Vec<String>,
    /// Print JSON in place of the table.
    pub json: bool,
}

/// Rows that are measured together.
struct Topic {
    rows: &'static [&'static str],
    measure: fn(&mut Bench) -> anyhow::Result<Vec<Row>>,
}

const TOPICS: &[Topic] = &[
    quote::TOPIC,
    log::TOPIC,
    facts::TOPIC,
    ima::TOPIC,
    idle::TOPIC,
    xts::TOPIC,
    protect::TOPIC,
    unseal::TOPIC,
    start::TOPIC,
    apptainer::TOPIC,
    reads::TOPIC,
    monitor::TOPIC,
    verifier::TOPIC,
    policy::TOPIC,
];

/// What topics share; each part is made when a topic first asks for it.
struct Bench {
    options: Options,
    site: Option<Live>,
    unseal: Option<unseal::Measured>,
}

impl Bench {
    /// The programs under test.
    fn tools(&self) -> anyhow::Result<Tools> {
        Tools::new(&self.options.bin_dir)
    }

    /// A host with a TPM, enrolled, and an image registered with a running verifier.
    fn site(&mut self) -> anyhow::Result<&Site> {
        let live = match self.site.take() {
            Some(live) => live,
            None => Live::start(&self.options)?,
        };
        Ok(&self.site.insert(live).site)
    }

    /// An empty folder for one topic.
    fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.options.out.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder.canonicalize()?)
    }
}

/// A site whose TPM and verifier run; both end when it is dropped.
struct Live {
    site: Site,
    service: Option<Service>,
}

impl Live {
    fn start(options: &Options) -> anyhow::Result<Self> {
        let site = Site::new(&options.bin_dir, &options.out.join("site"), |_, _| Ok(()))?;
        let mut live = Self { site, service: None };
        live.site.make_host()?;
        live.site.make_verifier()?;
        live.service = Some(live.site.serve()?.0);
        live.site.enrol()?;
        live.site.make_owner()?;
        live.site.protect()?;
        live.site.register()?;
        Ok(live)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        drop(self.service.take());
        let _ = self.site.destroy_host();
    }
}

/// Measures, prints the table, and writes `summary.json`. A missed goal is said, and is no error: the machine decides too.
///
/// # Errors
/// A measurement failed (the others are printed), or `--only` names no row.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let known: Vec<&str> = TOPICS.iter().flat_map(|topic| topic.rows).copied().collect();
    if let Some(unknown) = options.only.iter().find(|row| !known.contains(&row.as_str())) {
        bail!("no row {unknown:?}; there are: {}", known.join(", "));
    }
    let wanted = |row: &str| options.only.is_empty() || options.only.iter().any(|only| only == row);
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let mut bench = Bench { options: options.clone(), site: None, unseal: None };
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for topic in TOPICS.iter().filter(|topic| topic.rows.iter().any(|row| wanted(row))) {
        writeln!(anstream::stderr().lock(), "measuring {}", topic.rows.join(", "))?;
        // One topic that fails does not take the others' figures with it.
        match (topic.measure)(&mut bench) {
            Ok(measured) => rows.extend(measured.into_iter().filter(|row| wanted(&row.name))),
            Err(e) => {
                writeln!(anstream::stderr().lock(), "error: {}: {e:#}", topic.rows.join(", "))?;
                failed.push(topic.rows.join(", "));
            }
        }
    }
    drop(bench);
    report::write(&options.out.join("summary.json"), &rows)?;
    if options.json {
        report::json(&rows)?
    } else {
        report::table(&rows)?
    }
    if failed.is_empty() { Ok(()) } else { bail!("not measured: {}", failed.join("; ")) }
}
