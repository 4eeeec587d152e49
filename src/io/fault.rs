//! Points at which a test can make the program fail or die.
//!
//! `SKEIN_FAULT=LABEL:NTH:ACTION` arms one point: at the NTH pass (from 1) of [`point`] with that label the
//! action is taken: `error` (EIO), `full` (ENOSPC), `stall` (the call takes 10 s longer) or `kill` (SIGKILL to this
//! process). `NTH+` means that pass and all later ones; several are separated by commas. Unarmed points cost one atomic load. `SKEIN_FAULT_TRACE=FILE` appends each label to the file the first time it is passed.

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
    /// The later passes, too.
    and_later: bool,
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
    armed: Vec<Armed>,
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
    let (nth, and_later) = nth.strip_suffix('+').map_or((nth, false), |nth| (nth, true));
    let (label, nth) = (label.to_owned(), nth.parse().ok()?);
    Some(Armed { label, nth, and_later, action, passes: AtomicU64::new(0) })
}

fn faults() -> Option<&'static Faults> {
    static FAULTS: OnceLock<Option<Faults>> = OnceLock::new();
    FAULTS
        .get_or_init(|| {
            let told = std::env::var("SKEIN_FAULT").unwrap_or_default();
            let armed: Vec<_> = told.split(',').filter_map(parse).collect();
            let trace = std::env::var_os("SKEIN_FAULT_TRACE")
                .and_then(|path| std::fs::OpenOptions::new().create(true).append(true).open(path).ok())
                .map(|file| Mutex::new((file, HashSet::new())));
            (!armed.is_empty() || trace.is_some()).then_some(Faults { armed, trace })
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
        let Some(armed) = self.armed.iter().find(|armed| armed.label == label) else { return Ok(()) };
        let pass = armed.passes.fetch_add(1, Ordering::Relaxed) + 1;
        if pass != armed.nth && !(armed.and_later && pass > armed.nth) {
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
