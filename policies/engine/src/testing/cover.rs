//! Interpreter against virtual machine on every situation of the tests; the machine's way through the lines is the coverage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::program::Program;
use regorus::rvm::vm::{ExecutionMode, ExecutionState, VmError};
use regorus::unstable::Module;
use regorus::{Engine, Value};
use serde_json::Map;

use super::{Coverage, TestReport, name};
use crate::bundle::PolicyBundle;
use crate::error::PolicyError;
use crate::inspect::Owners;

/// Steps of one evaluation that are followed.
const STEPS: usize = 200_000;

/// Asks both engines for every rule of the tested package, and for every verdict, in every situation (package of the test, documents).
pub(super) fn compare(
    engine: &Engine,
    parsed: &[regorus::unstable::Ref<Module>],
    modules: &BTreeMap<String, String>,
    data: &Map<String, serde_json::Value>,
    situations: &BTreeSet<(String, String)>,
    report: &mut TestReport,
) -> Result<(), PolicyError> {
    let failed = |e: &dyn std::fmt::Display| PolicyError::Compile(e.to_string());
    // The machine refuses `with`, so the tests stay out of its program.
    let mut base = Engine::new();
    base.set_strict_builtin_errors(true);
    for (path, text) in modules.iter().filter(|(path, _)| !path.ends_with("_test.rego")) {
        base.add_policy(path.clone(), text.clone()).map_err(|e| failed(&e))?;
    }
    let mut rules: BTreeMap<String, (String, Arc<Program>)> = BTreeMap::new();
    let mut lines = Lines::default();
    for module in parsed.iter().filter(|module| !module.package.refr.span().text().ends_with("_test")) {
        let package = module.package.refr.span().text();
        lines.files.insert(format!("data.{package}"), module.package.span.source.get_path().clone());
        for name in module.policy.iter().filter_map(|rule| name(rule)) {
            let path = format!("data.{package}.{name}");
            let policy = base.compile_with_entrypoint(&path.as_str().into()).map_err(|e| failed(&e))?;
            let program = Compiler::compile_from_policy(&policy, &[path.as_str()]).map_err(|e| failed(&e))?;
            lines.all(&program);
            rules.insert(path, (package.to_owned(), program));
        }
    }
    for (tested, situation) in situations {
        let Ok(situation) = serde_json::from_str::<serde_json::Value>(situation) else { continue };
        let input = situation.get("input").cloned().map_or(Value::Undefined, Value::from);
        let data = replaced(data, situation.get("data"));
        let mut engine = engine.clone();
        engine.clear_data();
        engine.add_data(data.clone()).map_err(|e| failed(&e))?;
        engine.set_input(input.clone());
        for (rule, (package, program)) in &rules {
            if tested.strip_suffix("_test") != Some(package) && !rule.ends_with(".verdict") {
                continue;
            }
            let by_machine = shown(ran(program, &data, &input));
            let by_interpreter = shown(engine.eval_rule(rule.clone()));
            report.compared = report.compared.saturating_add(1);
            if by_machine != by_interpreter {
                let cut = |text: &str| text.chars().take(300).collect::<String>();
                report.disagreements.push(format!(
                    "{rule}: virtual machine {}, interpreter {}, for {}",
                    cut(&by_machine),
                    cut(&by_interpreter),
                    cut(&input.to_json_str().unwrap_or_default())
                ));
            }
            step(program, &data, &input, &mut lines);
        }
    }
    report.coverage = lines.report(modules);
    Ok(())
}

/// Every rule's value for one input.
pub(super) fn rules(
    bundle: &PolicyBundle,
    reference: &serde_json::Value,
    input: &serde_json::Value,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, serde_json::Value>, PolicyError> {
    let failed = |e: &dyn std::fmt::Display| PolicyError::Compile(e.to_string());
    let mut engine = Engine::new();
    engine.set_strict_builtin_errors(true);
    for (path, text) in bundle.modules() {
        engine.add_policy(path.clone(), text.clone()).map_err(|e| failed(&e))?;
    }
    let with = serde_json::json!({"countersign.reference": reference});
    let data = replaced(bundle.data(), Some(&with));
    let input = Value::from(input.clone());
    let mut values = BTreeMap::new();
    let parsed = engine.get_modules().clone();
    for module in &parsed {
        let package = module.package.refr.span().text();
        for name in module.policy.iter().filter_map(|rule| name(rule)) {
            let path = format!("data.{package}.{name}");
            if !wanted(&path) || values.contains_key(&path) {
                continue;
            }
            let policy = engine.compile_with_entrypoint(&path.as_str().into()).map_err(|e| failed(&e))?;
            let program = Compiler::compile_from_policy(&policy, &[path.as_str()]).map_err(|e| failed(&e))?;
            let value = match ran(&program, &data, &input) {
                Ok(Value::Undefined) => continue,
                Ok(value) => value.to_json_str().ok().and_then(|text| serde_json::from_str(&text).ok()),
                Err(e) => Some(serde_json::json!({"error": e.to_string()})),
            };
            values.insert(path, value.unwrap_or(serde_json::Value::Null));
        }
    }
    Ok(values)
}

/// The data with what a situation puts in place.
fn replaced(data: &Map<String, serde_json::Value>, with: Option<&serde_json::Value>) -> Value {
    let mut whole = serde_json::Value::Object(data.clone());
    for (path, value) in with.and_then(serde_json::Value::as_object).into_iter().flatten() {
        let mut place = &mut whole;
        for part in path.split('.') {
            if !place.is_object() {
                *place = serde_json::json!({});
            }
            let serde_json::Value::Object(map) = place else { break };
            place = map.entry(part).or_insert(serde_json::Value::Null);
        }
        *place = value.clone();
    }
    Value::from(whole)
}

/// A value or `undefined` as text; an error is `error`, because the engines word it differently.
fn shown(value: Result<Value, impl std::fmt::Display>) -> String {
    match value {
        Ok(Value::Undefined) => "undefined".into(),
        Ok(value) => value.to_json_str().unwrap_or_else(|_| "error".into()),
        Err(_) => "error".into(),
    }
}

fn ran(program: &Arc<Program>, data: &Value, input: &Value) -> Result<Value, VmError> {
    let mut vm = crate::compiled::machine(program, data, crate::limits::INSTRUCTIONS)?;
    vm.set_input(input.clone());
    vm.execute()
}

/// Goes through an evaluation step by step, for the lines only.
fn step(program: &Arc<Program>, data: &Value, input: &Value, lines: &mut Lines) {
    let Ok(mut vm) = crate::compiled::machine(program, data, crate::limits::INSTRUCTIONS) else { return };
    vm.set_input(input.clone());
    vm.set_execution_mode(ExecutionMode::Suspendable);
    vm.set_step_mode(true);
    let owners = Owners::of(program);
    let mut going = vm.execute().is_ok();
    for _ in 0..STEPS {
        lines.went(program, &owners, vm.get_pc());
        if !going || !matches!(vm.execution_state(), ExecutionState::Suspended { .. }) {
            return;
        }
        going = vm.resume(None).is_ok();
    }
}

/// Lines with code, and those that were gone through.
#[derive(Default)]
struct Lines {
    /// `data.package` to file. The machine's own note of an instruction's file is not to be relied on; that of its rule is.
    files: BTreeMap<String, String>,
    code: BTreeMap<String, BTreeSet<u32>>,
    went: BTreeMap<String, BTreeSet<u32>>,
}

impl Lines {
    fn place(&self, program: &Program, owners: &Owners, pc: usize) -> Option<(String, u32)> {
        let span = program.get_instruction_span(pc)?;
        let rule = owners.rule(pc).and_then(|rule| program.rule_infos.get(rule))?;
        let package = rule.name.rsplit_once('.')?.0;
        Some((self.files.get(package)?.clone(), u32::try_from(span.line).ok()?))
    }

    fn all(&mut self, program: &Program) {
        let owners = Owners::of(program);
        for pc in 0..program.instructions.len() {
            if let Some((file, line)) = self.place(program, &owners, pc) {
                self.code.entry(file).or_default().insert(line);
            }
        }
    }

    fn went(&mut self, program: &Program, owners: &Owners, pc: usize) {
        if let Some((file, line)) = self.place(program, owners, pc) {
            self.went.entry(file).or_default().insert(line);
        }
    }

    fn report(&self, modules: &BTreeMap<String, String>) -> Vec<Coverage> {
        let none = BTreeSet::new();
        let each = self.code.iter().map(|(file, code)| {
            // Imports are resolved where they are used.
            let texts: Vec<&str> = modules.get(file).map(|text| text.lines().collect()).unwrap_or_default();
            let code: BTreeSet<u32> = code
                .iter()
                .filter(|line| {
                    let at = usize::try_from(**line).unwrap_or(0).saturating_sub(1);
                    let text = texts.get(at).map_or("", |text| text.trim());
                    !(text.is_empty() || ["import ", "package ", "#"].iter().any(|start| text.starts_with(start)))
                })
                .copied()
                .collect();
            let went = self.went.get(file).unwrap_or(&none);
            Coverage { file: file.clone(), lines: code.len(), missed: code.difference(went).copied().collect() }
        });
        each.collect()
    }
}
