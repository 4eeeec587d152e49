use toml::Value;

/// Replaces `${NAME}` in every text of `value` by what `lookup` gives; `$${NAME}` stays as `${NAME}`.
///
/// # Errors
/// Where a name is not set, or a `${` is not closed.
pub(super) fn expand(value: &mut Value, lookup: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            *text = expand_text(text, lookup)?;
            Ok(())
        }
        Value::Array(values) => values.iter_mut().try_for_each(|value| expand(value, lookup)),
        Value::Table(table) => table.iter_mut().try_for_each(|(_, value)| expand(value, lookup)),
        _ => Ok(()),
    }
}

fn expand_text(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let before = &rest[..start];
        let end = rest[start..].find('}').ok_or_else(|| format!("{text:?} has a ${{ without a }}"))? + start;
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str(&rest[start..=end]);
        } else {
            out.push_str(before);
            let name = &rest[start + 2..end];
            let value = lookup(name).ok_or_else(|| {
                format!("environment variable {name} is not set (write $${{{name}}} for the text itself)")
            })?;
            out.push_str(&value);
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<String, String> {
        expand_text(text, &|name| (name == "HOST").then(|| "h1".to_owned()))
    }

    #[test]
    fn variables_are_replaced_and_doubled_dollars_are_kept() {
        assert_eq!(of("${HOST}:1"), Ok("h1:1".into()));
        assert_eq!(of("a$${HOST}b${HOST}"), Ok("a${HOST}bh1".into()));
        assert_eq!(of("cost $5"), Ok("cost $5".into()));
    }

    #[test]
    fn unset_variables_are_named() {
        assert!(of("${PORT}").unwrap_err().contains("PORT"));
        assert!(of("${HOST").is_err());
    }
}
