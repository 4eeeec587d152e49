//! The examples of `examples/deploy` name options that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::skein;

/// Variables of the examples' own.
const OWN: [&str; 3] = ["SKEIN_FOUNDER", "SKEIN_IMAGE", "SKEIN_ADDRESS"];

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.path().is_dir() {
            true => files(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

fn variables(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("SKEIN_").map(|(at, _)| &text[at..]);
    let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
    let names = starts.map(|rest| rest.split(|c| !is_part(c)).next().unwrap_or_default().to_owned());
    names.filter(|name| name.len() > "SKEIN_".len()).collect()
}

#[test]
fn the_deployment_examples_set_variables_that_exist() {
    let help = skein().args(["mount", "--help"]).output().unwrap();
    let known = variables(&String::from_utf8(help.stdout).unwrap());
    assert!(known.contains("SKEIN_BOOTSTRAP_EXPECT") && known.len() > 30, "{known:?}");
    let mut all = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy"), &mut all);
    let mut set = 0;
    for file in &all {
        for name in variables(&fs::read_to_string(file).unwrap()) {
            let exists = known.contains(&name) || OWN.contains(&name.as_str());
            assert!(exists, "{} sets {name}", file.display());
            set += 1;
        }
    }
    assert!(all.len() >= 6 && set > 20, "{set} variables in {all:?}");
}
