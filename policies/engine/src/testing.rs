//! Runs the `_test.rego` files of a policy project.
//!
//! The virtual machine that decides knows no `with`. So the tests themselves run in the interpreter, as `opa test` would run them; and every
//! document that a test puts in place of `input` or of data is also given to the virtual machine, rule by rule: both must come to the same
//! value. Which lines the virtual machine went through on the way is the coverage.

mod cover;
mod probe;

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Module, Rule, RuleHead};
use regorus::{Engine, Value};
use serde::Serialize;
use serde_json::Map;

use crate::error::PolicyError;

/// How one test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum TestOutcome {
    /// It holds.
    Pass,
    /// It does not.
    Fail {
        /// Line of the statement that is not true; 0 if it cannot be told.
        line: u32,
        /// The statement.
        statement: String,
        /// For a comparison: both sides, as lines of a diff.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        diff: Vec<String>,
    },
    /// It cannot be evaluated.
    Error {
        /// The engine's words.
        why: String,
    },
}

/// One test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TestResult {
    /// File.
    pub file: String,
    /// Line of the rule.
    pub line: u32,
    /// `package.test_name`.
    pub name: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: TestOutcome,
}

/// Lines of one file that the tests went through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// File.
    pub file: String,
    /// Lines with code.
    pub lines: usize,
    /// Those of them that no test went through.
    pub missed: Vec<u32>,
}

/// What a run of all tests showed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TestReport {
    /// Every test, by file and line.
    pub tests: Vec<TestResult>,
    /// Every file with rules.
    pub coverage: Vec<Coverage>,
    /// Values that interpreter and virtual machine were both asked for.
    pub compared: usize,
    /// Where the two disagreed: a bug of an engine that must not decide.
    pub disagreements: Vec<String>,
}

impl TestReport {
    /// Whether something ran and all of it held.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.tests.is_empty()
            && self.disagreements.is_empty()
            && self.tests.iter().all(|test| test.outcome == TestOutcome::Pass)
    }

    /// Covered lines of all lines, in percent; 100 when there are none.
    #[must_use]
    pub fn percent(&self) -> usize {
        let lines: usize = self.coverage.iter().map(|file| file.lines).sum();
        let missed: usize = self.coverage.iter().map(|file| file.missed.len()).sum();
        lines.saturating_sub(missed).saturating_mul(100).checked_div(lines).unwrap_or(100)
    }
}

/// Runs every rule named `test_...` of the modules.
///
/// # Errors
/// The modules do not parse or compile.
pub fn run_tests(
    modules: &BTreeMap<String, String>,
    data: &Map<String, serde_json::Value>,
) -> Result<TestReport, PolicyError> {
    let failed = |e: &dyn std::fmt::Display| PolicyError::Compile(e.to_string());
    let mut engine = Engine::new();
    engine.set_strict_builtin_errors(true);
    for (path, text) in modules {
        engine.add_policy(path.clone(), text.clone()).map_err(|e| failed(&e))?;
    }
    engine.add_data(Value::from(serde_json::Value::Object(data.clone()))).map_err(|e| failed(&e))?;
    let parsed = engine.get_modules().clone();
    let mut report = TestReport::default();
    let mut situations: BTreeSet<(String, String)> = BTreeSet::new();
    for module in &parsed {
        for rule in &module.policy {
            let Some(name) = name(rule).filter(|name| name.starts_with("test_")) else { continue };
            let package = module.package.refr.span().text().to_owned();
            let span = rule.span();
            let outcome = outcome(&mut engine, module, rule, &format!("data.{package}.{name}"));
            report.tests.push(TestResult {
                file: span.source.get_path().clone(),
                line: span.line,
                name: format!("{package}.{name}"),
                outcome,
            });
            let found = probe::situations(&engine, module, rule);
            situations.extend(found.into_iter().map(|found| (package.clone(), found)));
        }
    }
    report.tests.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    cover::compare(&engine, &parsed, modules, data, &situations, &mut report)?;
    Ok(report)
}

/// What each rule of a policy came to, in the virtual machine: the trace of one decision. Rules that are undefined are left out.
///
/// # Errors
/// The policy does not compile.
pub fn rules(
    bundle: &crate::bundle::PolicyBundle,
    reference: &serde_json::Value,
    input: &serde_json::Value,
) -> Result<BTreeMap<String, serde_json::Value>, PolicyError> {
    cover::rules(bundle, reference, input, |_| true)
}

/// What one rule comes to, by its path `data.PACKAGE.NAME`; none for a rule that is not there or undefined.
///
/// # Errors
/// As [`rules`].
pub fn rule(
    bundle: &crate::bundle::PolicyBundle,
    reference: &serde_json::Value,
    input: &serde_json::Value,
    path: &str,
) -> Result<Option<serde_json::Value>, PolicyError> {
    Ok(cover::rules(bundle, reference, input, |rule| rule == path)?.remove(path))
}

fn outcome(engine: &mut Engine, module: &Module, rule: &Rule, path: &str) -> TestOutcome {
    match engine.eval_rule(path.to_owned()) {
        Ok(value) if value == Value::from(true) => TestOutcome::Pass,
        Ok(_) => probe::failure(engine, module, rule),
        Err(e) => TestOutcome::Error { why: e.to_string() },
    }
}

/// The name of a rule, where it is a plain one.
fn name(rule: &Rule) -> Option<String> {
    let text = match rule {
        Rule::Spec { head: RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. }, .. } => refr.span().text(),
        Rule::Spec { head: RuleHead::Func { .. }, .. } => return None,
        Rule::Default { refr, args, .. } if args.is_empty() => refr.span().text(),
        Rule::Default { .. } => return None,
    };
    text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| text.to_owned())
}
