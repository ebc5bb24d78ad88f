//! A policy that was checked and compiled, and its decisions.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::program::Program;
use regorus::rvm::vm::VmError;
use regorus::rvm::{Instruction, RegoVM};
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};

use crate::bundle::{PolicyBundle, package};
use crate::document;
use crate::error::PolicyError;
use crate::input::Input;
use crate::verdict::{Decision, Obligations, Reason, Source};
use crate::{limits, reason};

/// What a policy decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Hosts: package `countersign.host`.
    Host,
    /// One workload on a host: package `countersign.workload`.
    Workload,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Workload => "workload",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Host => "countersign.host",
            Self::Workload => "countersign.workload",
        }
    }

    const fn source(self) -> Source {
        match self {
            Self::Host => Source::HostPolicy,
            Self::Workload => Source::WorkloadPolicy,
        }
    }
}

/// A policy, ready to decide. Cloning is cheap.
#[derive(Clone)]
pub struct Compiled {
    role: Role,
    program: Arc<Program>,
    data: serde_json::Map<String, serde_json::Value>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Engine and version, as verdicts state it.
#[must_use]
pub fn engine_version() -> String {
    "regorus 0.14.1".to_owned()
}

impl Compiled {
    /// Compiles a bundle for the virtual machine and refuses what could hang or crash it: recursion, deep calls, builtins that are not on
    /// the list.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn new(bundle: &PolicyBundle, role: Role) -> Result<Self, PolicyError> {
        let wrong = |why: String| PolicyError::Role { role: role.name(), why };
        if !bundle.modules().values().any(|text| package(text) == role.package()) {
            return Err(wrong(format!("no file has package {}", role.package())));
        }
        for (path, text) in bundle.modules() {
            let operators = text.bytes().filter(|byte| b"+-*/%&|=<>([{".contains(byte)).count();
            if operators > limits::OPERATORS {
                return Err(PolicyError::Compile(format!(
                    "{path}: {operators} operators, at most {}",
                    limits::OPERATORS
                )));
            }
        }
        // The parser and compiler recurse: they get a stack of their own.
        let owned = bundle.clone();
        let worker = std::thread::Builder::new()
            .stack_size(limits::COMPILE_STACK)
            .spawn(move || compile(&owned, role))
            .map_err(|e| PolicyError::Engine(e.to_string()))?;
        let program = worker.join().map_err(|_| PolicyError::Engine("it panicked while compiling".into()))??;
        inspect(&program)?;
        Ok(Self { role, program, data: bundle.data().clone() })
    }

    /// What it decides about.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Decides. Whatever goes wrong is a denial with a reason id of [`reason`].
    ///
    /// `reference` is [`crate::reference_document`]'s answer.
    #[must_use]
    pub fn decide(&self, input: &Input, reference: &serde_json::Value) -> Decision {
        let deny = |id: &str, message: String| Decision {
            allow: false,
            reasons: vec![Reason {
                source: self.role.source(),
                id: id.to_owned(),
                message,
                subject: None,
                got: None,
                want: None,
                hint: None,
            }],
            obligations: Obligations::default(),
        };
        let input = match serde_json::to_value(input) {
            Ok(input) => Value::from(input),
            Err(e) => return deny(reason::ERROR, format!("the input cannot be written: {e}")),
        };
        match self.run(input, reference) {
            Ok(Value::Undefined) => {
                deny(reason::UNDEFINED, format!("data.{}.verdict is undefined for this host", self.role.package()))
            }
            Ok(value) => match value.to_json_str().ok().and_then(|json| serde_json::from_str(&json).ok()) {
                Some(json) => {
                    document::read(json, self.role.source()).unwrap_or_else(|(id, message)| deny(id, message))
                }
                None => deny(reason::TYPE, "the verdict cannot be written as JSON".into()),
            },
            Err(e) => {
                let limit = matches!(&e, VmError::InstructionLimitExceeded { .. } | VmError::TimeLimitExceeded { .. });
                let id = if limit { reason::TIMEOUT } else { reason::ERROR };
                deny(id, format!("the {} policy failed: {e}", self.role.name()))
            }
        }
    }

    fn run(&self, input: Value, reference: &serde_json::Value) -> Result<Value, VmError> {
        let mut vm = RegoVM::new();
        vm.load_program(Arc::clone(&self.program));
        let mut data = self.data.clone();
        // The reference values are the verifier's: a bundle cannot bring its own.
        let place = data.entry("countersign").or_insert_with(|| serde_json::json!({}));
        if let Some(place) = place.as_object_mut() {
            place.insert("reference".into(), reference.clone());
        } else {
            *place = serde_json::json!({"reference": reference});
        }
        vm.set_data(Value::from(serde_json::Value::Object(data)))?;
        vm.set_input(input);
        vm.set_max_instructions(limits::INSTRUCTIONS);
        vm.set_strict_builtin_errors(true);
        let check_interval = NonZeroU32::new(limits::TIME_CHECK).unwrap_or(NonZeroU32::MIN);
        vm.set_execution_timer_config(Some(ExecutionTimerConfig { limit: limits::TIME, check_interval }));
        vm.execute()
    }
}

fn compile(bundle: &PolicyBundle, role: Role) -> Result<Arc<Program>, PolicyError> {
    let failed = |e: &dyn std::fmt::Display| PolicyError::Compile(e.to_string());
    let mut engine = Engine::new();
    engine.set_strict_builtin_errors(true);
    for (path, text) in bundle.modules() {
        engine.add_policy(path.clone(), text.clone()).map_err(|e| failed(&e))?;
    }
    let entry = format!("data.{}.verdict", role.package());
    let policy = engine.compile_with_entrypoint(&regorus::Rc::from(entry.as_str())).map_err(|e| failed(&e))?;
    Compiler::compile_from_policy(&policy, &[entry.as_str()]).map_err(|e| failed(&e))
}

/// Refuses what the machine would not survive: builtins off the list, recursion, long chains of calls.
fn inspect(program: &Program) -> Result<(), PolicyError> {
    for builtin in &program.builtin_info_table {
        if !limits::BUILTINS.contains(&builtin.name.as_str()) {
            let why = limits::refusal(&builtin.name);
            return Err(PolicyError::Builtin { builtin: builtin.name.clone(), place: "the bundle".into(), why });
        }
    }
    // Which rule an instruction belongs to: the last entry point at or before it.
    let mut entries: Vec<(usize, usize)> = Vec::new();
    for (rule, info) in program.rule_infos.iter().enumerate() {
        let blocks = info.destructuring_blocks.iter().flatten();
        for pc in info.definitions.iter().flatten().chain(blocks) {
            entries.push((usize::try_from(*pc).unwrap_or(usize::MAX), rule));
        }
    }
    entries.sort_unstable();
    let mut calls: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); program.rule_infos.len()];
    for (pc, instruction) in program.instructions.iter().enumerate() {
        let callee = if let Instruction::CallRule { rule_index, .. } = instruction {
            usize::from(*rule_index)
        } else if let Instruction::FunctionCall { params_index } = instruction {
            let params = program.instruction_data.function_call_params.get(usize::from(*params_index));
            params.map_or(usize::MAX, |params| usize::from(params.func_rule_index))
        } else {
            continue;
        };
        let owner = entries.partition_point(|(start, _)| *start <= pc).checked_sub(1).and_then(|at| entries.get(at));
        if let Some(set) = owner.and_then(|(_, rule)| calls.get_mut(*rule)) {
            set.insert(callee);
        }
    }
    let mut depths = vec![None; calls.len()];
    for rule in 0..calls.len() {
        let depth = depth(rule, &calls, &mut depths, &mut Vec::new()).map_err(|cycle| {
            let names = cycle.iter().filter_map(|rule| program.rule_infos.get(*rule)).map(|info| info.name.as_str());
            PolicyError::Recursive(names.collect::<Vec<_>>().join(" -> "))
        })?;
        if depth > limits::CALL_DEPTH {
            return Err(PolicyError::Depth { got: depth, limit: limits::CALL_DEPTH });
        }
    }
    Ok(())
}

/// Longest chain of calls from a rule; a chain that comes back to itself is the error.
fn depth(
    rule: usize,
    calls: &[BTreeSet<usize>],
    known: &mut [Option<usize>],
    path: &mut Vec<usize>,
) -> Result<usize, Vec<usize>> {
    if let Some(Some(depth)) = known.get(rule) {
        return Ok(*depth);
    }
    if path.contains(&rule) || path.len() > 4 * limits::CALL_DEPTH {
        path.push(rule);
        return Err(path.clone());
    }
    path.push(rule);
    let mut longest: usize = 0;
    for callee in calls.get(rule).into_iter().flatten() {
        longest = longest.max(depth(*callee, calls, known, path)?.saturating_add(1));
    }
    path.pop();
    if let Some(slot) = known.get_mut(rule) {
        *slot = Some(longest);
    }
    Ok(longest)
}
