use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A time as it stands in a configuration: `100ms`, `5s`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(Duration);

impl Time {
    /// The time itself.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_duration(text).map(Self)
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

/// Reads a time such as `30s`, `500ms`, `2m`, `1m30s`, `1.5h` or `1d`; a bare number is seconds.
///
/// # Errors
/// Where the text is no such time, or is longer than a week.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time such as 500ms, 30s, 1m30s or 2h");
    let (mut rest, mut total) = (text.trim(), 0.0);
    if rest.is_empty() {
        return Err(bad());
    }
    let mut above = f64::INFINITY;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let unit_end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, next) = behind.split_at(unit_end);
        let number: f64 = number.parse().map_err(|_| bad())?;
        let unit_ms = match unit.trim() {
            "ms" => 1.0,
            "" if above.is_infinite() => 1_000.0,
            "s" | "sec" => 1_000.0,
            "m" | "min" => 60_000.0,
            "h" => 3_600_000.0,
            "d" => 86_400_000.0,
            _ => return Err(bad()),
        };
        // `30s1m` is a slip, not a time.
        if unit_ms >= above {
            return Err(bad());
        }
        (above, rest) = (unit_ms, next);
        total += number * unit_ms;
    }
    if total > 7.0 * 86_400_000.0 {
        return Err(format!("{text:?} is longer than a week"));
    }
    // Milliseconds are the smallest there are: what is less is none.
    Ok(Duration::from_millis(total.round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_a_limit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1 s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse_duration("1d"), Ok(Duration::from_secs(86_400)));
        let all = ["", "s", "-1s", "1w", "30s1m", "1..5s", "1m30", "999999999999h", "99999999999999999999s"];
        for bad in all {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
