use crate::types::{Txid, TxidRange};

/// The name of an LTX file: `<min TXID>-<max TXID>.ltx`, each 16 lower-case hex digits.
pub fn file_name(range: TxidRange) -> String {
    format!("{}-{}.ltx", range.min(), range.max())
}

/// The transactions that a file name stands for, or `None` where it is not the name of an LTX file.
pub fn parse_file_name(name: &str) -> Option<TxidRange> {
    let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
    TxidRange::new(parse_txid(min)?, parse_txid(max)?)
}

fn parse_txid(text: &str) -> Option<Txid> {
    let lower_case = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    text.parse().ok().filter(|_| lower_case)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let range = TxidRange::new(Txid::new(0xab).unwrap(), Txid::new(0x1234).unwrap()).unwrap();
        assert_eq!(file_name(range), "00000000000000ab-0000000000001234.ltx");
        assert_eq!(parse_file_name(&file_name(range)), Some(range));
    }

    #[test]
    fn other_names_are_no_ltx_files() {
        for name in [
            "",
            ".ltx",
            "0000000000000001.ltx",
            "0000000000000000-0000000000000001.ltx",
            "0000000000000002-0000000000000001.ltx",
            "00000000000000AB-00000000000000ab.ltx",
            "0000000000000001-0000000000000001.ltx.tmp",
            "00000000000000001-0000000000000001.ltx",
        ] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
