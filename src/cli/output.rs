//! How data is printed: a table for people, JSON for programs.

use std::io::Write;

use clap::ValueEnum;
use serde_json::Value;

/// The `--output` flag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns
    #[default]
    Table,
    /// One JSON array
    Json,
    /// One JSON object a line
    Ndjson,
}

impl Output {
    /// Prints `rows`, JSON objects with the same keys, to stdout. `columns` are the keys of a table,
    /// in order. A reader that went away (`| head`) ends the printing without an error.
    pub fn print(self, columns: &[&str], rows: &[Value]) {
        let text = match self {
            Self::Table => table(columns, rows),
            Self::Json => format!("{}\n", serde_json::to_string_pretty(rows).unwrap_or_default()),
            Self::Ndjson => rows.iter().map(|row| format!("{row}\n")).collect(),
        };
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    }
}

pub(super) fn table(columns: &[&str], rows: &[Value]) -> String {
    let cell = |row: &Value, column: &str| match &row[column] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|column| column.to_uppercase()).collect()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect()));
    let width = |index: usize| lines.iter().map(|line: &Vec<String>| line[index].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_names_what_is_missing() {
        let rows = [serde_json::json!({"name": "a", "lag": 12}), serde_json::json!({"name": "longer", "lag": null})];
        assert_eq!(table(&["name", "lag"], &rows), "NAME    LAG\na       12\nlonger  -\n");
    }
}
