//! No circle of imports inside a layer: a file can be read, and changed, with only those that it imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::tidy::{code, module, sources};

/// Circles that stay, by layer, with the reason. A file that leaves its circle is to be taken from here.
const ALLOWED: [(&str, &[&str], &str); 3] = [
    (
        "db",
        &[
            "attach",
            "backpressure",
            "batch",
            "capture_wal",
            "checkpoint",
            "claim",
            "commit",
            "database",
            "discard",
            "dms",
            "incoming",
            "invalidate",
            "landing",
            "opened",
            "overrun",
            "replace",
            "rewind",
            "roles",
            "shared",
            "view",
            "wal_chain",
            "wal_watcher",
            "wal_writer",
            "write_lease",
        ],
        "`Database` and its state are one type whose methods stand in the file of their subject",
    ),
    (
        "mount",
        &["database", "handle", "journal", "lock", "open", "shm", "state", "super_journal", "upload", "wal"],
        "opening a file asks the file of its kind, which answers through the pending open",
    ),
    (
        "store",
        &["claims", "event", "freshness", "roles", "store"],
        "`Store` is one type whose methods stand in the file of their subject",
    ),
];

type Graph = BTreeMap<String, BTreeSet<String>>;

/// What the modules of a layer re-export under their layer's name: item to module.
fn exports(code: &[(usize, String)]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, item) in imports(code, "pub use ").into_iter().chain(imports(code, "pub(crate) use ")) {
        found.insert(
            item,
            path.trim_start_matches("self::").split("::").next().unwrap_or_default().to_owned(),
        );
    }
    found
}

/// The `use` items whose line begins with `keyword`, each as path and last name.
fn imports(code: &[(usize, String)], keyword: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, (_, line)) in code.iter().enumerate() {
        if let Some(first) = line.trim_start().strip_prefix(keyword) {
            let rest = code[at + 1..].iter().map(|(_, line)| line.trim());
            let item: Vec<&str> = std::iter::once(first).chain(rest).collect();
            expand("", item.join(" ").split(';').next().unwrap_or_default().trim(), &mut found);
        }
    }
    found
}

/// Takes a tree of imports apart: `a::{b, c::{d}}` is `a::b` and `a::c::d`.
fn expand(before: &str, tree: &str, found: &mut Vec<(String, String)>) {
    let (Some(open), Some(close)) = (tree.find('{'), tree.rfind('}')) else {
        let mut halves = tree.split(" as ").map(str::trim);
        let path = format!("{before}{}", halves.next().unwrap_or_default());
        let name = halves.next().or_else(|| path.rsplit("::").next()).unwrap_or_default().to_owned();
        return found.push((path, name));
    };
    let (path, inner) = (format!("{before}{}", &tree[..open]), &tree[open + 1..close]);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[start..at].trim().is_empty() {
                    expand(&path, inner[start..at].trim(), found);
                }
                start = (at + 1).min(inner.len());
            }
            _ => {}
        }
    }
}

/// Which modules directly below `src/<layer>` import which others; a directory counts as one module.
fn graph(layer: &str) -> Graph {
    let files: Vec<_> = sources("src").into_iter().filter(|path| module(path) == layer).collect();
    let root = files.iter().find(|path| path.ends_with(format!("src/{layer}/mod.rs")));
    let exported = root.map(|path| exports(&code(path))).unwrap_or_default();
    let own = |path: &Path| {
        let mut parts = path.iter().skip_while(|part| *part != "src").skip(2);
        parts.next().map(|part| part.to_string_lossy().trim_end_matches(".rs").to_owned())
    };
    let modules: BTreeSet<String> = files.iter().filter_map(|path| own(path)).collect();
    let mut graph = Graph::new();
    for path in &files {
        let Some(user) = own(path).filter(|user| user != "mod") else { continue };
        let depth = path.iter().skip_while(|part| *part != "src").count() - 2;
        let above = "super::".repeat(depth - usize::from(path.ends_with("mod.rs")));
        let crate_path = format!("crate::{layer}::");
        for (import, _) in imports(&code(path), "use ") {
            let below = import.strip_prefix(&above).or_else(|| import.strip_prefix(&crate_path));
            let Some(first) = below.and_then(|below| below.split("::").next()) else { continue };
            let used =
                if modules.contains(first) { Some(first) } else { exported.get(first).map(String::as_str) };
            if let Some(used) = used.filter(|used| *used != user && *used != "super") {
                graph.entry(user.clone()).or_default().insert(used.to_owned());
            }
        }
    }
    graph
}

/// The modules that can be reached from `start`.
fn reachable(graph: &Graph, start: &str) -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![start.to_owned()]);
    while let Some(next) = open.pop() {
        for used in graph.get(&next).into_iter().flatten() {
            if found.insert(used.clone()) {
                open.push(used.clone());
            }
        }
    }
    found
}

/// The modules of a layer that import themselves through others.
fn in_circles(graph: &Graph) -> BTreeSet<String> {
    graph.keys().filter(|name| reachable(graph, name).contains(*name)).cloned().collect()
}

#[test]
fn no_circle_of_imports_inside_a_layer() {
    let layers: BTreeSet<String> = sources("src")
        .iter()
        .map(|path| module(path))
        .filter(|name| name != "lib" && name != "main")
        .collect();
    let mut broken = Vec::new();
    for layer in layers {
        let found = in_circles(&graph(&layer));
        let allowed: BTreeSet<String> = ALLOWED
            .iter()
            .filter(|(name, ..)| *name == layer)
            .flat_map(|(_, modules, _)| modules.iter().map(|module| (*module).to_owned()))
            .collect();
        broken.extend(found.difference(&allowed).map(|name| format!("src/{layer}/{name}: is in a circle")));
        broken.extend(
            allowed
                .difference(&found)
                .map(|name| format!("src/{layer}/{name}: is in no circle any more; take it from the list")),
        );
    }
    assert!(
        broken.is_empty(),
        "imports inside a layer go one way; move what both need into a file of its own\n  {}",
        broken.join("\n  ")
    );
}

#[test]
fn a_circle_is_found_and_a_line_is_not() {
    let edge = |user: &str, used: &str| (user.to_owned(), BTreeSet::from([used.to_owned()]));
    let line = Graph::from([edge("a", "b"), edge("b", "c")]);
    assert_eq!(in_circles(&line), BTreeSet::new());
    let circle = Graph::from([edge("a", "b"), edge("b", "c"), edge("c", "b")]);
    assert_eq!(in_circles(&circle), BTreeSet::from(["b".to_owned(), "c".to_owned()]));
}

#[test]
fn trees_of_imports_are_taken_apart() {
    let code = [(1, "use super::{a::{B, C as D}, e};".to_owned()), (2, "use f::G;".to_owned())];
    let found: Vec<_> =
        imports(&code, "use ").into_iter().map(|(path, name)| format!("{path} {name}")).collect();
    assert_eq!(found, ["super::a::B B", "super::a::C D", "super::e e", "f::G G"]);
}
