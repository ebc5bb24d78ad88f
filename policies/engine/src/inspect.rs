//! What a compiled program would do to the machine: looked at before it runs for the first time.

use std::collections::{BTreeMap, BTreeSet};

use regorus::rvm::Instruction;
use regorus::rvm::program::Program;

use crate::bundle::package;
use crate::error::PolicyError;
use crate::limits;

/// Refuses what the machine would not survive: builtins off the list, recursion, long chains of calls.
pub(crate) fn inspect(program: &Program, modules: &BTreeMap<String, String>) -> Result<(), PolicyError> {
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
