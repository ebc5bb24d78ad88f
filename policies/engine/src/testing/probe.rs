//! Looks into a test: which documents it puts in place with `with`, and which of its statements is not true.
//!
//! Both are found by asking the interpreter for a rule made of the test's own statements up to the one of interest.

use regorus::unstable::{BoolOp, Expr, Literal, LiteralStmt, Module, Query, Rule, Span, WithModifier};
use regorus::{Engine, Value};

use super::TestOutcome;

/// The text of a span, up to the bracket that closes it: the parser's spans of objects and sets end before theirs.
fn whole(span: &Span) -> String {
    let mut open: usize = 0;
    let (mut quoted, mut escaped) = (false, false);
    let length = span.text().len();
    let start = usize::try_from(span.start).unwrap_or(usize::MAX);
    let source = span.source.contents().get(start..).unwrap_or_default();
    for (at, character) in source.char_indices() {
        if at >= length && open == 0 && !quoted {
            return source.get(..at).unwrap_or_default().to_owned();
        }
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => open = open.saturating_add(1),
            ')' | ']' | '}' if !quoted => open = open.saturating_sub(1),
            _ => {}
        }
    }
    source.to_owned()
}

/// A statement as text, with its modifiers.
fn text(statement: &LiteralStmt) -> String {
    let mut text = whole(&statement.span);
    // A span of a statement may end before its modifiers.
    for with in &statement.with_mods {
        let words = modifier(with);
        if !text.contains(&words) {
            text = format!("{text} {words}");
        }
    }
    text
}

fn modifier(with: &WithModifier) -> String {
    format!("with {} as {}", with.refr.span().text(), whole(with.r#as.span()))
}

fn bodies(rule: &Rule) -> Vec<&Query> {
    match rule {
        Rule::Spec { bodies, .. } => bodies.iter().map(|body| &*body.query).collect(),
        Rule::Default { .. } => Vec::new(),
    }
}

/// Asks for a rule that the test's module could have had.
fn ask(engine: &Engine, module: &Module, rule: &str) -> Option<Value> {
    let mut engine = engine.clone();
    let mut text = format!("package {}\n", module.package.refr.span().text());
    for import in &module.imports {
        text.push_str("import ");
        text.push_str(import.refr.span().text());
        if let Some(alias) = &import.r#as {
            text.push_str(" as ");
            text.push_str(alias.text());
        }
        text.push('\n');
    }
    text.push_str(rule);
    text.push('\n');
    engine.add_policy("probe.rego".into(), text).ok()?;
    engine.eval_rule(format!("data.{}.probe__", module.package.refr.span().text())).ok()
}

/// Every `input` and data that a test puts in place, as JSON texts `{"input": ..., "data": {"path": ...}}`.
pub(super) fn situations(engine: &Engine, module: &Module, rule: &Rule) -> Vec<String> {
    let mut found = Vec::new();
    for query in bodies(rule) {
        walk(engine, module, query, &mut Vec::new(), &mut found);
    }
    found
}

fn walk(engine: &Engine, module: &Module, query: &Query, before: &mut Vec<String>, found: &mut Vec<String>) {
    let start = before.len();
    for statement in &query.stmts {
        if !statement.with_mods.is_empty() {
            let mut data = Vec::new();
            let mut input = String::new();
            for with in &statement.with_mods {
                let (target, value) = (with.refr.span().text(), whole(with.r#as.span()));
                match target.strip_prefix("data.") {
                    Some(path) => data.push(format!("{path:?}: {value}")),
                    None if target == "input" => format!("\"input\": {value}, ").clone_into(&mut input),
                    None => {}
                }
            }
            let head = format!("probe__ contains {{{input}\"data\": {{{}}}}} if {{\n", data.join(", "));
            let body = before.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
            if let Some(Value::Set(values)) = ask(engine, module, &format!("{head}true\n{body}\n}}")) {
                found.extend(values.iter().filter_map(|value| value.to_json_str().ok()));
            }
        }
        if let Literal::Every { key, value, domain, query, .. } = &statement.literal {
            let key = key.as_ref().map_or_else(String::new, |key| format!("{}, ", key.text()));
            before.push(format!("some {key}{} in {}", value.text(), whole(domain.span())));
            walk(engine, module, query, before, found);
            before.pop();
        }
        before.push(text(statement));
    }
    before.truncate(start);
}

/// The first statement that is not true; for a comparison, both sides.
pub(super) fn failure(engine: &Engine, module: &Module, rule: &Rule) -> TestOutcome {
    for query in bodies(rule) {
        let mut before: Vec<String> = vec!["true".into()];
        for statement in &query.stmts {
            let own = text(statement);
            let holds = ask(engine, module, &format!("probe__ if {{\n{}\n{own}\n}}", before.join("\n")));
            if holds == Some(Value::from(true)) {
                before.push(own);
                continue;
            }
            let mut diff = Vec::new();
            if let Literal::Expr { expr, .. } = &statement.literal
                && let Expr::BoolExpr { op: BoolOp::Eq, lhs, .. } = &**expr
            {
                let with = statement.with_mods.iter().map(modifier).collect::<Vec<_>>().join(" ");
                let side = |side: &str| {
                    // A constant's value does not depend on what `with` puts in place, and the interpreter takes none with it.
                    let value = [with.as_str(), ""].iter().find_map(|with| {
                        let body = format!("{}\nvalue := {} {with}", before.join("\n"), side);
                        let value = ask(engine, module, &format!("probe__ := value if {{\n{body}\n}}"))?;
                        (value != Value::Undefined).then(|| value.to_json_str().ok())?
                    });
                    value.unwrap_or_else(|| "undefined".to_owned())
                };
                diff = difference(&side(&whole(lhs.span())), &side(right(&own, &whole(lhs.span()))));
            }
            return TestOutcome::Fail { line: statement.span.line, statement: own, diff };
        }
    }
    TestOutcome::Fail { line: 0, statement: String::new(), diff: Vec::new() }
}

/// The right side of a comparison: what follows the operator, up to the first modifier outside of brackets. (The parser's span of an object may
/// begin within it.)
fn right<'a>(statement: &'a str, left: &str) -> &'a str {
    let rest = statement.strip_prefix(left).unwrap_or(statement).trim_start().trim_start_matches("==").trim_start();
    let mut open: usize = 0;
    for (at, character) in rest.char_indices() {
        match character {
            '(' | '[' | '{' => open = open.saturating_add(1),
            ')' | ']' | '}' => open = open.saturating_sub(1),
            ' ' if open == 0 && rest.get(at..).is_some_and(|rest| rest.starts_with(" with ")) => {
                return rest.get(..at).unwrap_or(rest);
            }
            _ => {}
        }
    }
    rest
}

/// Two JSON texts as lines: `  ` both, `- ` only left, `+ ` only right.
fn difference(left: &str, right: &str) -> Vec<String> {
    let lines = |text: &str| -> Vec<String> {
        let value: Result<serde_json::Value, _> = serde_json::from_str(text);
        let pretty = value.ok().and_then(|value| serde_json::to_string_pretty(&value).ok());
        pretty.unwrap_or_else(|| text.to_owned()).lines().map(str::to_owned).collect()
    };
    let (left, right) = (lines(left), lines(right));
    let same = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let tail = |list: &[String], skip: usize| list.get(skip..).unwrap_or_default().to_vec();
    let (left_rest, right_rest) = (tail(&left, same), tail(&right, same));
    let end = left_rest.iter().rev().zip(right_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let cut = |list: &[String]| list.iter().take(list.len().saturating_sub(end)).cloned().collect::<Vec<_>>();
    let mut out: Vec<String> = left.iter().take(same).map(|line| format!("  {line}")).collect();
    out.extend(cut(&left_rest).iter().map(|line| format!("- {line}")));
    out.extend(cut(&right_rest).iter().map(|line| format!("+ {line}")));
    out.extend(left_rest.iter().skip(left_rest.len().saturating_sub(end)).map(|line| format!("  {line}")));
    out
}
