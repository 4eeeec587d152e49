//! The rules of the tree, read from the source: layers, doors to libraries, sizes, names.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;
const TOP_LEVEL: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "src",
    "proto",
    "tests",
    "examples",
];
const FORBIDDEN_NAMES: [&str; 5] = ["utils", "util", "common", "helpers", "manager"];

/// Each group may use the groups before it. A group's modules may use one another only where the last field says so.
const LAYERS: [(&[&str], bool); 9] = [
    (&["types"], false),
    (&["io", "sqlite", "ltx"], true),
    (&["db"], false),
    (&["store"], false),
    (&["history"], false),
    (&["config", "security", "telemetry"], true),
    (&["mount", "raft", "stream", "backup"], false),
    (&["rpc", "http", "proxy", "sql"], true),
    (&["node", "cli", "docs", "fuzz"], true),
];

/// A library and the only modules that may name it.
const DOORS: [(&str, &[&str]); 20] = [
    ("fuser", &["mount"]),
    ("openraft", &["raft"]),
    ("tonic", &["rpc", "raft", "security"]),
    ("prost", &["rpc", "raft"]),
    ("axum", &["http", "proxy", "sql"]),
    ("hyper", &["http", "proxy", "sql"]),
    ("hyper_util", &["http", "proxy", "sql", "security"]),
    ("hyper_rustls", &["http"]),
    ("rustls", &["security"]),
    ("tokio_rustls", &["security"]),
    ("rcgen", &["security"]),
    ("x509_parser", &["security"]),
    ("subtle", &["security", "sql"]),
    ("jsonwebtoken", &["security"]),
    ("object_store", &["backup"]),
    ("clap", &["cli", "main"]),
    ("anyhow", &["cli", "main"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
];

/// What only tests may say; the rest of the program answers with an error.
const ONLY_IN_TESTS: [&str; 5] = [".unwrap()", "panic!(", "todo!(", "unimplemented!(", "dbg!("];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn sources(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "proto") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").display().to_string()
}

/// Line numbers and code of a file without comments and without what only tests compile.
pub fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    if path.file_stem().is_some_and(|stem| stem == "tests")
        || path.components().any(|part| part.as_os_str() == "tests")
    {
        return Vec::new();
    }
    let mut kept = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            let indent = &line[..line.len() - line.trim_start().len()];
            // The item ends with its own closing brace, or with a semicolon before any brace.
            let mut braces = false;
            for (_, inner) in lines.by_ref() {
                braces |= inner.trim_end().ends_with('{');
                if (!braces && inner.trim_end().ends_with(';')) || inner == format!("{indent}}}") {
                    break;
                }
            }
        } else if !line.trim_start().starts_with("//") {
            kept.push((number + 1, line.to_owned()));
        }
    }
    kept
}

/// The first component below `src` without `.rs`.
pub fn module(path: &Path) -> String {
    let below = path.strip_prefix(root().join("src")).expect("below src");
    let first = below.components().next().expect("not empty").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(modules, _)| modules.contains(&module))
}

fn word_follows(line: &str, prefix: &str) -> Vec<String> {
    let names = line.match_indices(prefix).filter(|(at, _)| {
        !line[..*at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
    });
    let word = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    names.map(|(at, _)| word(&line[at + prefix.len()..])).filter(|name| !name.is_empty()).collect()
}

fn check(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

#[test]
fn each_module_uses_only_the_layers_above_it() {
    let mut broken = Vec::new();
    for path in sources("src") {
        let user = module(&path);
        if user == "lib" || user == "main" {
            continue;
        }
        let Some(own) = layer(&user) else {
            broken.push(format!("{}: module {user} is in no layer", shown(&path)));
            continue;
        };
        for (number, line) in code(&path) {
            for used in word_follows(&line, "crate::") {
                let Some(other) = layer(&used) else { continue };
                let sibling = other == own && used != user;
                let impure = used == "io" && (user == "sqlite" || user == "ltx");
                if other > own || (sibling && !LAYERS[own].1) || impure {
                    broken.push(format!("{}:{number}: {user} uses {used}", shown(&path)));
                }
            }
        }
    }
    check(
        &broken,
        "layers: types - io, sqlite, ltx (pure) - db - store - config, security, telemetry - mount|raft|stream|backup (never one another; meet in \
         traits of store) - rpc|http|proxy|sql - node|cli; what is below is not known above",
    );
}

#[test]
fn each_large_library_has_one_door() {
    let mut broken = Vec::new();
    for path in sources("src") {
        let user = module(&path);
        for (number, line) in code(&path) {
            for (library, doors) in DOORS {
                let named = word_follows(&line, &format!("{library}::")).len()
                    + usize::from(line.contains(&format!("use {library};")));
                if named > 0 && !doors.contains(&user.as_str()) {
                    broken.push(format!("{}:{number}: {library} outside {doors:?}", shown(&path)));
                }
            }
        }
    }
    check(&broken, "a library is named only behind its door, so that it can be replaced there");
}

#[test]
fn no_file_is_longer_than_anyone_reads() {
    let all = ["src", "proto", "tests", "examples"].iter().flat_map(|dir| sources(dir));
    let long: Vec<_> = all
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, path)| format!("{}: {lines} lines", shown(&path)))
        .collect();
    check(&long, "a file has at most 600 lines: split it by what it owns");
}

#[test]
fn files_are_named_for_what_they_own() {
    let broken: Vec<_> = ["src", "tests", "examples"]
        .iter()
        .flat_map(|dir| sources(dir))
        .filter(|path| {
            let below = path.strip_prefix(root()).expect("below the root").with_extension("");
            below.components().any(|part| FORBIDDEN_NAMES.contains(&&*part.as_os_str().to_string_lossy()))
        })
        .map(|path| shown(&path))
        .collect();
    check(&broken, "no utils, common, helpers, manager: name the thing it owns");
}

#[test]
fn only_tests_may_panic() {
    let mut broken = Vec::new();
    for path in sources("src") {
        for (number, line) in code(&path) {
            if let Some(said) = ONLY_IN_TESTS.iter().find(|said| line.contains(**said)) {
                broken.push(format!("{}:{number}: {said}", shown(&path)));
            }
        }
    }
    check(
        &broken,
        "input from disk, network or client never panics: return an error, or expect(\"why it cannot fail\")",
    );
}

#[test]
fn every_unsafe_block_has_its_proof() {
    let mut broken = Vec::new();
    for path in sources("src") {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            let above = &lines[index.saturating_sub(8)..=index];
            if !above.iter().any(|line| line.to_ascii_lowercase().contains("// safety")) {
                broken.push(format!("{}:{}", shown(&path), index + 1));
            }
        }
    }
    check(&broken, "an unsafe block has a comment `// SAFETY: why` right above it");
}

#[test]
fn the_top_level_stays_a_table_of_contents() {
    let allowed = |name: &str| {
        name.starts_with('.')
            || name == "target"
            || name == "scripts"
            || name == "findings"
            || TOP_LEVEL.contains(&name)
    };
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let broken: Vec<_> = names.filter(|name| !allowed(name)).collect();
    check(
        &broken,
        "the top level is Cargo.toml, src, proto, tests, examples, scripts, findings, README.md, licences, dot files",
    );
}
