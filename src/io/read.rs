//! Reading at an offset, tolerant of the end of the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Fills `data` as far as the file goes; returns how much that is.
///
/// # Errors
/// Where reading fails.
pub fn read_up_to(file: &File, data: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads what is there and leaves the rest zero, as SQLite reads behind the end of a file.
///
/// # Errors
/// Where reading fails.
pub fn read_or_zero(file: &File, offset: u64, data: &mut [u8]) -> io::Result<()> {
    let got = read_up_to(file, data, offset)?;
    data[got..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_stops_at_the_end_of_the_file_or_goes_on_with_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut data = [0xff; 8];
        assert_eq!(read_up_to(&file, &mut data, 4).unwrap(), 6);
        assert_eq!(&data[..6], b"456789");
        assert_eq!(read_up_to(&file, &mut data, 10).unwrap(), 0);
        read_or_zero(&file, 8, &mut data).unwrap();
        assert_eq!(&data, b"89\0\0\0\0\0\0");
    }
}
