//! The command line as a user meets it: usage, settings, identity, change-set files. Needs no mount and no other node.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use assert_cmd::assert::Assert;

/// The program without configuration from the environment.
fn skein() -> Command {
    let mut command = Command::cargo_bin("skein").unwrap();
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("SKEIN_")) {
        command.env_remove(key);
    }
    command.env_remove("RUST_LOG").timeout(std::time::Duration::from_secs(60));
    command
}

/// What a refusal says: one line on stderr, nothing on stdout.
fn refusal(assert: Assert, code: i32) -> String {
    let output = assert.code(code).get_output().clone();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty(), "stdout: {}", String::from_utf8_lossy(&output.stdout));
    let line = text.strip_prefix("skein: ").unwrap_or_else(|| panic!("{text:?}")).trim_end();
    assert!(!line.contains('\n') && !line.contains("panicked"), "{text}");
    assert!(!line.starts_with(char::is_uppercase), "{line}");
    line.to_owned()
}

fn mount(dir: &Path, options: &[&str]) -> Assert {
    let (mount, data) = (dir.join("mnt"), dir.join("data"));
    let mut command = skein();
    command.args(["mount", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command.arg("--mount").arg(mount).arg("--data").arg(data).args(options).assert()
}

#[test]
fn every_command_has_help() {
    for command in [
        &[][..],
        &["mount"],
        &["demo"],
        &["status"],
        &["db"],
        &["db", "export"],
        &["wait"],
        &["members"],
        &["ltx"],
    ] {
        let output = skein().args(command).arg("--help").assert().success().get_output().clone();
        assert!(String::from_utf8(output.stdout).unwrap().contains("Usage: skein"), "{command:?}");
    }
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    for (words, part) in [
        (&[][..], "--help"),
        (&["mont"], "mont"),
        (&["mount"], "--mount is missing"),
        (&["mount", "--mount", "/m"], "--data is missing"),
        (&["mount", "--role", "king", "--mount", "/m", "--data", "/d"], "--role"),
        (&["mount", "--mount", "/m", "--data", "/m/data"], "separate directories"),
        (&["mount", "--http", "here"], "HOST:PORT"),
        (&["db", "drop"], "<DB>"),
        (&["db", "drop", "../x"], "../x"),
        (&["wait", "a.db", "--pos", "42"], "16 hex digits"),
        (&["ltx", "verify"], "<FILES>"),
    ] {
        let line = refusal(skein().args(words).assert(), 2);
        assert!(line.contains(part), "{words:?}: {line}");
    }
}

#[test]
fn mistakes_in_the_configuration_file_name_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("skein.toml");
    for (text, part) in [
        ("mout = '/x'", "\"mout\""),
        ("join = 'h:1'", "\"join\""),
        ("data = '${SURELY_NOT_SET}'", "SURELY_NOT_SET"),
        ("data = ", "line 1"),
    ] {
        fs::write(&file, text).unwrap();
        let line = refusal(skein().args(["mount", "--config"]).arg(&file).assert(), 1);
        assert!(line.contains(part) && line.contains("skein.toml"), "{line}");
    }
    let line = refusal(skein().args(["mount", "--config", "/no/such.toml"]).assert(), 1);
    assert!(line.contains("/no/such.toml"), "{line}");
}

#[test]
fn a_slip_in_the_configuration_is_told_with_its_line_and_what_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("skein.toml");
    fs::write(&file, "mount = '/srv/a'\ndata = '/srv/d'\nheartbeet = '1s'\n").unwrap();
    let line = refusal(skein().args(["config", "check", "--config"]).arg(&file).assert(), 1);
    assert!(line.contains("line 3") && line.contains("did you mean \"heartbeat\""), "{line}");
    let text = "mount = '/srv/a'\ndata = '/srv/d'\nelection_timeout = '1.5s'\n[limits]\nlog_keep = '1G'\n";
    fs::write(&file, text).unwrap();
    let printed = skein().args(["config", "print", "--name", "n7", "--config"]).arg(&file).assert().success();
    let printed = String::from_utf8(printed.get_output().stdout.clone()).unwrap();
    for part in ["name = \"n7\"", "election_timeout = \"1500ms\"", "log_keep = \"1GiB\""] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    // What is printed is a configuration that comes to the same.
    fs::write(&file, &printed).unwrap();
    let again = skein().args(["config", "print", "--config"]).arg(&file).assert().success();
    assert_eq!(String::from_utf8(again.get_output().stdout.clone()).unwrap(), printed);
}

#[test]
fn the_version_and_the_help_of_a_command_are_commands() {
    let version = skein().arg("version").assert().success().get_output().stdout.clone();
    let json = skein().args(["version", "--json"]).assert().success().get_output().stdout.clone();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let version = String::from_utf8(version).unwrap();
    assert_eq!(version.trim(), format!("skein {}", json["version"].as_str().unwrap()));
    let help = skein().args(["help", "mount"]).assert().success().get_output().stdout.clone();
    let help = String::from_utf8(help).unwrap();
    for part in ["Cluster:", "Addresses:", "Security:", "Examples:"] {
        assert!(help.contains(part), "{part}");
    }
}

#[test]
fn options_override_the_environment_which_overrides_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("skein.toml");
    let text = format!("mount = '{0}/mnt'\ndata = '{0}/data'\nname = 'bad file'\n", dir.path().display());
    fs::write(&file, text).unwrap();
    let run = |env: Option<&str>, option: &[&str]| {
        let mut command = skein();
        command.arg("mount").args(option).env("SKEIN_CONFIG", &file);
        if let Some(name) = env {
            command.env("SKEIN_NAME", name);
        }
        command.assert()
    };
    assert!(refusal(run(None, &[]), 2).contains("bad file"));
    assert!(refusal(run(Some("bad env"), &[]), 2).contains("bad env"));
    assert!(refusal(run(Some("bad env"), &["--name", "bad option"]), 2).contains("bad option"));
    assert!(refusal(run(Some("good"), &[]), 1).contains("--bootstrap"), "a good name gets further");
}

#[test]
fn a_node_without_a_cluster_is_told_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let line = refusal(mount(dir.path(), &[]), 1);
    assert!(line.contains("--bootstrap") && line.contains("--join"), "{line}");
    let line = refusal(mount(dir.path(), &["--role", "replica"]), 1);
    assert!(line.contains("--join"), "{line}");
    let left = fs::read_dir(dir.path().join("data")).unwrap().count();
    assert_eq!(left, 0, "a refused start leaves nothing behind");
}

#[test]
fn a_foreign_or_newer_data_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("notes.txt"), "mine").unwrap();
    let line = refusal(mount(dir.path(), &["--bootstrap"]), 1);
    assert!(line.contains("belongs to something else"), "{line}");
    fs::write(data.join("node.toml"), "format_version = 99\n").unwrap();
    let line = refusal(mount(dir.path(), &["--bootstrap"]), 1);
    assert!(line.contains("version 99") && line.contains("newer skein"), "{line}");
}

#[test]
fn a_data_directory_keeps_its_role() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let identity = "format_version = 1\nnode = \"0000000000000007\"\nname = \"n\"\nrole = \"voter\"\ncluster = \"abc\"\n";
    fs::write(data.join("node.toml"), identity).unwrap();
    let line = refusal(mount(dir.path(), &["--role", "replica", "--join", "127.0.0.1:1"]), 1);
    assert!(line.contains("--role voter"), "{line}");
}

#[test]
fn client_commands_name_the_node_that_does_not_answer() {
    // A port that was free a moment ago, and that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    for words in [&["status"][..], &["db", "list"], &["wait", "a.db"], &["members", "list"]] {
        let line = refusal(skein().args(words).env("SKEIN_URL", &url).assert(), 1);
        assert!(line.contains(&url) && line.contains("--url"), "{line}");
    }
    let line = refusal(skein().args(["status", "--url", "localhost"]).assert(), 1);
    assert!(line.contains("http://HOST:PORT"), "{line}");
}

#[test]
fn a_database_in_use_is_neither_imported_nor_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (file, wal) = (dir.path().join("a.db"), dir.path().join("a.db-wal"));
    fs::write(&file, "SQLite format 3\0").unwrap();
    fs::write(&wal, "frames").unwrap();
    // Somebody who never answers: neither command gets that far.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let line = refusal(skein().args(["db", "export", "x.db"]).arg(&file).env("SKEIN_URL", &url).assert(), 1);
    assert!(line.contains("a.db-wal"), "{line}");
    let line =
        refusal(skein().args(["db", "import"]).arg(&file).arg("x.db").env("SKEIN_URL", &url).assert(), 1);
    assert!(line.contains("a.db-wal") && line.contains("VACUUM INTO"), "{line}");
}

#[test]
fn change_set_files_are_shown_and_checked() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ltx");
    let file = data.join("level0-0000000000000002-0000000000000002.ltx");
    let output = skein().args(["ltx", "dump"]).arg(&file).assert().success().get_output().clone();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["0000000000000002 to 0000000000000002", "page size       4096", "page 1 ", "file checksum"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let all: Vec<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()).collect();
    let files = all.iter().filter(|path| path.extension().is_some_and(|ext| ext == "ltx"));
    skein().args(["ltx", "verify"]).args(files).assert().success();
}

#[test]
fn damaged_change_set_files_are_named_and_the_good_ones_still_checked() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ltx");
    let good = data.join("level0-0000000000000003-0000000000000003.ltx");
    let bytes = fs::read(&good).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("damaged.ltx");
    let misnamed = dir.path().join("0000000000000009-0000000000000009.ltx");
    fs::write(&misnamed, &bytes).unwrap();
    for change in [0, 150, bytes.len() / 2, bytes.len() - 1] {
        let mut bytes = bytes.clone();
        bytes[change] ^= 0x55;
        fs::write(&damaged, bytes).unwrap();
        let assert = skein().args(["ltx", "verify"]).arg(&damaged).arg(&good).assert().code(1);
        let output = assert.get_output();
        assert!(String::from_utf8_lossy(&output.stderr).contains("damaged.ltx"), "byte {change}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("0000000000000003.ltx: ok"));
    }
    assert!(refusal(skein().args(["ltx", "verify"]).arg(&misnamed).assert(), 1).contains("rename"));
    let line = refusal(skein().args(["ltx", "dump"]).arg(dir.path()).assert(), 1);
    assert!(line.contains("directory"), "{line}");
}

#[test]
fn a_certificate_is_renewed_in_its_place_with_the_same_names_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let certs = |words: &[&str]| skein().arg("certs").args(words).arg("--dir").arg(dir.path()).assert();
    certs(&["init"]).success();
    certs(&["issue", "n1", "--address", "10.0.0.1,db.internal,::1", "--days", "1"]).success();
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let (cert, key) = (read("n1.pem"), read("n1-key.pem"));
    certs(&["renew", "n1", "--days", "30"]).success();
    assert_ne!(read("n1.pem"), cert);
    assert_eq!(read("n1-key.pem"), key);
    let named = |pem: &str| {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let parsed = pem.parse_x509().unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        let text: Vec<String> = names.value.general_names.iter().map(|name| name.to_string()).collect();
        (text, parsed.validity().not_after.timestamp())
    };
    let ((names, end), (old_names, old_end)) = (named(&read("n1.pem")), named(&cert));
    assert_eq!((names.len(), &names), (4, &old_names));
    assert!(end > old_end + 20 * 86_400);
    let line = refusal(certs(&["renew", "n2"]), 1);
    assert!(line.contains("certs issue"), "{line}");
}
