//! Which boot of the machine this is.

/// The kernel's random id of this boot; empty where it tells none.
/// Source: `Documentation/admin-guide/sysctl/kernel.rst`, `random/boot_id`.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
