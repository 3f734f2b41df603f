//! Tables as kubectl prints them: upper-case headers, columns aligned, three spaces between, no borders.

use std::io::{self, Write};

/// Between two columns.
const GAP: &str = "   ";

/// Prints headers and rows; every row has as many cells as there are headers.
pub(super) fn print(out: &mut dyn Write, headers: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headers[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&headers).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}{GAP}"));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
