use std::io::{self, IsTerminal, Write};

/// Writes to stdout; an error where nobody reads, never a panic.
pub(super) fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a document as JSON for programs.
pub(super) fn json(document: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(out(&format!("{}\n", serde_json::to_string_pretty(document)?))?)
}

/// Asks on a terminal whether to go on; who is asked by a script has said so by running it.
pub(super) fn confirmed(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    // Not to stdout, which may be kept.
    write!(io::stderr().lock(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Writes an error as one line to stderr.
pub(super) fn error_line(text: &str) {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // There is no other place to say that stderr is closed.
    let _ = writeln!(io::stderr().lock(), "skein: {line}");
}

/// Rows as columns, the first row being the heads.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect();
        assert_eq!(table(&[row(&["NAME", "N"]), row(&["a", "12"])]), "NAME  N\na     12\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(
            (size(1023), size(1536), size(5 << 30)),
            ("1023 B".into(), "1.5 KiB".into(), "5.0 GiB".into())
        );
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }
}
