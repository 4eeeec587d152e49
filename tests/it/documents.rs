//! What README.md and src/docs tell people to type is run as it stands there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{needs_skein, skein, skein_binary, skip};

/// Before each block: a machine of its own, as far as the block sees. `$1` is the directory with `skein` and `my-server`.
const MACHINE: &str = r#"
set -eu
ip link set lo up
ip addr add 10.0.0.1/32 dev lo
for dir in /srv /var/lib /root; do mkdir -p "$dir" && mount -t tmpfs none "$dir"; done
PATH=$1:$PATH
pids=""
"#;

/// After it: nodes end in order, the last one first.
const END: &str = r#"
for pid in $pids; do kill "$pid"; wait "$pid" || true; done
"#;

/// What a block may refer to.
const CONFIG: &str = r#"
mount = "/srv/app"
data = "/var/lib/skein-app"
name = "n1"
bootstrap = true
"#;

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("src/docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = docs.filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect();
    all.sort();
    all.insert(0, root.join("README.md"));
    all
}

/// The shell blocks of a document.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
            if inside {
                blocks.push(String::new());
            }
        } else if inside {
            let block = blocks.last_mut().expect("it has begun");
            block.push_str(line);
            block.push('\n');
        }
    }
    blocks
}

/// The block as a script, as it stands; what it leaves running is ended.
fn script(block: &str) -> String {
    let mut script = MACHINE.to_owned();
    for command in block.replace("\\\n", " ").lines() {
        script.push_str(command);
        let in_background = command.trim_end().ends_with('&') && !command.trim_end().ends_with("&&");
        script.push_str(if in_background { "\npids=\"$! $pids\"\n" } else { "\n" });
    }
    script + END
}

#[test]
fn the_commands_of_the_documents_work() {
    if !needs_skein() {
        return;
    }
    let machine = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"];
    for (program, args) in [("unshare", &machine[..]), ("sqlite3", &["-version"]), ("openssl", &["version"])]
    {
        let mut command = Command::new(program);
        command.args(args);
        if program == "unshare" {
            command.arg("true");
        }
        if !command.output().is_ok_and(|output| output.status.success()) {
            return skip(&format!("{program} does not work here"));
        }
    }
    let bin = tempfile::tempdir().unwrap();
    // Not a link: where the program is may be hidden on that machine.
    std::fs::copy(skein_binary(), bin.path().join("skein")).unwrap();
    let server = bin.path().join("my-server");
    std::fs::write(&server, "#!/bin/sh\ntest -d /srv/app\n").unwrap();
    std::fs::set_permissions(&server, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut ran = 0;
    for document in documents() {
        for block in blocks(&std::fs::read_to_string(&document).unwrap()) {
            // A script of the repository: it runs by itself.
            if block.starts_with("scripts/") {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(block.trim_end());
                assert!(path.exists(), "{}: {block}", document.display());
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("skein.toml"), CONFIG).unwrap();
            let mut command = Command::new("unshare");
            command.args(machine).args(["sh", "-c", &script(&block), "sh"]).arg(bin.path());
            let output = command.current_dir(dir.path()).output().unwrap();
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{}:\n{block}\n{out}\n{err}", document.display());
            ran += 1;
        }
    }
    assert!(ran >= 5, "{ran} blocks ran");
}

#[test]
fn the_commands_the_documents_name_exist() {
    let mut named = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        // Every other piece between backticks is code.
        for code in text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("skein ")) {
            let is_word = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
            let words: Vec<_> = code.split([' ', '\n']).skip(1).take_while(is_word).take(2).collect();
            // The second word is a command of the first, or what that is asked to work on.
            let help = |words: &[&str]| skein().args(words).arg("--help").output().unwrap().status.success();
            let known = help(&words) || words.first().is_some_and(|first| help(&[first]));
            assert!(known && !words.is_empty(), "{}: {code:?}", document.display());
            named += 1;
        }
    }
    assert!(named > 20, "{named} commands");
}
