//! Results as tables, CSV and JSON.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::remote::Table;
use crate::cli::output::table;
use crate::cli::result_format::Format;

/// A result as text; nothing where a statement gives no columns.
pub(super) fn render(result: &Table, format: Format) -> String {
    if result.cols.is_empty() {
        return String::new();
    }
    let names = || result.cols.iter().map(|column| column.name.clone().unwrap_or_default());
    match format {
        Format::Table => {
            let mut all: Vec<Vec<String>> = vec![names().collect()];
            all.extend(result.rows.iter().map(|row| row.iter().map(for_people).collect()));
            table(&all)
        }
        Format::Csv => {
            let head: Vec<_> = names().map(Some).collect();
            let rows = result.rows.iter().map(|row| row.iter().map(plain).collect());
            std::iter::once(head).chain(rows).map(|cells| csv_line(&cells)).collect()
        }
        Format::Json => {
            let object =
                |row: &Vec<Value>| -> Map<String, Value> { names().zip(row.iter().map(json)).collect() };
            let objects: Vec<_> = result.rows.iter().map(object).collect();
            let text = serde_json::to_string(&objects).expect("values are plain data");
            format!("{text}\n")
        }
    }
}

fn csv_line(cells: &[Option<String>]) -> String {
    let cells: Vec<String> = cells
        .iter()
        .map(|cell| match cell {
            // NULL is empty, and an empty text is quoted.
            None => String::new(),
            Some(text) if text.is_empty() || text.contains(['"', ',', '\n', '\r']) => {
                format!("\"{}\"", text.replace('"', "\"\""))
            }
            Some(text) => text.clone(),
        })
        .collect();
    format!("{}\r\n", cells.join(","))
}

/// A value as text; `None` is NULL.
fn plain(value: &Value) -> Option<String> {
    match (value["type"].as_str(), &value["value"]) {
        (Some("null"), _) => None,
        (Some("blob"), _) => Some(hex(value)),
        (_, Value::String(text)) => Some(text.clone()),
        (_, other) => Some(other.to_string()),
    }
}

/// As [`plain`], on one line.
fn for_people(value: &Value) -> String {
    let text = plain(value).unwrap_or_else(|| "NULL".to_owned());
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn json(value: &Value) -> Value {
    match (value["type"].as_str(), &value["value"]) {
        (Some("integer"), Value::String(text)) => text.parse::<i64>().map_or(Value::Null, Value::from),
        (Some("blob"), _) => Value::from(hex(value)),
        (_, other) => other.clone(),
    }
}

/// A blob as SQL writes it.
fn hex(value: &Value) -> String {
    let bytes = STANDARD.decode(value["base64"].as_str().unwrap_or_default()).unwrap_or_default();
    let mut text = String::from("x'");
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_keeps_what_it_can_say() {
        let text = r#"{"cols":[{"name":"n"},{"name":"t"}],"rows":[
            [{"type":"integer","value":"9223372036854775807"},{"type":"text","value":"a,\"b\"\n"}],
            [{"type":"null"},{"type":"blob","base64":"AP8="}],[{"type":"float","value":0.5},{"type":"text","value":""}]]}"#;
        let result: Table = serde_json::from_str(text).unwrap();
        let expected = "n,t\r\n9223372036854775807,\"a,\"\"b\"\"\n\"\r\n,x'00ff'\r\n0.5,\"\"\r\n";
        assert_eq!(render(&result, Format::Csv), expected);
        let json: Value = serde_json::from_str(&render(&result, Format::Json)).unwrap();
        assert_eq!((&json[0]["n"], &json[1]["n"]), (&Value::from(i64::MAX), &Value::Null));
        let shown = render(&result, Format::Table);
        assert_eq!(shown.lines().count(), 4, "{shown}");
        assert!(shown.contains("NULL"));
        assert_eq!(render(&Table::default(), Format::Json), "");
    }
}
