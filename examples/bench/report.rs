//! Medians, ratios, the table and its JSON.

use serde_json::{Value, json};

/// All figures so far; each is printed as soon as it is known.
pub struct Report {
    figures: Vec<Value>,
    passthrough: bool,
}

/// The middle of the values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value that `share` of all values do not exceed.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

impl Report {
    /// An empty report; prints the table's head.
    pub fn new(passthrough: bool) -> Self {
        println!("passthrough {}", if passthrough { "on" } else { "off" });
        println!("{:<46} {:>12} {:>12} {:>8}  unit", "", "plain", "skein", "ratio");
        Self { figures: Vec::new(), passthrough }
    }

    /// Medians of two interleaved series; the ratio is skein's to plain SQLite's of the same round, its median.
    pub fn compare(&mut self, name: &str, unit: &str, plain: &[f64], skein: &[f64]) {
        let ratio = median(skein.iter().zip(plain).map(|(skein, plain)| skein / plain).collect());
        let (plain, skein) = (median(plain.to_vec()), median(skein.to_vec()));
        println!("{name:<46} {plain:>12.2} {skein:>12.2} {ratio:>8.2}  {unit}");
        self.figures
            .push(json!({"name": name, "unit": unit, "plain": plain, "skein": skein, "ratio": ratio}));
    }

    /// A figure that plain SQLite does not have.
    pub fn figure(&mut self, name: &str, unit: &str, value: f64) {
        println!("{name:<46} {:>12} {value:>12.2} {:>8}  {unit}", "", "");
        self.figures.push(json!({"name": name, "unit": unit, "skein": value}));
    }

    /// Median, 99th percentile and worst of a figure that plain SQLite does not have.
    pub fn distribution(&mut self, name: &str, unit: &str, values: &[f64]) {
        let mut values = values.to_vec();
        for (label, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let value = percentile(&mut values, share);
            self.figure(&format!("{name}, {label}"), unit, value);
        }
    }

    /// Everything as one document.
    pub fn json(&self) -> String {
        let document = json!({"passthrough": self.passthrough, "figures": self.figures});
        serde_json::to_string_pretty(&document).expect("numbers and texts") + "\n"
    }
}
