//! Base 36 as join tokens use it: a big-endian number, padded with zeros to a fixed width.

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Writes `bytes`, a big-endian number, in `width` digits; higher digits than fit are left out.
pub(crate) fn encode(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest * 256 + u32::from(*byte);
            *byte =
                u8::try_from(value / 36).expect("a rest below 36 times 256 divides into a byte");
            rest = value % 36;
        }
        *digit = DIGITS[rest as usize];
    }
    String::from_utf8(digits).expect("base-36 digits are ASCII")
}

pub(crate) fn is_number(text: &str, width: usize) -> bool {
    text.len() == width && text.bytes().all(|byte| DIGITS.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full_width() {
        assert_eq!(encode(&[0], 3), "000");
        assert_eq!(encode(&[35], 2), "0z");
        assert_eq!(encode(&[1, 0], 3), "074");
        assert_eq!(encode(&[0xff; 16], 25), "f5lxx1zz5pnorynqglhzmsp33");
    }
}
