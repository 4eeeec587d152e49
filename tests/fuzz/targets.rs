//! All targets of `src/fuzz` in one program: `SKEIN_FUZZ_TARGET` names the one that libFuzzer runs, `SKEIN_FUZZ_SAMPLES` a
//! directory to which its valid samples are written first.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use skein::fuzz::{TARGETS, Target};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn chosen() -> &'static Target {
    TARGET.get_or_init(|| {
        let wanted = std::env::var("SKEIN_FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|target| target.name == wanted);
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        found.unwrap_or_else(|| panic!("SKEIN_FUZZ_TARGET={wanted:?} is none of {names:?}"))
    })
}

fn write_samples() {
    let Some(dir) = std::env::var_os("SKEIN_FUZZ_SAMPLES") else { return };
    for (number, sample) in (chosen().samples)().iter().enumerate() {
        let path = std::path::Path::new(&dir).join(format!("sample-{number}"));
        std::fs::write(&path, sample).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fuzz_target!(init: write_samples(), |data: &[u8]| {
    let target = chosen();
    if let Err(why) = target.check(data) {
        panic!("{}: {why}", target.name);
    }
});
