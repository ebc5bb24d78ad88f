//! A policy that was checked and compiled, and its decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};

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
use crate::settings::Settings;
use crate::verdict::{Decision, Source};
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

    /// The package with its `verdict`.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Host => "countersign.host",
            Self::Workload => "countersign.workload",
        }
    }

    /// Who speaks in its reasons.
    #[must_use]
    pub const fn source(self) -> Source {
        match self {
            Self::Host => Source::HostPolicy,
            Self::Workload => Source::WorkloadPolicy,
        }
    }
}

/// A policy, compiled. Cloning is cheap: program and data are shared.
#[derive(Clone)]
pub struct Compiled {
    role: Role,
    program: Arc<Program>,
    data: Value,
    expires_ms: Option<i64>,
}

/// Reference values in the engine's form, shared by all policies that decide with them. Cloning is cheap.
#[derive(Clone)]
pub struct ReferenceData(Value);

/// A policy with its data and the reference values in place: deciding copies neither. Cloning is cheap.
#[derive(Clone)]
pub struct Ready {
    role: Role,
    program: Arc<Program>,
    data: Value,
    expires_ms: Option<i64>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").field("role", &self.role).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ReferenceData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReferenceData")
    }
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("role", &self.role).finish_non_exhaustive()
    }
}

impl ReferenceData {
    /// From [`crate::reference_document`]'s answer.
    #[must_use]
    pub fn new(document: &serde_json::Value) -> Self {
        Self(Value::from(document.clone()))
    }
}

/// What decides: the embedded machine, or another engine elsewhere. Same policies, inputs and verdict documents in all of them.
pub trait PolicyEngine: Send + Sync + std::fmt::Debug {
    /// Engine and version, as verdicts state it.
    fn engine(&self) -> String;

    /// Decides. Never fails: whatever goes wrong is a denial with its reason. Every engine refuses an input that breaks the published schema
    /// ([`crate::schema::input`]) before its policy sees it: on such input engines may differ.
    fn decide(&self, input: &serde_json::Value) -> Decision;
}

impl PolicyEngine for Ready {
    fn engine(&self) -> String {
        engine_version()
    }

    fn decide(&self, input: &serde_json::Value) -> Decision {
        malformed(input, self.role.source()).unwrap_or_else(|| self.decide_json(input.clone()))
    }
}

static INPUT_SCHEMA: LazyLock<Option<serde_json::Value>> = LazyLock::new(|| crate::schema::input().ok());

/// The denial of an input document that breaks the published schema; none for a good one.
#[must_use]
pub fn malformed(input: &serde_json::Value, source: Source) -> Option<Decision> {
    let fault = match &*INPUT_SCHEMA {
        Some(schema) => crate::schema::check(input, schema).err()?.to_string(),
        None => "there is no schema".to_owned(),
    };
    Some(document::deny(source, reason::INPUT, format!("the input breaks its schema: {fault}")))
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
        inspect(&program, bundle.modules())?;
        if let Some(settings) = bundle.data().get("countersign").and_then(|data| data.get("settings")) {
            serde_json::from_value::<Settings>(settings.clone())
                .map_err(|e| PolicyError::Compile(format!("data.countersign.settings: {e}")))?;
        }
        let data = Value::from(serde_json::Value::Object(bundle.data().clone()));
        let expires_ms = bundle.manifest().release().map_err(PolicyError::Compile)?.expires_ms;
        let compiled = Self { role, program: slim(&program), data, expires_ms };
        // Data that stands where a rule stands would fail in every decision.
        compiled.vm(&compiled.data).map_err(|e| PolicyError::Compile(e.to_string()))?;
        Ok(compiled)
    }

    /// What it decides about.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The policy with its data and these reference values. The reference values are the verifier's: a bundle cannot bring its own.
    #[must_use]
    pub fn ready(&self, reference: &ReferenceData) -> Ready {
        let mut data = self.data.clone();
        // Copies two small maps and shares everything below them.
        let (top, own) = (Value::from("countersign"), Value::from("reference"));
        let mut place = data.as_object().ok().and_then(|map| map.get(&top).cloned()).unwrap_or(Value::Undefined);
        if place.as_object().is_err() {
            place = Value::new_object();
        }
        if let Ok(map) = place.as_object_mut() {
            map.insert(own, reference.0.clone());
        }
        if let Ok(map) = data.as_object_mut() {
            map.insert(top, place);
        }
        Ready { role: self.role, program: Arc::clone(&self.program), data, expires_ms: self.expires_ms }
    }

    /// Decides once. Whatever goes wrong is a denial with a reason id of [`reason`]. Who decides more often uses [`Compiled::ready`].
    ///
    /// `reference` is [`crate::reference_document`]'s answer.
    #[must_use]
    pub fn decide(&self, input: &Input, reference: &serde_json::Value) -> Decision {
        self.ready(&ReferenceData::new(reference)).decide(input)
    }

    fn vm(&self, data: &Value) -> Result<RegoVM, VmError> {
        machine(&self.program, data)
    }
}

pub(crate) fn machine(program: &Arc<Program>, data: &Value) -> Result<RegoVM, VmError> {
    let mut vm = RegoVM::new();
    vm.load_program(Arc::clone(program));
    vm.set_data(data.clone())?;
    vm.set_max_instructions(limits::INSTRUCTIONS);
    vm.set_strict_builtin_errors(true);
    let check_interval = NonZeroU32::new(limits::TIME_CHECK).unwrap_or(NonZeroU32::MIN);
    vm.set_execution_timer_config(Some(ExecutionTimerConfig { limit: limits::TIME, check_interval }));
    Ok(vm)
}

impl Ready {
    /// What it decides about.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Decides. Whatever goes wrong is a denial with a reason id of [`reason`].
    #[must_use]
    pub fn decide(&self, input: &Input) -> Decision {
        match serde_json::to_value(input) {
            Ok(input) => self.decide_json(input),
            Err(e) => document::deny(self.role.source(), reason::ERROR, format!("the input cannot be written: {e}")),
        }
    }

    /// As [`Ready::decide`], for an input document that may be anything.
    #[must_use]
    pub fn decide_json(&self, input: serde_json::Value) -> Decision {
        let deny = |id: &str, message: String| document::deny(self.role.source(), id, message);
        // An expired policy denies, and so does one that cannot tell whether it is.
        let now = input.get("time_ms").and_then(serde_json::Value::as_i64);
        if let Some(expires) = self.expires_ms
            && now.is_none_or(|now| now >= expires)
        {
            return deny(reason::EXPIRED, format!("the {} policy expired ({expires} ms since 1970)", self.role.name()));
        }
        match self.run(Value::from(input)) {
            Ok(Value::Undefined) => {
                deny(reason::UNDEFINED, format!("data.{}.verdict is undefined for this host", self.role.package()))
            }
            Ok(value) => match value.to_json_str().ok().and_then(|json| serde_json::from_str(&json).ok()) {
                Some(json) => document::decision(json, self.role.source()),
                None => deny(reason::TYPE, "the verdict cannot be written as JSON".into()),
            },
            Err(e) => {
                let limit = matches!(&e, VmError::InstructionLimitExceeded { .. } | VmError::TimeLimitExceeded { .. });
                let id = if limit { reason::TIMEOUT } else { reason::ERROR };
                deny(id, format!("the {} policy failed: {e}", self.role.name()))
            }
        }
    }

    fn run(&self, input: Value) -> Result<Value, VmError> {
        let mut vm = machine(&self.program, &self.data)?;
        vm.set_input(input);
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
fn inspect(program: &Program, modules: &BTreeMap<String, String>) -> Result<(), PolicyError> {
    for (number, builtin) in program.builtin_info_table.iter().enumerate() {
        if !limits::BUILTINS.contains(&builtin.name.as_str()) {
            let why = limits::refusal(&builtin.name);
            let place = builtin_place(program, modules, number).unwrap_or_else(|| "the bundle".into());
            return Err(PolicyError::Builtin { builtin: builtin.name.clone(), place, why });
        }
    }
    let owners = Owners::of(program);
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
        if let Some(set) = owners.rule(pc).and_then(|rule| calls.get_mut(rule)) {
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

/// Which rule an instruction belongs to: the last entry point at or before it.
pub(crate) struct Owners(Vec<(usize, usize)>);

impl Owners {
    pub(crate) fn of(program: &Program) -> Self {
        let mut entries: Vec<(usize, usize)> = Vec::new();
        for (rule, info) in program.rule_infos.iter().enumerate() {
            let blocks = info.destructuring_blocks.iter().flatten();
            for pc in info.definitions.iter().flatten().chain(blocks) {
                entries.push((usize::try_from(*pc).unwrap_or(usize::MAX), rule));
            }
        }
        entries.sort_unstable();
        Self(entries)
    }

    pub(crate) fn rule(&self, pc: usize) -> Option<usize> {
        let at = self.0.partition_point(|(start, _)| *start <= pc).checked_sub(1)?;
        self.0.get(at).map(|(_, rule)| *rule)
    }
}

/// File and line of the first call of a builtin. The file is that of the rule's package.
fn builtin_place(program: &Program, modules: &BTreeMap<String, String>, number: usize) -> Option<String> {
    let calls = |instruction: &Instruction| {
        let Instruction::BuiltinCall { params_index } = instruction else { return false };
        let params = program.instruction_data.builtin_call_params.get(usize::from(*params_index));
        params.is_some_and(|params| usize::from(params.builtin_index) == number)
    };
    let pc = program.instructions.iter().position(calls)?;
    let rule = Owners::of(program).rule(pc).and_then(|rule| program.rule_infos.get(rule))?;
    let inner = rule.name.strip_prefix("data.")?.rsplit_once('.')?.0;
    let (path, _) = modules.iter().find(|(_, text)| package(text) == inner)?;
    Some(format!("{path}:{}", program.get_instruction_span(pc)?.line))
}

/// Without what only messages need: lines and source texts. Half of a program's memory.
fn slim(program: &Arc<Program>) -> Arc<Program> {
    let mut slim = Program::clone(program);
    slim.instruction_spans = Vec::new();
    slim.sources = Vec::new();
    slim.instructions.shrink_to_fit();
    slim.literals.shrink_to_fit();
    Arc::new(slim)
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
