//! The list of checks of one appraisal.

use countersign_policy::verdict::{Check, Outcome, Reason, Source};

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Failure {
    pub(crate) got: String,
    pub(crate) want: String,
    pub(crate) subject: Option<String>,
    pub(crate) hint: Option<String>,
    /// A signed contradiction: the host is suspended.
    pub(crate) contradiction: bool,
}

impl Failure {
    pub(crate) fn new(got: impl Into<String>, want: impl Into<String>) -> Self {
        Self { got: got.into(), want: want.into(), ..Self::default() }
    }

    pub(crate) fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn contradiction(mut self) -> Self {
        self.contradiction = true;
        self.hint = Some("the host is suspended; find out why, then: verifier host admit HOST".into());
        self
    }
}

/// A check failed: nothing after it is appraised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop;

/// Collects outcomes in order.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    list: Vec<Check>,
    failed: Option<(&'static str, Failure)>,
}

impl Checks {
    /// Runs a check; its failure stops the appraisal.
    pub(crate) fn run<T>(&mut self, id: &'static str, check: Result<T, Failure>) -> Result<T, Stop> {
        match check {
            Ok(value) => {
                self.note(id, Outcome::Pass);
                Ok(value)
            }
            Err(failure) => {
                let Failure { got, want, subject, hint, .. } = failure.clone();
                self.note(id, Outcome::Fail { got, want, subject, hint });
                self.failed = Some((id, failure));
                Err(Stop)
            }
        }
    }

    /// A check that had nothing to look at.
    pub(crate) fn nothing(&mut self, id: &'static str, why: &str) {
        self.note(id, Outcome::NotAppraised { why: why.to_owned() });
    }

    fn note(&mut self, id: &'static str, outcome: Outcome) {
        self.list.push(Check { id: id.to_owned(), outcome });
    }

    /// Whether a check was made and holds.
    pub(crate) fn passed(&self, id: &str) -> bool {
        self.list.iter().any(|check| check.id == id && check.outcome == Outcome::Pass)
    }

    /// The check that failed.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        self.failed.as_ref().map(|(id, _)| *id)
    }

    /// The contradiction, if the appraisal ended with one.
    pub(crate) fn contradiction(&self) -> Option<String> {
        let (id, failure) = self.failed.as_ref().filter(|(_, failure)| failure.contradiction)?;
        Some(format!("{id}: {}", failure.got))
    }

    /// All of `order`, in that order, with what was not reached; and the reason, if one failed.
    pub(crate) fn finish(self, order: &[&str]) -> (Vec<Check>, Vec<Reason>) {
        let stopped = self.failed.as_ref().map(|(id, _)| *id);
        let mut list = self.list;
        for id in order {
            if !list.iter().any(|check| check.id == **id) {
                let why = stopped.map_or_else(|| "not reached".to_owned(), |at| format!("stopped at {at}"));
                list.push(Check { id: (*id).to_owned(), outcome: Outcome::NotAppraised { why } });
            }
        }
        let reasons = self.failed.map(|(id, failure)| Reason {
            source: Source::Appraisal,
            id: id.to_owned(),
            message: format!("the evidence fails the check {id}"),
            subject: failure.subject,
            got: Some(failure.got),
            want: Some(failure.want),
            hint: failure.hint,
        });
        (list, reasons.into_iter().collect())
    }
}
