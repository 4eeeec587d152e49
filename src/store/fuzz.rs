//! Targets for [`crate::fuzz`]: what the store keeps on disk for itself.

use super::log_positions;

/// The file that says where each database stands by the log.
pub fn positions(data: &[u8]) {
    let Some(known) = std::str::from_utf8(data).ok().and_then(log_positions::parse) else { return };
    let again = log_positions::parse(&log_positions::text_of(&known)).expect("what was written can be read");
    assert!(again == known);
}

/// Valid files.
pub fn position_files() -> Vec<Vec<u8>> {
    let lines =
        "7 000000000000002a/89abcdef01234567 app.db\n12 0000000000000001/8000000000000000 dir/other db\n";
    let none = log_positions::text_of(&Default::default());
    vec![format!("{none}{lines}").into_bytes(), none.into_bytes()]
}
