//! Traps of Rego that turn a no into a yes, found in the text (`verifier policy lint`).
//!
//! | id | what | why |
//! |---|---|---|
//! | `not-unbound` | `not` over a call or comparison of `input` or `data` that was not bound before | engines differ: where the reference is undefined, the `not` is true in one and undefined in the other |
//! | `count-zero` | `count(x) == 0` of a set that rules with `input` fill | a rule that fails to evaluate adds nothing, so a missing field empties the set |
//! | `allow-unconditional` | a verdict whose `allow` is the constant `true` | nothing has to be proved |
//! | `allow-unchecked` | a rule `allow` that compares nothing with a set of required checks, or `default allow := true` | one missing rule would be a yes |
//! | `builtin` | a builtin that is not among those that both engines share | it is refused when the policy is loaded |
//! | `head` | a rule's head that is no name and no `name[key] := value` | the embedded engine takes it for something else; it is refused when the policy is loaded |
//! | `no-metadata` | a rule `passed` or `verdict` without `# METADATA` above it | users see its name and need its meaning |

use std::collections::{BTreeMap, BTreeSet};

use regorus::Engine;
use regorus::unstable::{BoolOp, Expr, Literal, Module, Query, Rule, RuleHead};
use serde::Serialize;

use crate::error::PolicyError;
use crate::{heads, limits};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It can grant what was not proved, or is refused when loaded.
    Error,
    /// It makes the policy harder to trust.
    Warning,
}

/// One trap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Stable id.
    pub id: &'static str,
    /// How bad.
    pub severity: Severity,
    /// One sentence.
    pub message: String,
    /// What to write instead.
    pub hint: &'static str,
}

/// Looks for traps in every module but tests.
///
/// # Errors
/// A module does not parse.
pub fn lint(modules: &BTreeMap<String, String>) -> Result<Vec<Finding>, PolicyError> {
    let mut engine = Engine::new();
    for (path, text) in modules.iter().filter(|(path, _)| !path.ends_with("_test.rego")) {
        engine.add_policy(path.clone(), text.clone()).map_err(|e| PolicyError::Compile(e.to_string()))?;
    }
    let parsed = engine.get_modules().clone();
    let mut filled: BTreeSet<String> = BTreeSet::new();
    for module in &parsed {
        for rule in &module.policy {
            if let Rule::Spec { head: RuleHead::Set { refr, .. }, span, .. } = &**rule
                && span.text().contains("input")
            {
                filled.insert(refr.span().text().to_owned());
            }
        }
    }
    let mut findings = BTreeSet::new();
    for module in &parsed {
        let text = modules.get(module.package.span.source.get_path()).map_or("", String::as_str);
        let lines: Vec<&str> = text.lines().collect();
        for rule in &module.policy {
            let mut visit = Visit { module, rule, filled: &filled, findings: &mut findings };
            visit.rule(&lines);
        }
    }
    Ok(findings.into_iter().collect())
}

struct Visit<'a> {
    module: &'a Module,
    rule: &'a Rule,
    filled: &'a BTreeSet<String>,
    findings: &'a mut BTreeSet<Finding>,
}

impl Visit<'_> {
    fn add(&mut self, line: u32, id: &'static str, severity: Severity, message: String, hint: &'static str) {
        let file = self.module.package.span.source.get_path().clone();
        self.findings.insert(Finding { file, line, id, severity, message, hint });
    }

    fn rule(&mut self, lines: &[&str]) {
        if let Some((line, head)) = heads::misread(self.rule) {
            let message = format!("{head}: {}", heads::WHY);
            self.add(line, "head", Severity::Error, message, heads::HINT);
        }
        match self.rule {
            Rule::Default { span, refr, value, .. } => {
                let name = refr.span().text();
                if name == "allow" && value.span().text() == "true" {
                    self.add(
                        span.line,
                        "allow-unchecked",
                        Severity::Error,
                        "allow is true unless a rule says otherwise".into(),
                        "default allow := false",
                    );
                }
                if name == "verdict" {
                    self.verdict(value);
                    self.metadata(span.line, name, lines);
                }
            }
            Rule::Spec { head, bodies, span } => {
                let (name, value) = match head {
                    RuleHead::Compr { refr, assign, .. } | RuleHead::Func { refr, assign, .. } => {
                        (refr.span().text(), assign.as_ref().map(|assign| &assign.value))
                    }
                    RuleHead::Set { refr, key, .. } => (refr.span().text(), key.as_ref()),
                };
                if name == "verdict"
                    && let Some(value) = value
                {
                    self.verdict(value);
                }
                if name == "passed" && matches!(head, RuleHead::Set { .. }) {
                    self.metadata(span.line, name, lines);
                }
                if name == "allow" && !span.text().contains("required") {
                    self.add(
                        span.line,
                        "allow-unchecked",
                        Severity::Error,
                        "allow does not compare what was proved with what is required".into(),
                        "failed := required - passed, and allow only when failed is empty",
                    );
                }
                if let Some(value) = value {
                    self.expression(value);
                }
                for body in bodies {
                    self.query(&body.query, &mut BTreeSet::new());
                }
            }
        }
    }

    fn verdict(&mut self, value: &Expr) {
        let Expr::Object { fields, .. } = value else { return };
        for (_, key, value) in fields {
            if key.span().text().trim_matches('"') == "allow" && value.span().text() == "true" {
                self.add(
                    value.span().line,
                    "allow-unconditional",
                    Severity::Error,
                    "this verdict always allows".into(),
                    "\"allow\": count(failed) == 0, with failed := required - passed",
                );
            }
        }
    }

    /// `# METADATA` stands directly above the rule.
    fn metadata(&mut self, line: u32, name: &str, lines: &[&str]) {
        let above = usize::try_from(line).unwrap_or(0).saturating_sub(1);
        let block = lines.iter().take(above).rev().take_while(|text| text.starts_with('#'));
        if !block.clone().any(|text| *text == "# METADATA") {
            let message = format!("the rule {name} has no # METADATA above it");
            self.add(line, "no-metadata", Severity::Warning, message, "# METADATA, then # title: and # description:");
        }
    }

    fn query(&mut self, query: &Query, bound: &mut BTreeSet<String>) {
        for statement in &query.stmts {
            match &statement.literal {
                Literal::SomeVars { .. } => {}
                Literal::SomeIn { key, value, collection, .. } => {
                    bound.extend(key.iter().map(|key| key.span().text().to_owned()));
                    bound.insert(value.span().text().to_owned());
                    self.expression(collection);
                }
                Literal::Expr { expr, .. } => {
                    if let Expr::AssignExpr { lhs, .. } = &**expr {
                        bound.insert(lhs.span().text().to_owned());
                    }
                    self.expression(expr);
                }
                Literal::NotExpr { span, expr } => {
                    self.negation(span.line, expr);
                    self.expression(expr);
                }
                Literal::Every { key, value, domain, query, .. } => {
                    self.expression(domain);
                    let mut inner = bound.clone();
                    inner.extend(key.iter().map(|key| key.text().to_owned()));
                    inner.insert(value.text().to_owned());
                    self.query(query, &mut inner);
                }
            }
        }
    }

    /// A plain reference may be negated: undefined is then as good as false in every engine. Anything with a reference inside may not.
    fn negation(&mut self, line: u32, expr: &Expr) {
        let plain = matches!(expr, Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. });
        let text = expr.span().text();
        let mentions = ["input", "data."].iter().any(|root| {
            text.match_indices(root).any(|(at, _)| {
                let before = text.get(..at).and_then(|before| before.chars().next_back());
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.' || c == '"')
            })
        });
        if !plain && mentions {
            self.add(
                line,
                "not-unbound",
                Severity::Error,
                format!("not over an unbound reference: {text}"),
                "bind it first: value := input.x, then not f(value); or say what must be true instead",
            );
        }
    }

    fn expression(&mut self, expr: &Expr) {
        match expr {
            Expr::BoolExpr { op: BoolOp::Eq, lhs, rhs, span, .. } => {
                for (call, number) in [(lhs, rhs), (rhs, lhs)] {
                    if number.span().text() == "0"
                        && let Expr::Call { fcn, params, .. } = &**call
                        && fcn.span().text() == "count"
                        && let Some(name) = params.first().map(|param| param.span().text().to_owned())
                        && self.filled.contains(&name)
                    {
                        self.add(
                            span.line,
                            "count-zero",
                            Severity::Error,
                            format!("nothing in {name} is taken as a yes, but a missing field empties it"),
                            "collect what was proved: failed := required - passed; count(failed) == 0",
                        );
                    }
                }
                self.expression(lhs);
                self.expression(rhs);
            }
            Expr::BoolExpr { lhs, rhs, .. }
            | Expr::BinExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. }
            | Expr::AssignExpr { lhs, rhs, .. } => {
                self.expression(lhs);
                self.expression(rhs);
            }
            Expr::Call { fcn, params, span, .. } => {
                let name = fcn.span().text();
                let refused = ["http.", "time.", "net.", "rand.", "opa.", "crypto.", "io.jwt.", "numbers.range"];
                if refused.iter().any(|prefix| name.starts_with(prefix)) || matches!(name, "print" | "trace") {
                    self.add(
                        span.line,
                        "builtin",
                        Severity::Error,
                        format!("{name}: {}", limits::refusal(name)),
                        "decide on the input alone; the time is input.time_ms",
                    );
                }
                for param in params {
                    self.expression(param);
                }
            }
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                for item in items {
                    self.expression(item);
                }
            }
            Expr::Object { fields, .. } => {
                for (_, _, value) in fields {
                    self.expression(value);
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.expression(term);
                self.query(query, &mut BTreeSet::new());
            }
            Expr::ObjectCompr { value, query, .. } => {
                self.expression(value);
                self.query(query, &mut BTreeSet::new());
            }
            Expr::UnaryExpr { expr, .. } => self.expression(expr),
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. }
            | Expr::Var { .. }
            | Expr::RefDot { .. }
            | Expr::RefBrack { .. }
            | Expr::Membership { .. } => {}
        }
    }
}
