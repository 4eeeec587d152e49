//! The priority of threads.

use nix::libc;

/// Lets the calling thread run before others that are ready to run, where this process may ask for that.
///
/// Meant for threads that sleep nearly always and do little when they are due. Without the right (`CAP_SYS_NICE`)
/// nothing changes.
pub fn prefer_this_thread() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a value that lives until the call returns; 0 is the calling thread.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &parameters) };
}
