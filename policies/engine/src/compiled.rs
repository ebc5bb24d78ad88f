//! A policy that was checked and compiled, and its decisions.

use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};

use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::RegoVM;
use regorus::rvm::program::Program;
use regorus::rvm::vm::VmError;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};

use crate::bundle::{PolicyBundle, package};
use crate::document;
use crate::error::PolicyError;
use crate::input::Input;
use crate::inspect::inspect;
use crate::programs::Packed;
use crate::settings::Settings;
use crate::verdict::{Decision, Source};
use crate::{heads, limits, programs, reason};

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
    program: Arc<Packed>,
    data: Value,
    expires_ms: Option<i64>,
}

/// Reference values in the engine's form, shared by all policies that decide with them. Cloning is cheap.
#[derive(Clone)]
pub struct ReferenceData {
    document: Value,
    /// Number of values.
    values: usize,
}

/// A policy with its data and the reference values in place: deciding copies neither. Cloning is cheap.
#[derive(Clone)]
pub struct Ready {
    role: Role,
    program: Arc<Packed>,
    data: Value,
    expires_ms: Option<i64>,
    /// What a decision may take.
    instructions: usize,
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
        let values = document.get("values").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
        Self { document: Value::from(document.clone()), values }
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
        let key = programs::key(bundle, role);
        let program = match programs::in_use(&key) {
            Some(program) => program,
            None => Packed::new(key, checked(bundle, role)?.as_ref())?,
        };
        if let Some(settings) = bundle.data().get("countersign").and_then(|data| data.get("settings")) {
            let wrong = |e: &dyn std::fmt::Display| PolicyError::Compile(format!("data.countersign.settings: {e}"));
            let settings: Settings = serde_json::from_value(settings.clone()).map_err(|e| wrong(&e))?;
            settings.check().map_err(|e| wrong(&e))?;
        }
        let data = Value::from(serde_json::Value::Object(bundle.data().clone()));
        let expires_ms = bundle.manifest().release().map_err(PolicyError::Compile)?.expires_ms;
        let compiled = Self { role, program, data, expires_ms };
        // Data that stands where a rule stands would fail in every decision.
        machine(&compiled.program.unpack()?, &compiled.data, limits::INSTRUCTIONS)
            .map_err(|e| PolicyError::Compile(e.to_string()))?;
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
            map.insert(own, reference.document.clone());
        }
        if let Ok(map) = data.as_object_mut() {
            map.insert(top, place);
        }
        let more = reference.values.saturating_mul(limits::INSTRUCTIONS_PER_VALUE);
        let instructions = limits::INSTRUCTIONS.saturating_add(more);
        Ready { role: self.role, program: Arc::clone(&self.program), data, expires_ms: self.expires_ms, instructions }
    }

    /// Decides once. Whatever goes wrong is a denial with a reason id of [`reason`]. Who decides more often uses [`Compiled::ready`].
    ///
    /// `reference` is [`crate::reference_document`]'s answer.
    #[must_use]
    pub fn decide(&self, input: &Input, reference: &serde_json::Value) -> Decision {
        self.ready(&ReferenceData::new(reference)).decide(input)
    }
}

pub(crate) fn machine(program: &Arc<Program>, data: &Value, instructions: usize) -> Result<RegoVM, VmError> {
    let mut vm = RegoVM::new();
    vm.load_program(Arc::clone(program));
    vm.set_data(data.clone())?;
    vm.set_max_instructions(instructions);
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
        let program = match self.program.unpack() {
            Ok(program) => program,
            Err(e) => return deny(reason::ERROR, format!("the {} policy failed: {e}", self.role.name())),
        };
        match self.run(&program, Value::from(input)) {
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

    fn run(&self, program: &Arc<Program>, input: Value) -> Result<Value, VmError> {
        let mut vm = machine(program, &self.data, self.instructions)?;
        vm.set_input(input);
        vm.execute()
    }
}

/// Compiled, and found to be nothing that could hang or crash the machine.
pub(crate) fn checked(bundle: &PolicyBundle, role: Role) -> Result<Arc<Program>, PolicyError> {
    for (path, text) in bundle.modules() {
        let operators = text.bytes().filter(|byte| b"+-*/%&|=<>([{".contains(byte)).count();
        if operators > limits::OPERATORS {
            return Err(PolicyError::Compile(format!("{path}: {operators} operators, at most {}", limits::OPERATORS)));
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
    Ok(program)
}

fn compile(bundle: &PolicyBundle, role: Role) -> Result<Arc<Program>, PolicyError> {
    let failed = |e: &dyn std::fmt::Display| PolicyError::Compile(e.to_string());
    let mut engine = Engine::new();
    engine.set_strict_builtin_errors(true);
    for (path, text) in bundle.modules() {
        engine.add_policy(path.clone(), text.clone()).map_err(|e| failed(&e))?;
    }
    for module in engine.get_modules() {
        if let Some((line, head)) = module.policy.iter().find_map(|rule| heads::misread(rule)) {
            let file = module.package.span.source.get_path();
            return Err(PolicyError::Compile(format!("{file}:{line}: {head}: {}; {}", heads::WHY, heads::HINT)));
        }
    }
    let entry = format!("data.{}.verdict", role.package());
    let policy = engine.compile_with_entrypoint(&regorus::Rc::from(entry.as_str())).map_err(|e| failed(&e))?;
    Compiler::compile_from_policy(&policy, &[entry.as_str()]).map_err(|e| failed(&e))
}
