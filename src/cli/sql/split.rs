//! Takes a text apart into statements.

/// The statements of a text, and what is behind the last of them.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Pieces<'a> {
    /// Whole statements with their semicolons.
    pub whole: Vec<&'a str>,
    /// The begin of one more.
    pub rest: &'a str,
}

/// Splits at semicolons that end a statement: not in texts, names, comments, or in the body of a trigger.
///
/// A line that begins with a dot is one piece. Source: sqlite3_complete(), `complete.c`.
pub(super) fn split(text: &str) -> Pieces<'_> {
    let (mut whole, mut start, mut at) = (Vec::new(), 0, 0);
    let mut words: Vec<String> = Vec::new();
    while at < text.len() {
        let rest = &text[at..];
        if words.is_empty() && rest.starts_with('.') {
            let end = rest.find('\n').map_or(text.len(), |end| at + end + 1);
            whole.push(text[start..end].trim());
            (start, at) = (end, end);
            continue;
        }
        let length = token(rest);
        let token = &rest[..length];
        at += length;
        if token == ";" {
            if is_trigger(&words) && words.last().is_none_or(|word| word != "END") {
                words.push(";".to_owned());
                continue;
            }
            if !words.is_empty() {
                whole.push(text[start..at].trim());
            }
            words.clear();
            start = at;
        } else if !token.trim().is_empty() && !token.starts_with("--") && !token.starts_with("/*") {
            // Only the first words and the last one count.
            if words.len() >= 8 {
                words.pop();
            }
            words.push(token.to_ascii_uppercase());
        }
    }
    let rest = &text[start..];
    // Nothing but comments is no statement, unless one goes on in the next line.
    let in_comment = rest.contains("/*") && !rest.contains("*/");
    Pieces { whole, rest: if words.is_empty() && !in_comment { "" } else { rest } }
}

fn is_trigger(words: &[String]) -> bool {
    let mut words = words.iter().map(String::as_str).skip_while(|word| *word == "EXPLAIN");
    if words.next() != Some("CREATE") {
        return false;
    }
    let next = words.next();
    let next = if matches!(next, Some("TEMP" | "TEMPORARY")) { words.next() } else { next };
    next == Some("TRIGGER")
}

/// The length of the first token, in bytes.
fn token(text: &str) -> usize {
    let until =
        |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |found| from + found + end.len());
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    match first {
        '-' if text.starts_with("--") => until("\n", 2),
        '/' if text.starts_with("/*") => until("*/", 2),
        '\'' | '"' | '`' => until(&first.to_string(), 1),
        '[' => until("]", 1),
        c if c.is_whitespace() => text.find(|c: char| !c.is_whitespace()).unwrap_or(text.len()),
        c if c.is_alphanumeric() || c == '_' => {
            text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
        }
        c => c.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_in_texts_comments_and_triggers_end_nothing() {
        let trigger =
            "CREATE TEMP TRIGGER g AFTER INSERT ON a BEGIN SELECT 1; UPDATE a SET b = 2 WHERE c; END;";
        let text = format!("SELECT ';''', \"a;\", [b;] -- c;\n; ;; {trigger}\n/* ; */ BEGIN;\nSELECT 1");
        let Pieces { whole, rest } = split(&text);
        assert_eq!(whole, ["SELECT ';''', \"a;\", [b;] -- c;\n;", trigger, "/* ; */ BEGIN;"]);
        assert_eq!(rest.trim(), "SELECT 1");
        assert_eq!(split(".tables\nSELECT 1;").whole, [".tables", "SELECT 1;"]);
        assert_eq!(split("SELECT 'ä"), Pieces { whole: Vec::new(), rest: "SELECT 'ä" });
        assert_eq!(split("SELECT 1; -- ;\n").rest, "");
        assert_eq!(split("/* a;").rest, "/* a;");
        assert_eq!(split("").whole.len(), 0);
    }
}
