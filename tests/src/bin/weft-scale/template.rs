//! JSON with slots: `$name` within a text, `"$$name"` for a value. Taken apart once, then only copied together.

use anyhow::{Context, Result};
use serde_json::Value;

/// A template.
#[derive(Debug)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Slot(usize),
}

impl Template {
    /// Takes `object` apart; `slots` are the names that values will be given for, in that order.
    pub fn new(object: &Value, slots: &[&str]) -> Result<Self> {
        let text = object.to_string();
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find('$') {
            let (mut before, mut after) = (&rest[..at], &rest[at + 1..]);
            let is_value = after.starts_with('$');
            after = after.trim_start_matches('$');
            let end = after.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(after.len());
            let (name, mut left) = after.split_at(end);
            if is_value {
                // The quotation marks that made it JSON go.
                before = before.strip_suffix('"').context("a value's slot stands in quotation marks")?;
                left = left.strip_prefix('"').context("a value's slot stands alone")?;
            }
            let slot = slots.iter().position(|slot| *slot == name);
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Slot(slot.with_context(|| format!("nobody fills ${name}"))?));
            rest = left;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self { pieces })
    }

    /// Appends the text with `values` in the slots. They are copied as they are: names and addresses need no escapes.
    pub fn write(&self, values: &[impl AsRef<str>], out: &mut Vec<u8>) {
        for piece in &self.pieces {
            let text = match piece {
                Piece::Text(text) => text,
                Piece::Slot(slot) => values[*slot].as_ref(),
            };
            out.extend_from_slice(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn slots_are_filled_in_texts_and_as_values() {
        let object = json!({"a": "$x-$y", "b": "$$z", "k:$x": 1});
        let template = Template::new(&object, &["x", "y", "z"]).unwrap();
        let mut out = Vec::new();
        template.write(&["1", "2", "[true]"], &mut out);
        let read: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(read, json!({"a": "1-2", "b": [true], "k:1": 1}));
    }

    #[test]
    fn a_slot_that_nobody_fills_is_refused() {
        assert!(Template::new(&json!("$x"), &["y"]).is_err());
    }
}
