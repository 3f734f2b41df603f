//! How the demo tells what it saw: as text while it happens, or as one JSON document at the end.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::stage::{Ran, Stage};

/// No line is longer, in characters.
const COLUMNS: usize = 100;

/// In front of what a command printed.
const MARGIN: &str = "   | ";

/// Everything that was shown.
pub struct Report {
    json: bool,
    colour: bool,
    acts: Vec<Act>,
    kept: Option<Value>,
}

struct Act {
    title: String,
    promise: String,
    commands: Vec<Value>,
    facts: Vec<(bool, String)>,
    values: Map<String, Value>,
}

impl Report {
    /// Nothing yet.
    pub fn new(json: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour, acts: Vec::new(), kept: None }
    }

    /// Begins an act: what it is called, and in one line what is promised.
    pub fn act(&mut self, title: &str, promise: &str) {
        self.line(&format!("\n{}", self.paint("1", &format!("{}. {title}", self.acts.len() + 1))));
        for line in folded(promise, COLUMNS - 3) {
            self.line(&format!("   {line}"));
        }
        self.acts.push(Act {
            title: title.to_owned(),
            promise: promise.to_owned(),
            commands: Vec::new(),
            facts: Vec::new(),
            values: Map::new(),
        });
    }

    /// A command as a person would type it, and what it printed.
    pub fn ran(&mut self, typed: &str, ran: &Ran) {
        self.shown(typed, &ran.output, Some(ran.exit_code));
    }

    /// A command as a person would type it, and what there is to see.
    pub fn shown(&mut self, typed: &str, output: &str, exit_code: Option<i32>) {
        for (index, line) in folded(typed, COLUMNS - 7).iter().enumerate() {
            let lead = if index == 0 { "   $ " } else { "       " };
            self.line(&self.paint("36", &format!("{lead}{line}")));
        }
        for line in output.lines() {
            for part in folded(line, COLUMNS - MARGIN.len()) {
                self.line(&format!("{MARGIN}{part}"));
            }
        }
        if let Some(act) = self.acts.last_mut() {
            act.commands.push(json!({ "command": typed, "output": output, "exitCode": exit_code }));
        }
    }

    /// Whether something is as promised.
    pub fn fact(&mut self, holds: bool, text: impl Into<String>) {
        let text = text.into();
        let mark = if holds { self.paint("32", "✓") } else { self.paint("31", "✗") };
        for (index, line) in folded(&text, COLUMNS - 5).iter().enumerate() {
            let lead = if index == 0 { mark.as_str() } else { " " };
            self.line(&format!("   {lead} {line}"));
        }
        if let Some(act) = self.acts.last_mut() {
            act.facts.push((holds, text));
        }
    }

    /// A value for machines.
    pub fn value(&mut self, name: &str, value: Value) {
        if let Some(act) = self.acts.last_mut() {
            act.values.insert(name.to_owned(), value);
        }
    }

    /// Says how the lab is used and removed.
    pub fn kept(&mut self, stage: &Stage) {
        let usage = stage.usage();
        self.line("\nThe lab is still up:");
        for line in &usage {
            self.line(&format!("   {line}"));
        }
        self.kept = Some(json!(usage));
    }

    /// Ends the report; the exit code says whether every promise held.
    pub fn finish(self) -> Result<ExitCode> {
        let all = || self.acts.iter().flat_map(|act| &act.facts);
        let failed = all().filter(|(holds, _)| !holds).count();
        let summary = match failed {
            0 => self.paint("32", &format!("All {} facts are as promised.", all().count())),
            _ => self.paint("31", &format!("{failed} of {} facts are not as promised.", all().count())),
        };
        self.line(&format!("\n{summary}"));
        if self.json {
            let acts: Vec<Value> = self.acts.iter().map(Act::document).collect();
            let document = json!({ "asPromised": failed == 0, "acts": acts, "kept": self.kept });
            println!("{}", serde_json::to_string_pretty(&document)?);
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn line(&self, line: &str) {
        // A reader that went away (`| head`) is no reason to leave a lab behind.
        let _ = if self.json {
            writeln!(std::io::stderr(), "{line}")
        } else {
            writeln!(std::io::stdout(), "{line}")
        };
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour && !self.json { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Act {
    fn document(&self) -> Value {
        let facts: Vec<Value> =
            self.facts.iter().map(|(holds, fact)| json!({ "fact": fact, "holds": holds })).collect();
        json!({
            "title": self.title, "promise": self.promise, "commands": self.commands, "facts": facts,
            "values": self.values,
        })
    }
}

/// A line in parts of at most `width` characters, cut after a space or a comma where there is one.
fn folded(line: &str, width: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest: Vec<char> = line.trim_end().chars().collect();
    while rest.len() > width {
        let cut = rest[..width].iter().rposition(|c| [' ', ','].contains(c)).filter(|at| *at > width / 3);
        let tail = rest.split_off(cut.map_or(width, |at| at + 1));
        parts.push(rest.into_iter().collect::<String>().trim_end().to_owned());
        rest = tail;
    }
    parts.push(rest.into_iter().collect());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_at_spaces_and_commas_and_lose_nothing_else() {
        assert_eq!(folded("short", 10), ["short"]);
        assert_eq!(folded("one two three", 8), ["one two", "three"]);
        assert_eq!(folded(r#"{"a":1,"b":2}"#, 8), [r#"{"a":1,"#, r#""b":2}"#]);
        assert_eq!(folded("abcdefghij", 4), ["abcd", "efgh", "ij"]);
    }
}
