//! Points at which a test can make the program fail or die.
//!
//! `SKEIN_FAULT=LABEL:NTH:ACTION` arms one point: at the NTH pass (from 1) of [`point`] with that label the
//! action is taken: `error` (EIO), `full` (ENOSPC), `stall` (the call takes 10 s longer) or `kill` (SIGKILL to this
//! process). Unarmed points cost
//! one atomic load. `SKEIN_FAULT_TRACE=FILE` appends each label to the file the first time it is passed.

use std::collections::HashSet;
use std::io;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

/// How long a call stalls.
const STALL: std::time::Duration = std::time::Duration::from_secs(10);

struct Armed {
    label: String,
    nth: u64,
    action: Action,
    passes: AtomicU64,
}

#[derive(Clone, Copy)]
enum Action {
    Error,
    Full,
    Stall,
    Kill,
}

struct Faults {
    armed: Option<Armed>,
    trace: Option<Mutex<(std::fs::File, HashSet<&'static str>)>>,
}

fn parse(text: &str) -> Option<Armed> {
    let mut parts = text.split(':');
    let (label, nth, action) = (parts.next()?, parts.next()?, parts.next()?);
    let action = match action {
        "error" => Action::Error,
        "full" => Action::Full,
        "stall" => Action::Stall,
        "kill" => Action::Kill,
        _ => return None,
    };
    Some(Armed { label: label.to_owned(), nth: nth.parse().ok()?, action, passes: AtomicU64::new(0) })
}

fn faults() -> Option<&'static Faults> {
    static FAULTS: OnceLock<Option<Faults>> = OnceLock::new();
    FAULTS
        .get_or_init(|| {
            let armed = std::env::var("SKEIN_FAULT").ok().and_then(|text| parse(&text));
            let trace = std::env::var_os("SKEIN_FAULT_TRACE")
                .and_then(|path| std::fs::OpenOptions::new().create(true).append(true).open(path).ok())
                .map(|file| Mutex::new((file, HashSet::new())));
            (armed.is_some() || trace.is_some()).then_some(Faults { armed, trace })
        })
        .as_ref()
}

/// Passes the point named `label`, just before the call it stands for.
///
/// # Errors
/// EIO or ENOSPC where a test armed this point.
pub fn point(label: &'static str) -> io::Result<()> {
    match faults() {
        None => Ok(()),
        Some(faults) => faults.pass(label),
    }
}

impl Faults {
    fn pass(&self, label: &'static str) -> io::Result<()> {
        if let Some(trace) = &self.trace {
            let mut trace = trace.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if trace.1.insert(label) {
                writeln!(trace.0, "{label}")?;
            }
        }
        let Some(armed) = self.armed.as_ref().filter(|armed| armed.label == label) else { return Ok(()) };
        if armed.passes.fetch_add(1, Ordering::Relaxed) + 1 != armed.nth {
            return Ok(());
        }
        match armed.action {
            Action::Error => Err(io::Error::from_raw_os_error(nix::libc::EIO)),
            Action::Full => Err(io::Error::from_raw_os_error(nix::libc::ENOSPC)),
            Action::Stall => {
                std::thread::sleep(STALL);
                Ok(())
            }
            Action::Kill => {
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
                Ok(())
            }
        }
    }
}
