//! What one look found, the words for it, and what mends it.

use std::io::Write;

use serde_json::{Value, json};

use crate::cli::commands::print_value;
use crate::cli::flags::Output;
use crate::cli::{Error, Found, table};

/// What a look says when all is well, or what is not.
pub(super) type Said = Result<String, Complaint>;

/// What is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// The promise holds, but less well than it could.
    Warning(String),
    /// It does not hold.
    Failure(String),
}

/// One look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// What was looked at, in a word or two.
    pub(super) look: &'static str,
    /// What was found.
    pub(super) said: Said,
    /// What to do when it is not well.
    pub(super) fix: &'static str,
}

impl Finding {
    pub(super) fn new(look: &'static str, said: Said, fix: &'static str) -> Self {
        Self { look, said, fix }
    }

    fn parts(&self) -> (&'static str, &str) {
        match &self.said {
            Ok(detail) => ("ok", detail),
            Err(Complaint::Warning(detail)) => ("warning", detail),
            Err(Complaint::Failure(detail)) => ("failed", detail),
        }
    }
}

/// Prints all, then what mends those that are not well; bad when one has failed.
pub(super) fn print(output: Output, findings: &[Finding], out: &mut dyn Write) -> Result<Found, Error> {
    let value: Value = findings
        .iter()
        .map(|finding| {
            let (result, detail) = finding.parts();
            let fix = finding.said.is_err().then_some(finding.fix);
            json!({"check": finding.look, "result": result, "detail": detail, "fix": fix})
        })
        .collect();
    if !print_value(output, &value, out)? {
        let rows: Vec<Vec<String>> = findings
            .iter()
            .map(|finding| {
                let (result, detail) = finding.parts();
                vec![finding.look.to_owned(), result.to_owned(), detail.to_owned()]
            })
            .collect();
        table::print(out, &["CHECK", "RESULT", "DETAIL"], &rows)?;
        let unwell: Vec<_> = findings.iter().filter(|finding| finding.said.is_err()).collect();
        if !unwell.is_empty() {
            writeln!(out)?;
        }
        for finding in unwell {
            writeln!(out, "{}: {}", finding.look, finding.fix)?;
        }
    }
    let failed = findings.iter().any(|finding| matches!(finding.said, Err(Complaint::Failure(_))));
    Ok(if failed { Found::Bad } else { Found::Good })
}
